"""The tie between a database and its topic: made at the first start, checked ever after.

At every start of a query: that the topic is the one by its id, that it still holds what is to be read next, and that its
end has not moved back. In every micro-batch: the id. At the start of the stream also that the clocks agree by which ages
and finality are reckoned. Called by pipeline.py, which gives the stream its checks.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from pipeline_lib import topics
from pipeline_lib.errors import ClockError, TopicError
from pipeline_lib.records import OffsetGap, from_ms
from pipeline_lib.store import Store
from pipeline_lib.topics import OffsetRange, TopicWatch

# A stage is called dead when its last beat, by PostgreSQL's clock, is 6 seconds old by the reader's, and a bar is final 10
# seconds after its end by default. Machines that keep time by NTP are milliseconds apart.
CLOCK_TOLERANCE = dt.timedelta(seconds=5)


def find_gaps(stored: dict[int, int], ranges: dict[int, OffsetRange]) -> list[OffsetGap]:
    """Return what retention has removed before it was read, by the stored next offsets and what the topic holds."""
    return [OffsetGap(part, stored[part], ranges[part].earliest) for part in sorted(stored) if ranges[part].earliest > stored[part]]


class Binding:
    """One database and its topic. Making it binds the database at its first start.

    Raises SchemaError if the database belongs to another topic or window, TopicError if its topic is gone or is another one
    of the same name, ClockError if clocks are apart.
    """

    def __init__(self, store: Store, servers: str, window_ms: int) -> None:
        self.store = store
        stored_id = store.check_bound(window_ms)
        check_clock("PostgreSQL's clock", store.read_clock)
        # A topic is made for a database that is tied to none; one that has gone is not made again behind anybody's back.
        if stored_id is None:
            stored_id = topics.create_topic(servers, store.topic).id
        self._watch = TopicWatch(servers, store.topic, stored_id)
        self._window_ms = window_ms
        self.list_partitions = self._watch.list_partitions
        try:
            self._check_stamps()
            self._bind(self._watch.read_offsets())
        except BaseException:
            self.close()
            raise

    def start_offsets(self) -> dict[int, int]:
        """Return the stored next offset of each partition that the topic has; new ones are accounted for from offset 0.

        Raises TopicError if the topic is gone or another one, if its end is before what was consumed, or if retention has
        removed messages that were not read.
        """
        topic, ranges = self.store.topic, self._watch.read_offsets()
        self._bind(ranges)
        stored = self.store.load_offsets()
        if cut := [part for part in sorted(stored) if ranges[part].latest < stored[part]]:
            ends = ", ".join(f"partition {part} ends at {ranges[part].latest:,}, {stored[part]:,} are stored" for part in cut)
            raise TopicError(f"cannot go on with topic {topic!r}: it is shorter than what was consumed of it: {ends}; {TopicError.way_out}")
        if gaps := find_gaps(stored, ranges):
            raise TopicError(
                f"cannot go on with topic {topic!r}: retention has removed messages that were not read: {gap_words(gaps)}; "
                f"go on without them (`stocks stream --accept-gap`, which records them), or {TopicError.way_out}"
            )
        return stored

    def accept_gaps(self) -> list[OffsetGap]:
        """Return the messages that retention has removed unread, recorded as done without."""
        ranges = self._watch.read_offsets()
        gaps = find_gaps(self.store.load_offsets(), ranges)
        self.store.accept_gaps(gaps)
        return gaps

    def close(self) -> None:
        """Give the connection to Kafka back; a later look makes another."""
        self._watch.close()

    def _bind(self, ranges: dict[int, OffsetRange]) -> None:
        self.store.bind(self._watch.id, self._window_ms, {part: found.earliest for part, found in ranges.items()})

    def _check_stamps(self) -> None:
        stamp = self._watch.newest_stamp()
        if stamp is not None and (ahead := from_ms(stamp) - dt.datetime.now(dt.UTC)) > CLOCK_TOLERANCE:
            raise ClockError(
                f"cannot start the stream: the newest message of topic {self.store.topic!r} was stamped {ahead.total_seconds():,.0f} s "
                "ahead of this machine's clock: set the clocks of the broker and of this machine, or wait for as long"
            )


def gap_words(gaps: list[OffsetGap]) -> str:
    """Return the gaps in words: each partition with its number of messages."""
    return ", ".join(f"{gap.to_offset - gap.from_offset:,} of partition {gap.partition} (from offset {gap.from_offset:,})" for gap in gaps)


def check_clock(name: str, read: Callable[[], dt.datetime]) -> None:
    """Raise ClockError if that clock and this machine's are too far apart; how long the answer took counts for it."""
    before, theirs, after = dt.datetime.now(dt.UTC), read(), dt.datetime.now(dt.UTC)
    apart = max(theirs - after, before - theirs)
    if apart > CLOCK_TOLERANCE:
        word = "ahead of" if theirs > after else "behind"
        raise ClockError(
            f"cannot start the stream: {name} is {apart.total_seconds():,.0f} s {word} this machine's, more than "
            f"{CLOCK_TOLERANCE.total_seconds():.0f} s: set them"
        )
