"""Verify put together: which messages are read, by how many processes, and once or pass after pass.

A snapshot of the tables says up to where the stream has come, so that it may go on meanwhile. The topic is read up to
there and no further. A large one is read by a process a core, each a part of the offsets; they are started as
`python -m pipeline_lib.audit`, which works in a notebook and under a test as well as on the command line.

What is read for a range of time is all from the first message on that may matter to it. A tick is at most
FUTURE_TOLERANCE_MS ahead of the broker's clock, or it is none: so no message that the broker took earlier than that
before the range began can be part of it, and Kafka's index of times leads past those. At the other end there is no such
bound, since a tick may be late by any time: all is read up to the stored offsets. Called by pipeline.py.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pipeline_lib import topics
from pipeline_lib.errors import PipelineError, SchemaError
from pipeline_lib.recompute import IdsTwice, KnownIds, Place, Recomputed, Scope, recompute_bars
from pipeline_lib.records import FUTURE_TOLERANCE_MS, decode_tick
from pipeline_lib.verify import Comparison, VerifyReport, compare_accounts, compare_bars, index_bars

if TYPE_CHECKING:
    from pipeline_lib.readings import Snapshot
    from pipeline_lib.store import Store

# Fewer messages are read sooner than a second Python is started.
MESSAGES_A_PROCESS = 50_000
IDS_SHOWN = 5

Offsets = dict[int, int]


def verify(servers: str, store: Store, scope: Scope = Scope(), processes: int | None = None) -> VerifyReport:  # noqa: B008 - a value
    """Recompute the bars that are asked about from the topic up to the stored offsets, compare, and return the report.

    Raises SchemaError if the stored offsets belong to another topic than the one that is there.
    """
    return Watch(servers, store, scope, processes).next_report()


class Watch:
    """Verifies pass after pass: each reads what the stream has consumed since the last one, and compares what that touched.

    A bar is compared again when it is amended, or when its row was written for whatever reason; a row that went away is
    noticed by their number. The bars recomputed so far are held, so memory grows with bars and, by 8 bytes, with messages.
    Where the stored offsets have gone back or belong to another topic, as after a rebuild, the next pass begins anew.
    """

    def __init__(self, servers: str, store: Store, scope: Scope = Scope(), processes: int | None = None) -> None:  # noqa: B008 - a value
        self._servers, self._store, self._scope, self._processes = servers, store, scope, processes
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._of: tuple[str, int] | None = None  # topic id, window
        self._found = Recomputed()
        self._touched: set[Place] = set()  # what has been read of these was not compared yet
        self._told: tuple[int, ...] = (0, 0)  # good and dead messages that earlier reports have told of
        self._ids = KnownIds()
        self._stored: set[Place] = set()
        self._starts: Offsets = {}  # where the reading of each partition began
        self._ends: Offsets = {}
        self._earliest: Offsets = {}
        self._seen: str | None = None

    def next_report(self) -> VerifyReport:
        """Return the report of one more pass; its counts are of what was new, its accounts of all that was read."""
        snapshot = self._snapshot()
        if self._of is not None and (
            self._of != (snapshot.topic_id, snapshot.window_ms)
            or any(snapshot.next_offsets.get(part, -1) < end for part, end in self._ends.items())
        ):
            self._begin_anew()
            snapshot = self._snapshot()
        ends = snapshot.next_offsets
        ranges = _check_topic(self._servers, snapshot)
        self._read(snapshot, ranges)
        rows = index_bars(snapshot.bars, snapshot.window_ms)
        is_full = self._seen is None
        self._stored = {*rows} if is_full else self._stored | rows.keys()
        if len(self._stored) != snapshot.bar_count and not is_full:
            # A row has gone, and by its number alone it is not known which: all are looked at.
            self._seen = None
            return self.next_report()
        self._seen = snapshot.seen
        removed = {part: earliest for part, earliest in self._earliest.items() if earliest > snapshot.first_offsets.get(part, earliest)}
        places = {*self._found.bars, *rows} if is_full else {*self._touched, *rows}
        comparison = compare_bars(self._found, rows, removed, snapshot.window_ms, places)
        report = self._report(snapshot, comparison, is_full)
        return report._replace(unread=sum(found.latest - max(ends.get(part, 0), found.earliest) for part, found in ranges.items()))

    def _snapshot(self) -> Snapshot:
        scope = self._scope
        symbols = None if scope.symbols is None else sorted(scope.symbols)
        return self._store.snapshot(since=scope.since, until=scope.until, symbols=symbols, changed_since=self._seen)

    def _read(self, snapshot: Snapshot, ranges: dict[int, topics.OffsetRange]) -> None:
        """Read what was consumed since the last pass."""
        ends = snapshot.next_offsets
        unknown = {part for part in ends if part not in self._starts}
        self._earliest |= {part: ranges[part].earliest for part in unknown}
        starts = {part: max(snapshot.first_offsets[part], ranges[part].earliest) for part in unknown}
        if self._scope.since is not None and unknown:
            bound = topics.find_offsets(self._servers, snapshot.topic, self._scope.since - FUTURE_TOLERANCE_MS - 1)
            starts = {part: max(start, min(bound[part], ends[part])) for part, start in starts.items()}
        self._starts |= starts
        fresh = read_bars(
            Reading(self._servers, snapshot.topic, snapshot.window_ms, self._scope), {**starts, **self._ends}, ends, self._processes
        )
        self._touched |= fresh.bars.keys()
        self._found.merge(fresh)
        self._ends, self._of = ends, (snapshot.topic_id, snapshot.window_ms)

    def _report(self, snapshot: Snapshot, comparison: Comparison, is_full: bool) -> VerifyReport:
        twice = self._ids.add(self._found.ids, IDS_SHOWN)
        self._found.ids = []
        self._touched = set()
        whole = [
            part
            for part, start in sorted(self._starts.items())
            if self._scope.symbols is None and start <= max(snapshot.first_offsets[part], self._earliest[part])
        ]
        accounts = snapshot.offsets[snapshot.offsets["partition"].isin(whole)]
        accounts = accounts.assign(
            kept_dead_letters=accounts["partition"].map(snapshot.dead_letters).fillna(0).astype(int),
            earliest=accounts["partition"].map(self._earliest),
        )
        knows_all = is_full and self._scope.is_all
        before, self._told = self._told, tuple(sum(count[n] for count in self._found.counts.values()) for n in (0, 1))
        good, dead = self._told[0] - before[0], self._told[1] - before[1]
        return VerifyReport(
            messages=good + dead,
            good=good,
            dead_letters=dead,
            bars=comparison.bars,
            differing_bars=comparison.differing_bars,
            differences=comparison.differences,
            account_faults=compare_accounts(self._found.counts, accounts, comparison.lost if knows_all else None),
            left_out=comparison.left_out,
            offsets=self._ends,
            accounts=whole,
            read_from=self._starts,
            unread=0,
            ids_twice=twice.messages,
            ids_shown=list(self._show_ids(snapshot.topic, twice)),
            partitions=[_with_holes(row) for row in snapshot.offsets.to_dict("records")],
        )

    def _show_ids(self, topic: str, twice: IdsTwice) -> Iterator[tuple[int, int, str]]:
        for part, offset in twice.places:
            for message in topics.read_messages(self._servers, topic, {part: offset}, {part: offset + 1}):
                yield part, offset, decode_tick(message.value, message.key, message.timestamp).id


def _check_topic(servers: str, snapshot: Snapshot) -> dict[int, topics.OffsetRange]:
    """Return what the topic holds; raises SchemaError if it is another one than the stored offsets belong to."""
    info = topics.describe_topic(servers, snapshot.topic)
    if info.id != snapshot.topic_id:
        raise SchemaError(
            f"cannot verify: topic {info.name!r} has id {info.id}, the stored offsets belong to id {snapshot.topic_id}: "
            "it was deleted and made again; name the database that belongs to it, or make the tables anew: `stocks rebuild`"
        )
    ranges = topics.read_offsets(servers, snapshot.topic)
    for part, end in snapshot.next_offsets.items():
        if part not in ranges or end > ranges[part].latest:
            ends = f"ends at {ranges[part].latest:,}" if part in ranges else "is gone"
            raise SchemaError(
                f"cannot verify: partition {part} of topic {info.name!r} {ends}, the stored offset is {end:,}: one of the two was changed; "
                "make the tables anew: `stocks rebuild`"
            )
    return ranges


def _with_holes(row: dict[str, int]) -> dict[str, int]:
    told = row["good_count"] + row["dead_letter_count"] + row["gap_count"]
    return {**row, "holes": row["next_offset"] - row["first_offset"] - told}


class Reading(NamedTuple):
    """What every part of a reading shares."""

    servers: str
    topic: str
    window_ms: int
    scope: Scope


def read_bars(reading: Reading, starts: Offsets, ends: Offsets, processes: int | None = None) -> Recomputed:
    """Return what the messages between those offsets come to, read by several processes where they are many."""
    count = sum(max(0, end - starts.get(part, 0)) for part, end in ends.items())
    processes = min(processes or _cores(), 1 + count // MESSAGES_A_PROCESS)
    if processes == 1:
        return _read_here(reading, starts, ends)
    readers = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline_lib.audit"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(processes)
    ]
    found = Recomputed()
    try:
        for reader, part in zip(readers, cut_offsets(starts, ends, processes), strict=True):
            assert reader.stdin is not None
            reader.stdin.write(pickle.dumps((tuple(reading), *part)))
            reader.stdin.close()
            reader.stdin = None  # communicate would flush it
        for reader in readers:
            answer, said = reader.communicate()
            result = pickle.loads(answer) if answer else PipelineError(f"cannot read the topic: a reader ended: {said.decode()[-300:]}")
            if isinstance(result, PipelineError):
                raise result
            found.merge(result)
    finally:
        for reader in readers:
            if reader.poll() is None:
                reader.kill()
            reader.wait()
            for pipe in (reader.stdin, reader.stdout, reader.stderr):
                if pipe is not None:
                    pipe.close()
    return found


def cut_offsets(starts: Offsets, ends: Offsets, pieces: int) -> Iterator[tuple[Offsets, Offsets]]:
    """Yield the offsets in so many pieces of like size, as (starts, ends); none is left out, none is in two."""
    spans = [(part, starts.get(part, 0), end) for part, end in sorted(ends.items()) if end > starts.get(part, 0)]
    total = sum(end - start for _, start, end in spans)
    for number in range(pieces):
        low, high, before = total * number // pieces, total * (number + 1) // pieces, 0
        piece: tuple[Offsets, Offsets] = {}, {}
        for part, start, end in spans:
            first, last = max(start, start + low - before), min(end, start + high - before)
            before += end - start
            if first < last:
                piece[0][part], piece[1][part] = first, last
        yield piece


def _read_here(reading: Reading, starts: Offsets, ends: Offsets) -> Recomputed:
    return recompute_bars(topics.read_messages(reading.servers, reading.topic, starts, ends), reading.window_ms, reading.scope)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Read one part, as standard input says, and answer on standard output."""
    gc.disable()  # nothing here goes in circles but a little of Kafka's client
    reading, starts, ends = pickle.load(sys.stdin.buffer)
    try:
        answer: Recomputed | PipelineError = _read_here(Reading(*reading), starts, ends)
    except PipelineError as error:
        answer = error
    pickle.dump(answer, sys.stdout.buffer, protocol=5)


if __name__ == "__main__":
    main()
