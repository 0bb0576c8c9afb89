"""What a live feed says of itself: how fresh each symbol is, and when it brought nothing.

It is told what happens (`saw_tick`, `gap_began`, `gap_ended`, `saw_market`), from any thread, and asked for `status` by
the heartbeat of the feed. It asks nobody and stores nothing: `status_beat.StatusBeat` publishes what it says.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Literal, NamedTuple

from pipeline_lib.freshness import Sight, judge_freshness
from pipeline_lib.records import Gap, SymbolFreshness, Tick
from pipeline_lib.sources.clock import Clock
from pipeline_lib.sources.market_hours import Hours, has_session, hours_at

# Every status carries the latest gaps, so that one that nobody heard is made good by the next ones.
KEPT_GAPS = 100
# Of more symbols than this each status carries the next ones in turn: about 30 kB.
SYMBOLS_A_STATUS = 400
# What the exchange says of itself holds for so long, or until its planned open or close, whichever comes first.
MARKET_STATUS_HOLDS_MS = 20 * 60_000
LONGEST_REASON = 200


class Health(NamedTuple):
    """What a status tells. `waiting_for` is the reason of a gap that lasts, if every part of the feed has one."""

    symbols: tuple[SymbolFreshness, ...]
    gaps: tuple[Gap, ...]
    marks: dict[str, int]
    detail: str | None
    waiting_for: str | None


class _MarketStatus(NamedTuple):
    """What the exchange says of itself, since when it says so, and when it was last heard."""

    is_open: bool
    since: int
    at: int


class FeedHealth:
    """The freshness of these symbols and the gaps of the feed that watches them.

    health = FeedHealth(("AAPL", "MSFT"))
    health.saw_tick(tick)                                                   # each tick, an unchanged poll too
    health.gap_began("Finnhub does not answer", source="finnhub-rest")      # and later
    health.gap_ended("finnhub-rest")
    health.status()
    """

    def __init__(
        self,
        symbols: Iterable[str],
        *,
        clock: Clock | None = None,
        hours: Callable[[int], Hours] = hours_at,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.detail: str | None = None  # what the feed is by now, for people; None: as it was called when it was opened
        self._clock, self._hours, self._report = clock or Clock(), hours, report
        self._began = self._clock.now_ms()
        self._lock = Lock()
        self._symbols = tuple(dict.fromkeys(symbols))
        self._sights: dict[str, Sight] = {}
        self._pace: dict[str, float] = {}  # milliseconds between two looks at a symbol
        self._live_since: dict[str, int] = {}
        self._gaps: deque[Gap] = deque(maxlen=KEPT_GAPS)
        self._open_gaps: dict[str, Gap] = {}
        self._parts: set[str] = set()
        self._market: _MarketStatus | None = None
        self._marks: Counter[str] = Counter()
        self._turn = 0

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that it speaks of."""
        return self._symbols

    def saw_tick(self, tick: Tick) -> None:
        """Note a tick: news, or, if it is an unchanged poll, that the last price still stands."""
        with self._lock:
            self._parts.add(tick.source)
            if tick.repeat is not None:
                self._marks[tick.repeat] += 1
            before = self._sights.get(tick.symbol)
            if before is not None and (tick.repeat == "unchanged" or tick.event_time < before.event_time):
                sight = before._replace(heard_time=max(before.heard_time, tick.receipt_time))
            else:
                sight = Sight(tick.event_time, tick.receipt_time, tick.receipt_time)
            self._sights[tick.symbol] = sight

    def expect_every(self, seconds: float, symbols: Iterable[str]) -> None:
        """Note how often these symbols are looked at; 0 for those whose trades come by themselves."""
        with self._lock:
            self._pace.update((symbol, seconds * 1_000) for symbol in symbols)

    def mark(self, name: str, number: int = 1) -> None:
        """Count something that was marked or left out: "suspected", "zeros", "dropped"."""
        with self._lock:
            self._marks[name] += number

    def saw_market(self, is_open: bool) -> None:
        """Note what the exchange itself says: it is believed over the calendar, until the next planned open or close."""
        now = self._clock.now_ms()
        with self._lock:
            said = self._market
            holds = said is not None and said.is_open == is_open and now - said.at <= MARKET_STATUS_HOLDS_MS
            self._market = _MarketStatus(is_open, said.since if said is not None and holds else now, now)
            if holds:
                return
        if is_open != (planned := self._hours(now)).is_open:
            self._report(
                f"Finnhub says that the market is {_word(is_open)}, the calendar has it {_word(planned.is_open)}: Finnhub is believed"
            )

    def market_is_open(self) -> bool:
        """Return whether the market is open now: by the exchange's own word if there is a recent one, else by the calendar."""
        with self._lock:
            return self._hours_now(self._clock.now_ms()).is_open

    def gap_began(self, reason: str, source: str = "finnhub-rest", at: int | None = None) -> None:
        """Note that a part of the feed brings nothing since `at`, or now. A gap that lasts already is left as it is."""
        with self._lock:
            self._parts.add(source)
            if source not in self._open_gaps:
                self._open_gaps[source] = Gap(source, self._clock.now_ms() if at is None else at, None, reason[:LONGEST_REASON])

    def gap_ended(self, source: str = "finnhub-rest", at: int | None = None) -> None:
        """Note that this part of the feed brings something again; nothing happens if it had no gap."""
        with self._lock:
            gap = self._open_gaps.pop(source, None)
            if gap is not None:
                ended = max(gap.started_at, self._clock.now_ms() if at is None else at)
                self._gaps.append(Gap(gap.source, gap.started_at, ended, gap.reason))

    def part_left(self, source: str) -> None:
        """Note that this part of the feed is no longer used: its gap, if there is one, ends, and is not waited for."""
        self.gap_ended(source)
        with self._lock:
            self._parts.discard(source)

    def status(self, now: int | None = None) -> Health:
        """Return the freshness of the symbols whose turn it is, and the latest gaps, those that last among them."""
        now = self._clock.now_ms() if now is None else now
        with self._lock:
            hours = self._hours_now(now)
            chosen = self._next_symbols()
            symbols = tuple(self._freshness(symbol, now, hours) for symbol in chosen)
            gaps = (*self._gaps, *self._open_gaps.values())[-KEPT_GAPS:]
            all_wait = bool(self._open_gaps) and self._parts <= set(self._open_gaps)
            waiting_for = next(iter(self._open_gaps.values())).reason if all_wait else None
            return Health(symbols, gaps, dict(self._marks), self.detail, waiting_for)

    def _next_symbols(self) -> tuple[str, ...]:
        if len(self._symbols) <= SYMBOLS_A_STATUS:
            return self._symbols
        first = self._turn
        self._turn = (first + SYMBOLS_A_STATUS) % len(self._symbols)
        return (self._symbols[first:] + self._symbols[:first])[:SYMBOLS_A_STATUS]

    def _freshness(self, symbol: str, now: int, hours: Hours) -> SymbolFreshness:
        known_hours = hours if has_session(symbol) else None
        sight = self._sights.get(symbol)
        found = judge_freshness(sight, now, known_hours, began=self._began, asked_every_ms=self._pace.get(symbol, 0))
        since = found.since
        if found.state == "LIVE":
            since = self._live_since.setdefault(symbol, since)
        else:
            self._live_since.pop(symbol, None)
        opens_at = hours.reopens_ms if known_hours is not None and not hours.is_open else None
        if sight is None:
            return SymbolFreshness(symbol, found.state, since, opens_at=opens_at)
        return SymbolFreshness(symbol, found.state, since, sight.event_time, sight.receipt_time, opens_at)

    def _hours_now(self, now: int) -> Hours:
        """Return the hours around now, corrected by what the exchange has said."""
        planned, said = self._hours(now), self._market
        if said is None or said.is_open == planned.is_open or now - said.at > MARKET_STATUS_HOLDS_MS:
            return planned
        if max(edge for edge in (planned.closed_ms, planned.opens_ms) if edge <= now) > said.at:
            return planned  # an open or close was planned since then
        if said.is_open:
            return planned._replace(is_open=True, opens_ms=said.since)
        return planned._replace(is_open=False, opened_ms=planned.opens_ms, closed_ms=said.since)


def _word(is_open: bool) -> Literal["open", "closed"]:
    return "open" if is_open else "closed"
