"""The server: one event loop in a thread, HTTP and WebSocket on one port of the loopback.

What it plays comes from an iterable of ticks, iterated in a thread of its own, or from `send`. Times are its clock's, so that
a test can hand it the clock that its client has.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import socket
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import tornado.escape
import tornado.httpserver
import tornado.web

from pipeline_lib.errors import ServiceError, SettingsError
from pipeline_lib.finnhub_stand_in.answers import (
    LIMIT_REACHED,
    NO_ACCESS,
    NO_KEY,
    NOT_FOUND,
    SLOW,
    UNKNOWN,
    WRONG_KEY,
    Answer,
    market_status,
    search_result,
    traded_quote,
)
from pipeline_lib.finnhub_stand_in.faults import REST_FAULTS, FaultSchedule, check_fault, faulty_answer
from pipeline_lib.finnhub_stand_in.hall import Calls, Hall, Socket
from pipeline_lib.finnhub_stand_in.ledger import Ledger, Poll
from pipeline_lib.records import Tick
from pipeline_lib.sources.clock import Clock
from pipeline_lib.sources.market_hours import session_at

SLOW_SECONDS = 10.0
LINGER_SECONDS = 0.02  # trades of so long go out in one message, as Finnhub's do
PING_SECONDS = 60.0


class Plan(NamedTuple):
    """What the key may do; these are Finnhub's numbers for the free plan."""

    per_minute: int = 60
    per_second: int = 30
    symbols: int = 50
    trades: bool = True


@dataclass(frozen=True)
class Request:
    """A request by REST as it came: the whole target, and the headers."""

    target: str
    headers: dict[str, str]


class FinnhubStandIn:
    """Serves from `with` to its end. `fault` makes the next answer, or the socket, fail; `ledger` tells what was done.

    `quotes` are what is answered; a trade that is sent renews the quote of its symbol, whether anybody has it or not.
    """

    def __init__(
        self,
        key: str,
        quotes: dict[str, dict[str, Any]] | None = None,
        *,
        market: Iterable[Tick] = (),
        plan: Plan = Plan(),  # noqa: B008
        schedule: FaultSchedule | None = None,
        clock: Clock | None = None,
        port: int = 0,
    ) -> None:
        self.key, self.plan, self.clock = key, plan, clock or Clock()
        self.quotes: dict[str, dict[str, Any]] = {} if quotes is None else quotes
        self.requests: deque[Request] = deque(maxlen=100_000)
        self.faults: deque[Answer | str | None] = deque()  # for REST, one a call; None is none
        self.let_go = threading.Event()
        self._holds = threading.Event()
        self.ledger = Ledger()
        self.market_open: bool | None = None  # None: as the calendar has it
        self.ping_seconds = PING_SECONDS
        self._market, self._schedule, self._port = market, schedule, port
        self._hall = Hall(self.ledger, self.clock, plan.symbols)
        self._waiting: deque[Tick] = deque()
        self._calls = Calls(plan.per_minute, plan.per_second, self.clock)
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    @property
    def rest_url(self) -> str:
        """What FINNHUB_BASE_URL is to be."""
        return f"http://127.0.0.1:{self._port}/api/v1"

    @property
    def websocket_url(self) -> str:
        """What FINNHUB_WEBSOCKET_URL is to be."""
        return f"ws://127.0.0.1:{self._port}"

    @property
    def control_url(self) -> str:
        """Where faults are asked for by hand: `POST …/fault?name=drop`, and the account is read: `GET …/ledger`."""
        return f"http://127.0.0.1:{self._port}/stand-in"

    def send(self, *trades: Tick) -> None:
        """Let these trades happen now: they go to whoever has subscribed to them, and their quotes are renewed."""
        self._waiting.extend(trades)

    def fault(self, name: str, *, times: int = 1, seconds: float | None = None) -> None:
        """Have this fault, so many times, or for so long where it lasts; see FAULTS. Raises SettingsError for an unknown name."""
        asyncio.run_coroutine_threadsafe(self.have_fault(check_fault(name), times, seconds), self._loop).result(10)

    async def have_fault(self, name: str, times: int = 1, seconds: float | None = None) -> None:
        """Have this fault, as `fault` does, from within the server."""
        self.ledger.faults.append(name)
        if name in REST_FAULTS:
            self.faults.extend([name] * times)
        else:
            await self._hall.fault(name, times, seconds)

    def confirm(self) -> bool:
        """Wait until the client has said that it has all that was sent; return whether it did, within five seconds."""
        return asyncio.run_coroutine_threadsafe(self._hall.confirm(), self._loop).result(10)

    def hold(self) -> bool:
        """Deliver and answer nothing more, so that the account stands still; return whether the client has all of it."""
        return asyncio.run_coroutine_threadsafe(self.have_hold(), self._loop).result(10)

    async def have_hold(self) -> bool:
        """Hold, as `hold` does, from within the server."""
        self._holds.set()
        return await self._hall.confirm()

    @property
    def subscribed(self) -> set[str]:
        """The symbols that sockets are subscribed to now."""
        return {symbol for socket in list(self._hall.sockets) for symbol in list(socket.symbols)}

    def __enter__(self) -> Self:
        self._start(lambda: asyncio.run(self._serve()), "finnhub-stand-in")
        self._ready.wait()
        if self._failure is not None:
            self._threads[0].join()
            raise ServiceError(f"cannot start the stand-in for Finnhub: {self._failure}; choose another port") from self._failure
        self._start(self._play, "finnhub-stand-in-market")
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._stopping.set()
        close = getattr(self._market, "close", None)
        if close is not None:
            close()
        for thread in reversed(self._threads):
            thread.join()

    def _start(self, run: Any, name: str) -> None:
        self._threads.append(threading.Thread(target=run, name=name, daemon=True))
        self._threads[-1].start()

    def _play(self) -> None:
        for tick in self._market:
            if self._stopping.is_set():
                return
            self._waiting.append(tick)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        handlers = [(r"/api/v1//?(.*)", _Rest), (r"/stand-in/(fault|hold|ledger)", _Control), (r"/(.*)", Socket)]
        application = tornado.web.Application(handlers, stand_in=self, hall=self._hall, log_function=lambda _: None)
        try:
            listening = socket.create_server(("127.0.0.1", self._port))
            listening.setblocking(False)
        except OSError as error:
            self._failure = error
            self._ready.set()
            return
        self._port = listening.getsockname()[1]
        server = tornado.httpserver.HTTPServer(application)
        server.add_socket(listening)
        self._ready.set()
        tasks = [asyncio.create_task(task) for task in (self._deliver(), self._ping(), self._fail())]
        try:
            while not self._stopping.is_set():
                await asyncio.sleep(LINGER_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.stop()
            self._hall.cut_all()
            await server.close_all_connections()

    async def _deliver(self) -> None:
        while True:
            trades = [] if self._holds.is_set() else [self._waiting.popleft() for _ in range(len(self._waiting))]
            for tick in trades:
                self.quotes[tick.symbol] = traded_quote(self.quotes.get(tick.symbol), tick.price, tick.event_time // 1_000)
            self._hall.deliver([tick for tick in trades if tick.volume is not None])
            await asyncio.sleep(LINGER_SECONDS)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self.ping_seconds)
            self._hall.tell({"type": "ping"})

    async def _fail(self) -> None:
        for planned in self._schedule or ():
            await asyncio.sleep(planned.after_seconds)
            await self.have_fault(planned.name)

    def answer(self, path: str, symbol: str | None, text: str, key: str | None) -> Answer:
        """Return what a call is answered with: the fault that is due, or else a refusal that is deserved, or what was asked for."""
        reached = not self._calls.allow()
        fault = self.faults.popleft() if self.faults else None
        if self._holds.is_set():
            return SLOW
        good = self.quotes.get(symbol or "", UNKNOWN)
        if fault is not None:
            return fault if isinstance(fault, Answer) else faulty_answer(fault, good, self.clock.now_ms())
        if key != self.key:
            return WRONG_KEY if key else NO_KEY
        if reached:
            return LIMIT_REACHED
        if path == "quote":
            return Answer(200, good)
        if path == "stock/market-status":
            now = self.clock.now_ms()
            return Answer(200, market_status(now, session_at(now).is_open if self.market_open is None else self.market_open))
        if path == "search":
            return Answer(200, search_result(text, sorted(self.quotes)))
        return NO_ACCESS if path.startswith("stock/") else NOT_FOUND

    def headers_of_limit(self) -> dict[str, str]:
        """Return the X-Ratelimit headers that go with every answer."""
        return self._calls.headers()

    async def wait_to_let_go(self) -> None:
        """Wait until the test lets go of slow answers, or for ten seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SLOW_SECONDS):
                while not self.let_go.is_set():
                    await asyncio.sleep(LINGER_SECONDS)


class _Rest(tornado.web.RequestHandler):
    """Finnhub's REST API, under /api/v1/ and, as finnhub-python has it, /api/v1//."""

    async def get(self, path: str) -> None:
        stand_in: FinnhubStandIn = self.settings["stand_in"]
        stand_in.requests.append(Request(self.request.uri or "", dict(self.request.headers)))
        key = self.request.headers.get("X-Finnhub-Token") or self.get_query_argument("token", None)
        symbol = self.get_query_argument("symbol", None)
        answer = stand_in.answer(path, symbol, self.get_query_argument("q", ""), key)
        arrives = not (answer.slow or answer.hang_up)
        now = stand_in.clock
        stand_in.ledger.note_poll(Poll(path, symbol, answer.status, answer.body, now.now_ms(), now.monotonic(), arrives))
        if answer.slow:
            await stand_in.wait_to_let_go()
        if not arrives:
            self.detach().close()
            return
        self.set_status(answer.status)
        date = email.utils.formatdate(stand_in.clock.now_ms() / 1_000, usegmt=True)
        headers = {"Content-Type": answer.content_type, "Date": date, **stand_in.headers_of_limit(), **answer.headers}
        for name, value in headers.items():
            self.set_header(name, value)
        self.finish(answer.body if isinstance(answer.body, str) else tornado.escape.json_encode(answer.body))

    def compute_etag(self) -> None:
        """Give no ETag: Finnhub gives none."""


class _Control(tornado.web.RequestHandler):
    """What is used while the stand-in runs: `POST /stand-in/fault?name=drop`, `POST /stand-in/hold`, `GET /stand-in/ledger`."""

    async def post(self, what: str) -> None:
        stand_in: FinnhubStandIn = self.settings["stand_in"]
        if what == "hold":
            self.finish({what: await stand_in.have_hold()})
            return
        name, seconds = self.get_query_argument("name", ""), self.get_query_argument("seconds", None)
        try:
            times = int(self.get_query_argument("times", "1"))
            await stand_in.have_fault(check_fault(name), times, float(seconds) if seconds else None)
        except (SettingsError, ValueError) as error:
            self.set_status(400)
            self.finish({"error": str(error)})
            return
        self.finish({what: name})

    def get(self, what: str) -> None:
        stand_in: FinnhubStandIn = self.settings["stand_in"]
        self.finish({what: stand_in.ledger.counts, "subscribed": sorted(stand_in.subscribed)})
