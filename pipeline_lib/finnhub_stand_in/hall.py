"""The WebSocket of the stand-in, and the count of calls by which it refuses.

The hall knows every open socket: it delivers trades to those that have subscribed, keeps the account of it, and has the
faults. Everything here runs in the server's event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from typing import Any

import msgspec
import tornado.websocket

from pipeline_lib.errors import PipelineError
from pipeline_lib.finnhub_stand_in.ledger import Delivery, Ledger
from pipeline_lib.records import Tick
from pipeline_lib.sources.clock import Clock

TRADES_A_MESSAGE = 100
REPEATED = 3  # so many of the last trades are sent again by the fault "duplicate"
REVERSED = 4  # so many of the next ones go out in reverse order by the fault "disorder"
CONFIRM_SECONDS = 5.0

_encode = msgspec.json.Encoder().encode


class Calls:
    """How many calls are left: so many in a minute that begins with the first one, and so many in any second."""

    def __init__(self, per_minute: int, per_second: int, clock: Clock) -> None:
        self._per_minute, self._per_second, self._clock = per_minute, per_second, clock
        self._minute_began, self._minute_ends_ms, self._made = -60.0, 0, 0
        self._recent: deque[float] = deque(maxlen=per_second)

    def allow(self) -> bool:
        """Count a call, which counts whether it is then refused or not; return whether it is within the limits."""
        now = self._clock.monotonic()
        if now - self._minute_began >= 60:
            self._minute_began, self._made = now, 0
            self._minute_ends_ms = self._clock.now_ms() + 60_000
        self._made += 1
        crowded = len(self._recent) == self._per_second and now - self._recent[0] < 1
        self._recent.append(now)
        return self._made <= self._per_minute and not crowded

    def headers(self) -> dict[str, str]:
        """Return what the answer to the last call says of the limit."""
        return {
            "X-Ratelimit-Limit": str(self._per_minute),
            "X-Ratelimit-Remaining": str(max(0, self._per_minute - self._made)),
            "X-Ratelimit-Reset": str(-(-self._minute_ends_ms // 1_000)),
        }


class Hall:
    """Every open socket of a stand-in, what they are sent, and what goes wrong with them."""

    def __init__(self, ledger: Ledger, clock: Clock, symbols: int) -> None:
        self.ledger, self.clock, self.max_symbols = ledger, clock, symbols
        self.sockets: list[Socket] = []
        self.refused = self.held = 0
        self._last: deque[Tick] = deque(maxlen=REPEATED)
        self._reversing: list[Tick] | None = None

    def deliver(self, trades: list[Tick]) -> None:
        """Send the trades to those who have subscribed to them."""
        if not self.sockets:
            self._reversing = None
            return
        if self._reversing is not None:
            self._reversing += trades
            if len(self._reversing) < REVERSED:
                return
            trades, self._reversing = self._reversing[::-1], None
        for socket in self.sockets:
            wanted = [tick for tick in trades if tick.symbol in socket.symbols] if not socket.is_silent else []
            for part in range(0, len(wanted), TRADES_A_MESSAGE):
                self._send_trades(socket, wanted[part : part + TRADES_A_MESSAGE])

    def _send_trades(self, socket: Socket, trades: list[Tick]) -> None:
        rows = [{"c": tick.conditions, "p": tick.price, "s": tick.symbol, "t": tick.event_time, "v": tick.volume} for tick in trades]
        if not socket.send(_encode({"data": rows, "type": "trade"})):
            return
        self._last.extend(trades)
        now = self.clock.now_ms()
        self.ledger.note_deliveries(
            [
                Delivery(
                    tick.symbol,
                    tick.price,
                    tick.volume or 0.0,
                    tick.event_time,
                    None if tick.conditions is None else tuple(tick.conditions),
                    now,
                )
                for tick in trades
            ]
        )

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message that holds no trades to everybody."""
        for socket in self.sockets:
            socket.send(_encode(message))

    async def confirm(self) -> bool:
        """Return whether all have said, within five seconds, that they have what was sent before."""
        return all([await socket.confirm() for socket in list(self.sockets)])

    async def fault(self, name: str, times: int, seconds: float | None) -> None:
        """Have a fault of the socket now, or at the next handshake."""
        if name == "refused":
            self.refused += times
        elif name == "held":
            self.held += times
        elif name == "drop":
            await self._drop()
        elif name == "silent":
            self._silence(seconds)
        elif name == "duplicate":
            for socket in self.sockets:
                self._send_trades(socket, [tick for tick in self._last if tick.symbol in socket.symbols and not socket.is_silent])
        elif name == "disorder":
            self._reversing = self._reversing or []
        elif name == "error":
            self.tell({"msg": "something went wrong", "type": "error"})
        elif name == "nonsense":
            for socket in self.sockets:
                socket.send(b"<html>no JSON</html>")
        else:
            raise PipelineError(f"cannot have the fault {name!r}: the socket knows none of that name")

    async def _drop(self) -> None:
        for socket in list(self.sockets):
            # Nothing is sent after the ping: what the pong confirms is all that there was.
            socket.is_silent = True
            self.ledger.begin_gap("drop", self.clock.now_ms())
            await socket.confirm()
            socket.cut()

    def _silence(self, seconds: float | None) -> None:
        for socket in self.sockets:
            socket.is_silent = True
            self.ledger.begin_gap("silent", self.clock.now_ms())
            if seconds is not None:
                asyncio.get_running_loop().call_later(seconds, self._end_silence, socket)

    def _end_silence(self, socket: Socket) -> None:
        if socket in self.sockets:
            socket.is_silent = False
            self.ledger.end_gap(self.clock.now_ms())

    def cut_all(self) -> None:
        """Cut every socket."""
        for socket in list(self.sockets):
            socket.cut()


class Socket(tornado.websocket.WebSocketHandler):
    """One client's socket. Asked for without an upgrade, it is the page that Finnhub does not have either."""

    is_silent = False

    @property
    def _hall(self) -> Hall:
        return self.settings["hall"]

    def check_origin(self, origin: str) -> bool:
        """Let every origin in: it is a stand-in."""
        return True

    def prepare(self) -> None:
        """Refuse the handshake where Finnhub would."""
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            self._refuse(404)
        elif self.get_query_argument("token", "") != self.settings["stand_in"].key:
            self._refuse(401)
        elif not self.settings["stand_in"].plan.trades:
            self._refuse(403)
        elif self._hall.refused or self._hall.sockets:
            self._hall.refused = max(0, self._hall.refused - 1)
            self._refuse(429)

    def _refuse(self, status: int) -> None:
        self._hall.ledger.refusals += 1
        self.set_status(status)
        self.finish()

    def open(self, *_: str, **__: str) -> None:
        """Take the socket in, or close it at once if that fault is due."""
        self.symbols: set[str] = set()
        self._confirmed: dict[bytes, asyncio.Event] = {}
        self._numbers = itertools.count()
        self._hall.ledger.connections += 1
        if self._hall.held:
            self._hall.held -= 1
            self.close()
            return
        self.set_nodelay(True)
        self._hall.sockets.append(self)
        self._hall.ledger.end_gap(self._hall.clock.now_ms())

    def on_message(self, message: str | bytes) -> None:
        """Subscribe or unsubscribe; more symbols than the plan has are refused, one by one."""
        try:
            wish = json.loads(message)
            kind, symbol = wish["type"], wish["symbol"]
        except (ValueError, KeyError, TypeError):
            self.send(_encode({"msg": "Invalid message", "type": "error"}))
            return
        if kind == "unsubscribe":
            self.symbols.discard(symbol)
        elif kind == "subscribe" and (symbol in self.symbols or len(self.symbols) < self._hall.max_symbols):
            self.symbols.add(symbol)
            self._hall.ledger.subscribed.append(symbol)
        elif kind == "subscribe":
            self.send(_encode({"msg": "Subscribing to too many symbols", "type": "error"}))

    def send(self, message: bytes) -> bool:
        """Send a message; return whether there was anybody to send it to."""
        try:
            self.write_message(message).add_done_callback(lambda done: done.cancelled() or done.exception())
        except tornado.websocket.WebSocketClosedError:
            return False
        return True

    async def confirm(self) -> bool:
        """Return whether the client has everything that was sent before, as its pong says."""
        token, came = str(next(self._numbers)).encode(), asyncio.Event()
        self._confirmed[token] = came
        try:
            self.ping(token)
            async with asyncio.timeout(CONFIRM_SECONDS):
                await came.wait()
        except (tornado.websocket.WebSocketClosedError, TimeoutError):
            return False
        return True

    def on_pong(self, data: bytes) -> None:
        """Note what the client has confirmed."""
        if came := self._confirmed.pop(data, None):
            came.set()

    def cut(self) -> None:
        """Close the connection without a word."""
        self._leave()
        if self.ws_connection is not None and self.ws_connection.stream is not None:
            self.ws_connection.stream.close()

    def on_close(self) -> None:
        """Forget the socket."""
        self._leave()

    def _leave(self) -> None:
        if self in self._hall.sockets:
            self._hall.sockets.remove(self)
            self._hall.ledger.begin_gap("closed", self._hall.clock.now_ms())
