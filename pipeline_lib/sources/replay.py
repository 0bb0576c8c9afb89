"""A tape as a source: recorded ticks again, at the pace they were recorded at, sixty times it, or as fast as they can be read.

Ticks go out in the tape's order, with the tape's ids. Verbatim, they go out as they were recorded in all else too: the same
topic, message for message. Otherwise it is said that they are old ones: their source becomes "replay" and their receipt time the moment at
which they go out, at every speed: that is when this pipeline first saw them. Event times are kept, or all moved by one
amount that makes the first one now. A tape of which a part is in the topic goes on behind it, with the times moved as before.
Published again, its ticks have ids of their own. Moved times keep their distances, so at speed 1 they stay with the clock, and at 60
and max they run ahead of it, into the future: an hour of tape at speed 60 ends 59 minutes ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import compress, islice
from threading import Event
from typing import TYPE_CHECKING, Literal

from msgspec.structs import replace

from pipeline_lib.errors import SettingsError, TapeError
from pipeline_lib.records import MAX_TIME, MIN_TIME, Tick
from pipeline_lib.sources.clock import BURST_SECONDS, Clock
from pipeline_lib.sources.resume import Published
from pipeline_lib.sources.tape import Tape

if TYPE_CHECKING:
    from pipeline_lib.sources.feed_health import FeedHealth

Speed = Literal["1", "60", "max"]

LONGEST_ID = 90  # behind the first dash, by the grammar


class Replay:
    """The ticks of a tape, or the first `ticks` of them, at a speed; with `again`, each id with that number before it."""

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
        again: int = 0,
        report: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        if verbatim and move_to_now:
            raise SettingsError("cannot replay: VERBATIM keeps every time as it was recorded, MOVE_TO_NOW changes them; choose one")
        if verbatim and again:
            raise SettingsError("cannot replay: VERBATIM keeps every id as it was recorded, AGAIN changes them; choose one")
        how = "verbatim" if verbatim else f"event times {'moved to now' if move_to_now else 'kept'}"
        self.name = f"tape {tape.path.name} at speed {speed}, {how}{f', for the {again + 1}. time' if again else ''}"
        self.tape = tape
        self._speed = None if speed == "max" else int(speed)
        self._move_to_now, self._verbatim = move_to_now, verbatim
        self._ticks, self._again = ticks, again
        self._published: Published | None = None
        self._wait: Callable[[], None] = lambda: None
        self._shift: int | None = None
        self._report = report
        self._clock = clock or Clock()
        self._closed = Event()

    @property
    def total(self) -> int:
        """How many ticks there will be, counting lines that turn out to be none."""
        on_tape = self.tape.total if self._ticks is None else min(self._ticks, self.tape.total)
        return on_tape - (self._published.ticks if self._published is not None else 0)

    def ticks(self) -> Iterator[Tick]:
        """Return the tape's ticks with the ids that they go out with, at once and with the tape's times."""
        ticks = islice(self.tape, self._ticks)
        return (self._renamed(tick) for tick in ticks) if self._again else ticks

    def go_on(self, published: Published, moved_time: int | None, wait: Callable[[], None]) -> None:
        """Leave out what is in the topic already, and say so; `moved_time` is the event time there of the last one.

        `wait` is called when the holes before that have been yielded, and returns when they are delivered.
        """
        if published.last is None:
            return
        self._published, self._wait = published, wait
        if self._move_to_now and moved_time is not None:
            self._shift = moved_time - published.last[2]
        name, there, of = self.tape.path.name, published.ticks, len(published.flags)
        if there < of:
            self.name += f", going on after {there:,} of {of:,} ticks"
            self._report(f"going on with the tape {name}: {there:,} of its {of:,} ticks are in the topic already")
        else:
            self.name += ", published already"
            self._report(
                f"nothing is left of the tape {name}: its {of:,} ticks are in the topic already; "
                f"to publish them once more, under ids of their own: --again {self._again + 1}"
            )

    def __iter__(self) -> Iterator[Tick]:
        ticks = self._paced(self._unpublished())
        yield from ticks if self._verbatim else self._as_of_now(ticks)
        if torn := self.tape.bad.torn:
            self._report(f"the tape {self.tape.path.name} has a torn end: {torn}")
        if (bad := self.tape.bad.count) and not (torn and bad == 1):
            self._report(f"the tape {self.tape.path.name} has {bad} lines that are no ticks; the first is {self.tape.bad.first}")

    def _unpublished(self) -> Iterator[Tick]:
        if self._published is None:
            yield from self.ticks()
            return
        left = compress(self.ticks(), (not flag for flag in self._published.flags))
        yield from islice(left, self._published.holes)
        self._wait()
        yield from left

    def _renamed(self, tick: Tick) -> Tick:
        source, _, rest = (id := f"again{self._again}-{tick.id}").partition("-")
        if len(rest) > LONGEST_ID:
            raise TapeError(f"cannot replay the tape {self.tape.path} again: {source} makes its id {tick.id!r} too long; use another topic")
        return replace(tick, id=id)

    def _as_of_now(self, ticks: Iterator[Tick]) -> Iterator[Tick]:
        """Yield the ticks as they would be if they came now, from a source called "replay"."""
        shift = self._shift if self._move_to_now else 0
        for tick in ticks:
            if shift is None:
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
