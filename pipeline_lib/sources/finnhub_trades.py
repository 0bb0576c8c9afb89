"""Finnhub's trades by WebSocket: one socket, which is opened again whenever it ends or falls silent.

It yields batches of ticks, a batch for each message that holds trades, and says which symbols have trades. It knows nothing
of quotes: `finnhub` puts both together. What a refusal, a silence or an error means is decided here.

By Finnhub's design the key is in the socket's address. So websockets, which logs what it sends and names the address in its
errors, is given a logger that says nothing, and no text or context of its errors is used here.
"""

from __future__ import annotations

import logging
import random
import secrets
import socket as sockets
from collections.abc import Callable, Generator, Iterator
from itertools import count
from threading import Event
from typing import Any, NamedTuple
from urllib.parse import quote as escaped
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from pipeline_lib.errors import FeedError, MessageError
from pipeline_lib.records import Tick, tick_from_trade
from pipeline_lib.sources.clock import Clock
from pipeline_lib.sources.feed_health import FeedHealth
from pipeline_lib.sources.market_hours import has_session
from pipeline_lib.sources.repeats import SeenTrades

PART = "finnhub-ws"  # how health and ticks call this part of the feed

_QUIET = logging.Logger("pipeline_lib.sources.finnhub_trades.socket")
_QUIET.disabled = True


class Patience(NamedTuple):
    """How long is waited for what, in seconds.

    `silent` is for how long an open market may bring no trade before the socket is opened anew. A feed of a few large
    stocks brings several a second, one of a rarely traded stock none for minutes: so it doubles each time that a new
    socket brings nothing either, up to `longest_silent`.
    """

    silent: float = 60.0
    longest_silent: float = 900.0
    first_wait: float = 1.0  # before a lost socket is opened again; doubles each time, up to the longest
    longest_wait: float = 60.0
    held_wait: float = 15.0  # the first, where another seems to hold the key
    at_once: float = 5.0  # a socket that is closed sooner was refused
    look: float = 0.2  # how often it is looked whether all this has passed
    answer: float = 10.0  # for a handshake


class Loss(NamedTuple):
    """Why there is no socket, or no longer: in words that follow "Finnhub", since when, and how long to wait at first."""

    words: str
    at: int
    wait: float
    until_trade: bool = False  # whether only a trade, and not an open socket, says that it is over


class NoTradesError(FeedError):
    """The key's plan has no trades by WebSocket."""


class FinnhubTrades:
    """Trades of these symbols, in batches, from `batches()` until closed.

    `traded` are the symbols that have brought a trade through the socket that is open; without one there are none. An
    empty batch says that this has changed. Every trade has an id of its own, `ws-<a word drawn for this object>-<number>`, so
    that none comes again after a restart.
    """

    def __init__(
        self,
        key: SecretStr,
        symbols: tuple[str, ...],
        *,
        url: str,
        health: FeedHealth,
        drop_repeats: bool = False,
        report: Callable[[str], None] = lambda _: None,
        patience: Patience = Patience(),  # noqa: B008
        clock: Clock | None = None,
    ) -> None:
        self.symbols, self.traded = symbols, frozenset[str]()
        self._key, self._url = key, url
        self._health, self._report, self._patience = health, report, patience
        self._drop_repeats = drop_repeats
        self._clock = clock or Clock()
        self._closed = Event()
        self._seen = SeenTrades()
        self._run, self._numbers = secrets.token_hex(6), count(1)
        self._dice = random.Random()
        self._told: set[str] = set()
        self._silences = 0
        self._trade_came = False

    def close(self) -> None:
        """End the batches, from whichever thread; what has been received comes still."""
        self._closed.set()

    def batches(self) -> Iterator[list[Tick]]:
        """Yield batches of ticks until closed.

        Raises NoTradesError if the plan has none, FeedError if Finnhub refuses for good. All else is waited out.
        """
        lost: Loss | None = None
        failures = 0
        while not self._closed.is_set():
            self._trade_came = False
            opened = self._open()
            found = (yield from self._read(opened, lost)) if isinstance(opened, ClientConnection) else opened
            if self.traded:
                self.traded = frozenset()
                yield []
            if found is None:
                return
            failures = 0 if self._trade_came else failures + 1
            if lost is None or found.words != lost.words or self._trade_came:
                self._report(f"Finnhub {found.words}; opening another socket, quotes by REST meanwhile")
            self._health.gap_began(f"Finnhub {found.words}", PART, at=found.at)
            lost = found
            wait = min(found.wait * 2.0 ** min(failures, 20), self._patience.longest_wait)
            # From half of it to the whole: those that lost their sockets together do not come back together.
            if self._clock.wait(self._closed, wait * self._dice.uniform(0.5, 1.0)):
                return

    def _open(self) -> ClientConnection | Loss:
        """Return an open socket, or why there is none for now; raises FeedError if there will be none."""
        status = None
        loss = Loss("cannot be reached by WebSocket", self._clock.now_ms(), self._patience.first_wait)
        try:
            return connect(
                f"{self._url.rstrip('/')}/?token={escaped(self._key.get_secret_value(), safe='')}",
                logger=_QUIET,
                open_timeout=self._patience.answer,
                close_timeout=2,
                max_queue=256,
            )
        except InvalidStatus as error:
            status = error.response.status_code
        except InvalidURI:
            pass
        except sockets.gaierror:
            host = urlsplit(self._url).hostname
            return loss._replace(words=f"is not found: the name {host} is not resolved; is this machine online?")
        except TimeoutError:
            return loss._replace(words=f"does not open a socket within {self._patience.answer:g} s")
        except (OSError, EOFError, InvalidHandshake, WebSocketException) as error:
            return loss._replace(words=f"cannot be reached by WebSocket ({type(error).__name__})")
        # Outside of the except clauses: those errors hold the address with the key, and must not go along with ours.
        return self._judge(status, loss)

    def _judge(self, status: int | None, loss: Loss) -> Loss:
        if status is None:
            raise FeedError("cannot read trades: FINNHUB_WEBSOCKET_URL is no address of a WebSocket; it begins with wss://")
        if status == 401:
            raise FeedError("cannot read trades: Finnhub refuses the key (401); correct FINNHUB_API_KEY, or set SOURCE=simulated")
        if status == 403:
            raise NoTradesError("cannot read trades: the key's plan has none by WebSocket (403)")
        if status == 429:
            words = "refuses the socket (429): another program may hold one with this key, and a key has one alone"
            return loss._replace(words=words, wait=self._patience.held_wait)
        if status >= 500 or status == 408:
            return loss._replace(words=f"answers {status} where a socket is asked for")
        raise FeedError(f"cannot read trades: Finnhub answers {status} where a socket is asked for; check FINNHUB_WEBSOCKET_URL")

    def _read(self, socket: ClientConnection, lost: Loss | None) -> Generator[list[Tick], None, Loss | None]:
        """Yield the batches of one socket; return why it has ended, None if it was closed by us."""
        opened, patience, clock = self._clock.monotonic(), self._patience, self._clock
        heard, heard_ms, gap = opened, clock.now_ms(), lost
        allowed = min(patience.silent * 2.0**self._silences, patience.longest_silent)
        with socket:
            loss = self._subscribe(socket)
            while loss is None and not self._closed.is_set():
                try:
                    batch = self._ticks(socket.recv(timeout=patience.look, decode=False))
                except TimeoutError:
                    batch = []
                except ConnectionClosed as closed:
                    loss = self._judge_close(closed, clock.monotonic() - opened)
                    break
                now = clock.monotonic()
                if batch:
                    heard, self._silences, self._trade_came = now, 0, True
                elif not self._trades_are_due():
                    heard, heard_ms = now, clock.now_ms()
                if gap is not None and (batch or (now - opened > patience.at_once and (not gap.until_trade or heard == now))):
                    self._tell_end(gap)
                    gap = None
                if batch:
                    yield batch
                    heard, heard_ms = clock.monotonic(), clock.now_ms()  # what the reader of this batch took counts for nobody
                elif now - heard > allowed:
                    self._silences += 1
                    words = "has an open socket, but sends no trades while the market is open"
                    loss = Loss(words, heard_ms, 0.0, until_trade=True)
            socket.close()
            yield from self._rest(socket)
        return loss

    def _subscribe(self, socket: ClientConnection) -> Loss | None:
        try:
            for symbol in self.symbols:
                socket.send(msgspec.json.encode({"type": "subscribe", "symbol": symbol}).decode())
        except ConnectionClosed as closed:
            return self._judge_close(closed, 0.0)
        return None

    def _judge_close(self, closed: ConnectionClosed, seconds: float) -> Loss:
        now, patience = self._clock.now_ms(), self._patience
        if seconds < patience.at_once and not self._trade_came:
            words = "closes the socket as soon as it is open: another program may hold one with this key"
            return Loss(words, now, patience.held_wait)
        how = f"code {closed.rcvd.code}" if closed.rcvd is not None else "without a word"
        return Loss(f"has closed the socket ({how})", now, patience.first_wait)

    def _rest(self, socket: ClientConnection) -> Iterator[list[Tick]]:
        """Yield what came before the socket was closed."""
        while True:
            try:
                batch = self._ticks(socket.recv(timeout=2, decode=False))
            except (ConnectionClosed, TimeoutError):
                return
            if batch:
                yield batch

    def _trades_are_due(self) -> bool:
        return self._health.market_is_open() or not all(has_session(symbol) for symbol in self.symbols)

    def _tell_end(self, gap: Loss) -> None:
        self._health.gap_ended(PART)
        self._report(f"Finnhub's socket is open again, after {(self._clock.now_ms() - gap.at) / 1_000:.0f} s without")

    def _ticks(self, message: bytes) -> list[Tick]:
        """Return the trades that a message holds; what else it says is told."""
        try:
            said: Any = msgspec.json.decode(message)
        except msgspec.DecodeError:
            said = None
        kind = said.get("type") if isinstance(said, dict) else None
        if kind == "trade" and isinstance(said.get("data"), list):
            return self._trades(said["data"])
        if kind == "error":
            self._tell_once(f"Finnhub says on the socket: {self._without_key(said.get('msg'))}")
        elif kind is None:
            self._health.mark("nonsense")
            self._tell_once("Finnhub sends something on the socket that is no message of its own; it is left out and counted")
        return []

    def _trades(self, rows: list[Any]) -> list[Tick]:
        now, ticks = self._clock.now_ms(), []
        for row in rows:
            try:
                tick = tick_from_trade(row, id=f"ws-{self._run}-{next(self._numbers)}", receipt_time=now)
            except MessageError as error:
                self._health.mark("refused trades")
                self._tell_once(f"Finnhub sends a trade that is none: {self._without_key(error)}; such are left out and counted")
                continue
            if self._seen.suspect(tick):
                if self._drop_repeats:
                    self._health.mark("dropped repeats")
                    continue
                tick = replace(tick, repeat="suspected")
            self._health.saw_tick(tick)
            ticks.append(tick)
        if new := {tick.symbol for tick in ticks} - self.traded:
            self.traded |= new
        return ticks

    def _tell_once(self, words: str) -> None:
        """Report something that may come again and again, the first time that it comes."""
        if words not in self._told and len(self._told) < 100:
            self._told.add(words)
            self._report(words)

    def _without_key(self, text: Any) -> str:
        return " ".join(str(text).replace(self._key.get_secret_value(), "***").split())[:200]
