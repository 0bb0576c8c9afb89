"""Finnhub's quotes as a source: the last price of each symbol, asked for in turn, as often as the plan allows.

A quote is a snapshot, not a trade: what happened between two of them is not known. What one says is decided here:

- one with the time and the price of the last is a poll: it is marked `repeat="unchanged"`;
- one that is older than the last brings no news and is not published, but counted;
- one of zeros is never published. Zeros come for a moment of a known symbol too, so a symbol is called unknown only after
  several in a row, and if Finnhub's search does not find it; it is then asked for no more.

What a refusal or silence means is decided in `finnhub_faults`, what freshness follows from it in `feed_health`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from itertools import count, islice
from threading import Event
from typing import Any, Literal

from pydantic import SecretStr

from pipeline_lib.errors import FeedError, MessageError
from pipeline_lib.records import Tick, tick_from_quote
from pipeline_lib.sources.clock import Clock
from pipeline_lib.sources.feed_health import FeedHealth
from pipeline_lib.sources.finnhub_faults import Silence, Trouble
from pipeline_lib.sources.finnhub_rest import FinnhubRest, check_key
from pipeline_lib.sources.market_hours import has_session, hours_at
from pipeline_lib.sources.rate_limit import RateLimit, refresh_words

PART = "finnhub-rest"

# Finnhub gives zeros for a known symbol for a moment: a guess at how long that lasts, in turns.
SIGHTS_BEFORE_SEARCH = 3

# How often the exchange is asked for its state, and how long after a planned open or close.
MARKET_STATUS_MS = 10 * 60_000
AFTER_EDGE_MS = 5_000

# How soon symbols that are set while there were none are asked for.
NO_SYMBOLS_SECONDS = 0.2


class FinnhubQuotes:
    """Quotes of these symbols, one after the other and round again, `ticks` of them or until closed.

    Iterating raises FeedError if Finnhub refuses for good. Whatever else goes wrong is waited out. `report` is told, in
    a sentence, when something begins to go wrong and when it is right again; `health` is told every tick and gap, and
    with it the exchange is asked whether it is open.
    """

    reason = "asked for"

    def __init__(
        self,
        key: SecretStr,
        symbols: tuple[str, ...],
        *,
        base_url: str,
        limit: RateLimit | None = None,
        ticks: int | None = None,
        report: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
        health: FeedHealth | None = None,
    ) -> None:
        check_key(key)
        self._clock = clock or Clock()
        self.health = health
        self._limit = limit or RateLimit(clock=self._clock)
        self.finite = ticks is not None
        self.total = ticks
        self._key, self._base_url, self._report = key, base_url, report
        self._closed = Event()
        self._unknown: set[str] = set()
        self._last: dict[str, tuple[int, float]] = {}  # time and price of each symbol's last quote
        self._zeros: dict[str, int] = {}  # how often in a row a symbol had zeros
        self._market_is_asked = health is not None
        self._market_asked_at = 0
        self._symbols: tuple[str, ...] = ()
        self.set_symbols(symbols)

    @property
    def name(self) -> str:
        """What it is, and how often each symbol has its turn."""
        return f"Finnhub quotes, {refresh_words(len(self._symbols), self._limit.pause_seconds)}"

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that are asked for by now: those that were set, less those that Finnhub does not know."""
        return self._symbols

    @property
    def refresh_seconds(self) -> float:
        """How long a round takes: every symbol is asked for so often."""
        return len(self._symbols) * self._limit.pause_seconds

    def set_symbols(self, symbols: tuple[str, ...]) -> None:
        """Ask for these symbols from the next turn on, from whichever thread; with none, rest until there are some."""
        self._symbols = tuple(symbol for symbol in dict.fromkeys(symbols) if symbol not in self._unknown)
        if self.health is not None:
            self.health.expect_every(self.refresh_seconds, self._symbols)
            if not self._symbols:
                self.health.part_left(PART)

    def __iter__(self) -> Iterator[Tick]:
        return islice(self._quotes(), self.total)

    def close(self) -> None:
        """End the iteration, from whichever thread: at once, or when the call that is under way has ended or timed out."""
        self._closed.set()

    def _quotes(self) -> Iterator[Tick]:
        run, numbers = uuid.uuid4().hex[:12], count(1)
        silent = Silence(self._report, self._clock)
        next_call = self._clock.monotonic()
        with FinnhubRest(
            self._key, self._base_url, limit=self._limit, cancelled=self._closed, clock=self._clock, report=self._report
        ) as rest:
            for turn in count():
                if self._clock.wait(self._closed, next_call - self._clock.monotonic()):
                    return
                if self._market_is_due():
                    self._ask_market(rest)
                symbols = self._symbols
                if not symbols:
                    next_call = self._clock.monotonic() + NO_SYMBOLS_SECONDS
                    continue
                symbol, asked_at, pause = symbols[turn % len(symbols)], self._clock.now_ms(), self._limit.pause_seconds
                answer = rest.quote(symbol)
                if answer is None:
                    return
                next_call = self._clock.monotonic() + pause
                if isinstance(answer, Trouble):
                    next_call += silent.begin(answer)
                    self._gap_began(answer, asked_at)
                    continue
                silent.end()
                self._gap_ended()
                if self._limit.pause_seconds != pause:
                    self._tell_new_pace()
                tick = self._tick(rest, symbol, answer, f"quote-{run}-{next(numbers)}")
                if tick is None:
                    continue
                if self._closed.is_set():
                    return
                if self.health is not None:
                    self.health.saw_tick(tick)
                yield tick

    def _tick(self, rest: FinnhubRest, symbol: str, quote: dict[str, Any], id: str) -> Tick | None:
        """Return the tick of a quote; None if it brings nothing that may be published."""
        receipt_time = self._clock.now_ms()
        last = self._last.get(symbol)
        try:
            tick = tick_from_quote(symbol, quote, id=id, receipt_time=receipt_time)
        except MessageError as error:
            self._saw_zeros(rest, symbol, error)
            return None
        if self._zeros.pop(symbol, 0):
            self._report(f"{symbol} has a quote now")
        if last is not None and tick.event_time < last[0]:
            self._mark("older")
            return None
        repeat: Literal["unchanged"] | None = "unchanged" if last == (tick.event_time, tick.price) else None
        self._last[symbol] = (tick.event_time, tick.price)
        return tick if repeat is None else tick_from_quote(symbol, quote, id=id, receipt_time=receipt_time, repeat=repeat)

    def _saw_zeros(self, rest: FinnhubRest, symbol: str, error: MessageError) -> None:
        """Note a quote that says nothing, and call the symbol unknown if there were several and the search does not find it."""
        self._mark("zeros")
        seen = self._zeros[symbol] = self._zeros.get(symbol, 0) + 1
        if seen == 1:
            self._report(f"{error}; asking again in its turn")
        if seen < SIGHTS_BEFORE_SEARCH or seen % SIGHTS_BEFORE_SEARCH or symbol in self._last:
            return
        try:
            found = rest.search(symbol)
        except FeedError as refused:
            self._report(str(refused))
            return
        if not isinstance(found, dict) or not isinstance(found.get("result"), list):
            return  # it is searched for again after as many sights
        if any(isinstance(row, dict) and row.get("symbol") == symbol for row in found["result"]):
            return
        self._unknown.add(symbol)
        self._mark("unknown")
        self.set_symbols(self._symbols)
        self._report(
            f"Finnhub does not know {symbol}: {seen} quotes of zeros, and its search finds no such symbol; "
            "it is asked for no more, correct SYMBOLS"
        )
        if not self._symbols:
            raise FeedError(f"cannot read quotes: Finnhub knows none of {', '.join(sorted(self._unknown))}; correct SYMBOLS")

    def _market_is_due(self) -> bool:
        if self.health is None or not self._market_is_asked or not any(map(has_session, self.health.symbols)):
            return False
        now, asked = self._clock.now_ms(), self._market_asked_at
        hours = hours_at(now)
        edge = hours.opens_ms if hours.is_open else hours.closed_ms
        return now - asked >= MARKET_STATUS_MS or asked < edge + AFTER_EDGE_MS <= now

    def _ask_market(self, rest: FinnhubRest) -> None:
        """Ask the exchange whether it is open. A plan that may not know goes by the calendar."""
        self._market_asked_at = self._clock.now_ms()
        try:
            answer = rest.market_status()
        except FeedError as error:
            self._market_is_asked = False
            self._report(f"{error}; until then the market's hours are those of the calendar")
            return
        is_open = answer.get("isOpen") if isinstance(answer, dict) else None
        if self.health is not None and isinstance(is_open, bool):
            self.health.saw_market(is_open)

    def _tell_new_pace(self) -> None:
        """Say that the server allows fewer calls, or more, than were thought."""
        self.set_symbols(self._symbols)
        self._report(
            f"Finnhub allows {self._limit.per_minute} calls a minute; {refresh_words(len(self._symbols), self._limit.pause_seconds)}"
        )

    def _gap_began(self, trouble: Trouble, at: int) -> None:
        if self.health is not None:
            self.health.gap_began(f"Finnhub {trouble.text}", PART, at)

    def _gap_ended(self) -> None:
        if self.health is not None:
            self.health.gap_ended(PART)

    def _mark(self, name: str) -> None:
        if self.health is not None:
            self.health.mark(name)
