"""A tape as a source: recorded ticks again, at the pace they were recorded at, sixty times it, or as fast as they can be read.

Ticks go out in the tape's order, with the tape's ids. Verbatim, they go out as they were recorded in all else too: the same
topic, message for message. Otherwise it is said that they are old ones: their source becomes "replay" and their receipt time the moment at
which they go out, at every speed: that is when this pipeline first saw them. Event times are kept, or all moved by one
amount that makes the first one now. Moved times keep their distances, so at speed 1 they stay with the clock, and at 60
and max they run ahead of it, into the future: an hour of tape at speed 60 ends 59 minutes ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from threading import Event
from typing import TYPE_CHECKING, Literal

from msgspec.structs import replace

from pipeline_lib.errors import SettingsError
from pipeline_lib.records import MAX_TIME, MIN_TIME, Tick
from pipeline_lib.sources.clock import BURST_SECONDS, Clock
from pipeline_lib.sources.tape import Tape

if TYPE_CHECKING:
    from pipeline_lib.sources.feed_health import FeedHealth

Speed = Literal["1", "60", "max"]


class Replay:
    """The ticks of a tape, or the first `ticks` of them, at a speed."""

    finite = True
    reason = "asked for"
    health: FeedHealth | None = None

    def __init__(
        self,
        tape: Tape,
        *,
        speed: Speed = "1",
        move_to_now: bool = False,
        verbatim: bool = False,
        ticks: int | None = None,
        report: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        if verbatim and move_to_now:
            raise SettingsError("cannot replay: VERBATIM keeps every time as it was recorded, MOVE_TO_NOW changes them; choose one")
        how = "verbatim" if verbatim else f"event times {'moved to now' if move_to_now else 'kept'}"
        self.name = f"tape {tape.path.name} at speed {speed}, {how}"
        self.tape = tape
        self._speed = None if speed == "max" else int(speed)
        self._move_to_now, self._verbatim = move_to_now, verbatim
        self._ticks = ticks
        self._report = report
        self._clock = clock or Clock()
        self._closed = Event()

    @property
    def total(self) -> int:
        """How many ticks there will be, counting lines that turn out to be none."""
        return self.tape.total if self._ticks is None else min(self._ticks, self.tape.total)

    def __iter__(self) -> Iterator[Tick]:
        if self._verbatim:
            yield from self._paced(islice(self.tape, self._ticks))
        else:
            yield from self._as_of_now()
        if torn := self.tape.bad.torn:
            self._report(f"the tape {self.tape.path.name} has a torn end: {torn}")
        if (bad := self.tape.bad.count) and not (torn and bad == 1):
            self._report(f"the tape {self.tape.path.name} has {bad} lines that are no ticks; the first is {self.tape.bad.first}")

    def _as_of_now(self) -> Iterator[Tick]:
        """Yield the ticks as they would be if they came now, from a source called "replay"."""
        shift = 0
        for number, tick in enumerate(self._paced(islice(self.tape, self._ticks))):
            if number == 0 and self._move_to_now:
                shift = self._clock.now_ms() - tick.event_time
            event_time = tick.event_time + shift
            if MIN_TIME <= event_time <= MAX_TIME:
                yield replace(tick, event_time=event_time, receipt_time=self._clock.now_ms(), source="replay")
            else:
                self.tape.bad.add(f"tick {tick.id}", f"moved out of the years that a tick may have: {event_time}")

    def close(self) -> None:
        """End the iteration, from whichever thread."""
        self._closed.set()

    def _paced(self, ticks: Iterator[Tick]) -> Iterator[Tick]:
        """Return the ticks, each no earlier than the tape's latest time so far is due: one delivered late waits for nothing."""
        closed, clock, speed = self._closed, self._clock, self._speed
        began = now = clock.monotonic()
        first = None
        for tick in ticks:
            if speed is not None:
                first = tick.event_time if first is None else first
                due = began + (tick.event_time - first) / 1_000 / speed
                while due > now:
                    now = clock.monotonic()
                    if due > now and clock.wait(closed, max(BURST_SECONDS, due - now)):
                        return
            if closed.is_set():
                return
            yield tick
