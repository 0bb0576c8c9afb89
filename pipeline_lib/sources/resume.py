"""How much of a tape is in the topic already, so that a feed that was killed goes on where it was.

The topic is read from its end backwards. A producer publishes in the tape's order, and has no more than a bounded number of
messages unacknowledged; when it goes on, it first waits until the holes are filled that its former life has left. So
whatever lies farther than this bound before the last tick of the tape in the topic is known to be there, and need not be read;
within the bound the ids decide. That holds where the topic has room for nothing else: before what was read there are as many
messages as the tape has ticks before it, and the first of them is the tape's first. Where other ticks lie among or before
those of the tape, perhaps of a tape that overlaps with it, all is read, and the ids decide of all.

It knows ids, partitions and offsets, and nothing of Kafka: it says what it wants to read, and is given the messages. It
holds 18 bytes for each tick of the tape, and 16 for each message that was read. Called by `pipeline`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import attrgetter
from typing import Literal, NamedTuple

import numpy as np

from pipeline_lib.errors import MessageError
from pipeline_lib.records import Message, Tick, decode_value

# How what `encode_tick` writes begins; any other tick is decoded.
_BEFORE_ID = b'{"schema":1,"id":"'


class Span(NamedTuple):
    """Offsets of a partition, from `start` up to, not including, `end`."""

    start: int
    end: int


class Published(NamedTuple):
    """What of a tape is in the topic: a byte for each tick, 1 if it is there; and the last one, None if there is none.

    Of the last one: its partition, its offset, and its event time on the tape.
    """

    flags: bytes
    last: tuple[int, int, int] | None

    @property
    def holes(self) -> int:
        """How many ticks before the last one that is there are not."""
        return self.flags[: self.flags.rfind(1) + 1].count(0)

    @property
    def ticks(self) -> int:
        """How many ticks are there."""
        return self.flags.count(1)


class TopicSearch:
    """Looks for the ticks of a tape in a topic that holds these spans of offsets.

    search = TopicSearch(ticks, partition_of, spans, bound=20_000)
    while spans := search.wanted():
        search.take(read(spans))
    search.published()
    """

    def __init__(self, ticks: Iterable[Tick], partition_of: Callable[[str], int], spans: dict[int, Span], *, bound: int) -> None:
        hashes, homes, times = array("q"), array("h"), array("q")
        home_of: dict[str, int] = {}
        for tick in ticks:
            if (home := home_of.get(tick.symbol)) is None:
                home = home_of[tick.symbol] = partition_of(tick.symbol)
            hashes.append(hash(tick.id))
            homes.append(home)
            times.append(tick.event_time)
        ids = np.array(hashes, np.int64)
        self._homes, self._times = np.array(homes, np.int16), np.array(times, np.int64)
        self._first_id = hashes[0] if hashes else 0
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]
        # Of each partition that has ticks of the tape: the place on the tape of the first one, and whether its id comes again.
        self._first_in = {home: int(np.argmax(self._homes == home)) for home in set(home_of.values())}
        self._has_double = {home: int((ids == ids[place]).sum()) > 1 for home, place in self._first_in.items()}
        self._spans, self._bound = spans, bound
        self._read_from = {home: spans[home].end for home in self._first_in}
        self._piece = bound
        self._read: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {home: [] for home in self._first_in}
        self._published = np.zeros(len(ids), bool)
        self._lowest: dict[int, tuple[int, int]] = {}  # of each partition: place on the tape, offset
        self._highest: tuple[int, int, int] | None = None  # place on the tape, partition, offset
        # Of an id that the tape has twice, far apart, only the order of all in the topic tells which of the two is there.
        is_repeated = self._sorted[1:] == self._sorted[:-1]
        has_far_repeats = bool((is_repeated & (np.diff(self._order) > bound)).any())
        self._phase: Literal["end", "first tick", "all", "done"] = "all" if has_far_repeats else "end"

    def wanted(self) -> dict[int, Span]:
        """Return what is to be read next, by partition; nothing when enough is known."""
        if self._phase == "end":
            if wanted := {home: self._next_piece(home) for home in self._unread() if not self._is_deep_enough(home)}:
                return wanted
            self._phase = "first tick" if all(map(self._has_only_the_tape, self._first_in)) else "all"
        if self._phase == "first tick":
            home = int(self._homes[0])
            if home not in self._lowest:
                self._phase = "all"
                return self.wanted()
            offset = self._offset_of_first(home)
            # What retention has removed cannot be looked for.
            if offset >= self._spans[home].start and not self._published[0]:
                return {home: Span(offset, offset + 1)}
            self._phase = "done"
        if self._phase == "all":
            return {home: self._next_piece(home) for home in self._unread()}
        return {}

    def take(self, messages: Iterable[Message]) -> None:
        """Take in what was wanted: the messages of each partition in their order."""
        if self._phase == "first tick":
            self._phase = "done" if any(_id_hash(message) == self._first_id for message in messages) else "all"
            return
        found: dict[int, tuple[array[int], array[int]]] = {home: (array("q"), array("q")) for home in self._first_in}
        for home, part in groupby(messages, key=attrgetter("partition")):
            offsets, hashes = found[home]
            for message in part:
                if (id_hash := _id_hash(message)) is not None:
                    offsets.append(message.offset)
                    hashes.append(id_hash)
        for home, (offsets, hashes) in found.items():
            self._read[home].insert(0, (np.array(offsets, np.int64), np.array(hashes, np.int64)))
        self._piece *= 4
        self._match()

    def published(self) -> Published:
        """Return what of the tape is in the topic."""
        flags = self._published
        knows_all = not self._unread() and all(self._spans[home].start == 0 for home in self._first_in)
        if self._highest is not None and not knows_all:
            flags = flags | (np.arange(len(flags)) <= self._highest[0] - self._bound)
        last = self._highest
        return Published(flags.tobytes(), None if last is None else (last[1], last[2], int(self._times[last[0]])))

    def _unread(self) -> list[int]:
        return [home for home, start in self._read_from.items() if start > self._spans[home].start]

    def _next_piece(self, home: int) -> Span:
        end = self._read_from[home]
        self._read_from[home] = max(self._spans[home].start, end - self._piece)
        return Span(self._read_from[home], end)

    def _is_deep_enough(self, home: int) -> bool:
        """Return whether all before what was read of a partition is farther back than the bound.

        Twice the bound more, since the holes that a former life left are filled behind it, and since an id that comes again
        shortly after may have been taken for the first of the two.
        """
        if self._highest is None or home not in self._lowest:
            return False
        place, _ = self._lowest[home]
        is_first = place == self._first_in[home] and not self._has_double[home]
        return is_first or place <= self._highest[0] - 3 * self._bound

    def _has_only_the_tape(self, home: int) -> bool:
        """Return whether a partition has nothing before what was read of the tape but more of the tape, as far as numbers tell."""
        if home not in self._lowest:
            return self._read_from[home] == self._spans[home].start
        start = self._spans[home].start
        return self._offset_of_first(home) == start or self._offset_of_first(home) < start > 0

    def _offset_of_first(self, home: int) -> int:
        """Return where the first tick of a partition lies if nothing but the tape is before the earliest that was found."""
        place, offset = self._lowest[home]
        return offset - int(np.count_nonzero(self._homes[:place] == home))

    def _match(self) -> None:
        """Find the place on the tape of every message that was read."""
        self._published[:] = False
        self._lowest, self._highest = {}, None
        for home, pieces in self._read.items():
            offsets, hashes = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
            places = self._places(hashes)
            there = places >= 0
            if not there.any():
                continue
            offsets, places = offsets[there], places[there]
            self._published[places] = True
            low, high = int(places.argmin()), int(places.argmax())
            self._lowest[home] = int(places[low]), int(offsets[low])
            if self._highest is None or places[high] > self._highest[0]:
                self._highest = int(places[high]), home, int(offsets[high])

    def _places(self, hashes: np.ndarray) -> np.ndarray:
        """Return the place on the tape of each id of one partition, -1 for one that is not on it."""
        if not len(self._sorted):
            return np.full(len(hashes), -1)
        left, right = np.searchsorted(self._sorted, hashes, "left"), np.searchsorted(self._sorted, hashes, "right")
        places = np.where(right - left == 1, self._order[np.minimum(left, len(self._order) - 1)], -1)
        # An id that the tape repeats is the one of its places that is nearest to the message before, and not taken yet.
        before = np.maximum.accumulate(np.where(places >= 0, np.arange(len(places)), -1))
        taken: set[int] = set()
        last = -1
        for at in np.flatnonzero(right - left > 1).tolist():
            last = max(last, int(before[at]))
            expected = int(places[last]) + 1 if last >= 0 else 0
            free = [place for place in self._order[left[at] : right[at]].tolist() if place not in taken]
            if free:
                places[at] = min((abs(place - expected), place) for place in free)[1]
                taken.add(int(places[at]))
                last = at
        return places


def _id_hash(message: Message) -> int | None:
    """Return the hash of the id of the tick that a message holds, None if it is no tick."""
    value = message.value
    try:
        if value is not None and value.startswith(_BEFORE_ID):
            return hash(str(value[len(_BEFORE_ID) : value.index(b'"', len(_BEFORE_ID))], "ascii"))
        return hash(decode_value(value).id)
    except (MessageError, ValueError):
        return None
