"""A source at walking pace: another source's ticks, no faster than a person can follow. Called by the notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

from pipeline_lib.records import Tick
from pipeline_lib.sources import Source
from pipeline_lib.sources.clock import BURST_SECONDS, Clock


class Paced:
    """The ticks of `source`, at most `per_second` of them a second."""

    def __init__(self, source: Source, per_second: float, clock: Clock | None = None) -> None:
        self.reason = source.reason
        self.health = source.health
        self.name = f"{source.name}, at most {per_second:g} ticks/s"
        self._source, self._per_second, self._clock = source, per_second, clock or Clock()
        self._closed = Event()

    @property
    def finite(self) -> bool:
        """Whether it ends by itself."""
        return self._source.finite

    @property
    def total(self) -> int | None:
        """How many ticks there will be, or at most; None if nobody knows."""
        return self._source.total

    def __iter__(self) -> Iterator[Tick]:
        began = self._clock.monotonic()
        for number, tick in enumerate(self._source):
            ahead = number / self._per_second - (self._clock.monotonic() - began)
            if self._clock.wait(self._closed, ahead if ahead > BURST_SECONDS else 0):
                return
            yield tick

    def close(self) -> None:
        """End the iteration, from whichever thread."""
        self._closed.set()
        self._source.close()
