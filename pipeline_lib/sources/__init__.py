"""Where ticks come from: one module a source, all with the face of `Source`, and the choice among them.

A source yields ticks that keep the contract, at its own pace, and knows nothing of Kafka: `producer` takes what it yields.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from pipeline_lib.config import Settings
from pipeline_lib.errors import SettingsError
from pipeline_lib.records import Tick

if TYPE_CHECKING:
    from pipeline_lib.sources.feed_health import FeedHealth

__all__ = ["Source", "open_source", "plan_words"]


class Source(Protocol):
    """A feed of ticks, to be iterated once, by one thread."""

    reason: str  # why this source, for people: "no FINNHUB_API_KEY"
    health: FeedHealth | None  # freshness and gaps; None where they mean nothing, as of a simulated market or a tape

    @property
    def name(self) -> str:
        """What it is, for people: "simulated market, seed 7, 50 ticks/s"."""

    @property
    def finite(self) -> bool:
        """Whether it ends by itself."""

    @property
    def total(self) -> int | None:
        """How many ticks there will be, or at most; None if nobody knows."""

    def __iter__(self) -> Iterator[Tick]: ...

    def close(self) -> None:
        """End the iteration soon, from any thread."""


def open_source(settings: Settings, *, ticks: int | None = None, report: Callable[[str], None] | None = None) -> Source:
    """Return the source that the settings choose, ended after so many ticks if that is given.

    `report` is told in a sentence what a person should know of a source under way; without one it is logged. Raises
    SettingsError, TapeError or FeedError if the source cannot be had.
    """
    report = report or logging.getLogger(__name__).warning
    source = _opened(settings, ticks, report)
    if settings.source == "auto":
        source.reason = "FINNHUB_API_KEY is set" if settings.finnhub_api_key else "no FINNHUB_API_KEY: the simulated market"
    return source


def plan_words(settings: Settings) -> str:
    """Return what the plan of Finnhub's key gives: calls, and how often each symbol can be asked for."""
    from pipeline_lib.sources.rate_limit import RateLimit, refresh_words

    per_minute, per_second = settings.finnhub_calls_per_minute, settings.finnhub_calls_per_second
    refresh = refresh_words(len(settings.symbols), RateLimit(per_minute, per_second).pause_seconds)
    return f"{per_minute} calls a minute and {per_second} a second, over all that use the key; {refresh}, and at once where trades come"


def _opened(settings: Settings, ticks: int | None, report: Callable[[str], None]) -> Source:
    # Imported here: each source brings libraries that the others do without.
    if settings.chosen_source == "finnhub":
        from pipeline_lib.sources.finnhub import open_finnhub
        from pipeline_lib.sources.rate_limit import open_limit

        if settings.finnhub_api_key is None:
            raise SettingsError("cannot ask Finnhub: FINNHUB_API_KEY is not set; set it in .env, or SOURCE=simulated")
        limit = open_limit(settings.finnhub_api_key, settings.finnhub_calls_per_minute, settings.finnhub_calls_per_second)
        return open_finnhub(settings, limit, ticks=ticks, report=report)
    if settings.chosen_source == "replay":
        from pipeline_lib.sources.replay import Replay
        from pipeline_lib.sources.tape import Tape

        if settings.tape is None:
            raise SettingsError("cannot replay: no tape is given; give TAPE, or --tape PATH")
        return Replay(
            Tape(settings.tape),
            speed=settings.speed,
            move_to_now=settings.move_to_now,
            verbatim=settings.verbatim,
            ticks=ticks,
            again=settings.again,
            report=report,
        )
    from pipeline_lib.sources.simulated import SimulatedMarket

    return SimulatedMarket(settings.symbols, seed=settings.simulated_seed, rate=settings.simulated_rate, ticks=ticks, report=report)
