"""The simulated market as a source: ticks of the market model, at the pace of the clock or as fast as they can be made.

Live, event times are now, and every start has ids of its own. Bounded, the ticks are a fixed number from a fixed time on, and
the same to the last digit on every run with one seed, start, rate and list of symbols. What the trades are like is in
`market_model`.

Conditions are in the manner of Finnhub's, strings of small numbers: "1" on every trade, "12" too on odd lots.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from itertools import count
from threading import Event
from typing import TYPE_CHECKING

from pipeline_lib.records import SCHEMA_VERSION, Tick
from pipeline_lib.sources.clock import BURST_SECONDS, Clock
from pipeline_lib.sources.market_hours import session_at
from pipeline_lib.sources.market_model import MarketModel, Trades

if TYPE_CHECKING:
    from pipeline_lib.sources.feed_health import FeedHealth

# The open of the New York session of Monday 2026-01-05: where a bounded run begins if it is not told.
DEFAULT_START_MS = 1_767_623_400_000

# A market that has fallen behind by more than this goes on at now instead of pouring out what it missed: the machine was
# asleep, or whoever takes the ticks is slower than the rate.
MAX_BEHIND_MS = 5_000

# Ticks made at a time when nobody waits for the clock: enough for numpy to be quick, few enough to stay small.
_TICKS_AT_A_TIME = 20_000
_MAX_SECONDS_AT_A_TIME = 60

_CONDITIONS = (["1"], ["1", "12"])


class SimulatedMarket:
    """Ticks of a market that does not exist: `ticks` of them from `start_ms`, or with None live, until closed."""

    reason = "asked for"
    health: FeedHealth | None = None

    def __init__(
        self,
        symbols: tuple[str, ...],
        *,
        seed: int,
        rate: float,
        ticks: int | None = None,
        start_ms: int | None = None,
        report: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self.name = f"simulated market, seed {seed}, {rate:g} ticks/s"
        self.finite = ticks is not None
        self.total = ticks
        self._start_ms = start_ms  # of a bounded run; a live one starts when it is iterated
        self._seed = seed
        self._rate = rate
        self._symbols = symbols
        self._report = report
        self._clock = clock or Clock()
        self._closed = Event()

    def __iter__(self) -> Iterator[Tick]:
        return self._live() if self.total is None else self._bounded(self.total)

    def close(self) -> None:
        """End the iteration, from whichever thread."""
        self._closed.set()

    def _bounded(self, total: int) -> Iterator[Tick]:
        start = DEFAULT_START_MS if self._start_ms is None else self._start_ms
        market, numbers = MarketModel(self._symbols, self._seed, start, self._rate), count(1)
        seconds = max(1, min(_MAX_SECONDS_AT_A_TIME, round(_TICKS_AT_A_TIME / self._rate)))
        left = total
        while left > 0:
            trades = market.advance(seconds).first(left)
            left -= len(trades.price)
            for tick in self._ticks(trades, str(start), numbers):
                if self._closed.is_set():
                    return
                yield tick

    def _live(self) -> Iterator[Tick]:
        closed, clock = self._closed, self._clock
        session_at(clock.now_ms())  # loads the calendar, which takes a second, before the market opens
        start = clock.now_ms()
        run = f"{start}-{secrets.token_hex(6)}"  # not the time alone, which a clock that is set back may bring again
        market, numbers = MarketModel(self._symbols, self._seed, start, self._rate), count(1)
        while not clock.wait(closed, (market.now_ms - clock.now_ms()) / 1_000):
            now = clock.now_ms()
            if now - market.now_ms > MAX_BEHIND_MS:
                self._report(f"the simulated market skips {(now - market.now_ms) / 1_000:.0f} s, by which it is behind the clock")
                market.skip_to(now)
            for tick in self._ticks(market.advance(1), run, numbers):
                while tick.receipt_time > now:
                    if clock.wait(closed, max(BURST_SECONDS, (tick.receipt_time - now) / 1_000)):
                        return
                    now = clock.now_ms()
                if closed.is_set():
                    return
                yield tick

    def _ticks(self, trades: Trades, run: str, numbers: count[int]) -> Iterator[Tick]:
        """Return the ticks of these trades, each received when it is delivered."""
        prefix = f"sim-{self._seed}-{run}-"
        # The numbers come last: zip asks the others first, and takes no number that it has no trade for.
        for event_time, delivery_time, symbol, price, volume, number in zip(*(column.tolist() for column in trades), numbers, strict=False):
            # The model keeps every number within the contract's bounds; the settings do so with the symbols.
            yield Tick(
                schema=SCHEMA_VERSION,
                id=f"{prefix}{number}",
                kind="trade",
                symbol=self._symbols[symbol],
                price=price,
                volume=volume,
                event_time=event_time,
                receipt_time=delivery_time,
                source="simulated",
                conditions=_CONDITIONS[volume < 100],
            )
