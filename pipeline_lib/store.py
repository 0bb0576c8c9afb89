"""The tables and who writes them: created and checked, bound to a topic, and the one transaction of a micro-batch.

The stream is given `Store.commit_batch`. What is read stands in readings.py, which a Store is too; the connection in
database.py, how two halves of a bar merge in merge.py.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import psycopg2
from psycopg2 import sql
from psycopg2.extras import execute_values
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from pipeline_lib import pg_faults, retention, schema
from pipeline_lib.commits import NOTIFY_CHANNEL
from pipeline_lib.config import masked_url
from pipeline_lib.errors import AlreadyRunningError, OffsetsMovedError, SchemaError, TopicError
from pipeline_lib.merge import MERGE, merge_bars
from pipeline_lib.readings import Readings
from pipeline_lib.records import EPOCH, Batch, DeadLetter, FeedStatus, Gap, OffsetGap, PartialBar, SymbolFreshness, from_ms

# A number that no other program is likely to choose.
STREAM_LOCK = 7_220_413

# One statement takes up to 10,000 rows well; dead letters can be 4 kB each, so they go in smaller pieces.
ROWS_A_STATEMENT = 10_000
LETTERS_A_STATEMENT = 1_000

# A symbol that the feed has not named for so long is none of its own any more.
FRESHNESS_FORGOTTEN = dt.timedelta(minutes=10)


class CommitResult(NamedTuple):
    """What a micro-batch committed."""

    input_rows: int
    dead_letters: int
    bars: int
    late_ticks: int
    commit_ms: int
    next_offsets: dict[int, int]


class Store(Readings):
    """One database of the pipeline, to read and to write. A write is one transaction, by one thread at a time."""

    def __init__(self, url: str, topic: str, schema_name: str = "public") -> None:
        super().__init__(url, topic, schema_name)
        self._writer_patience: float | None = None  # of the only stream; None where this store is not the stream's
        self._shape: str | None = None  # of the tables, when they were last compared
        self._prune_at = 0.0
        self._flushed: tuple[str, int, float] | None = None  # run, batch and milliseconds of the last commit itself

    # the schema

    def create_tables(self) -> None:
        """Create the tables at first start, check them at every later one, and renew views that differ.

        Raises SchemaError that shows each difference between the tables there and the ones this program creates.
        """
        with self._transaction() as cursor:
            self._shape = schema.create_tables(cursor)

    def beside(self) -> Store:
        """Return a store of the same database in which tables are rebuilt, beside the ones in use."""
        return Store(self.url, self.topic, schema.REBUILT)

    def clear_schema(self) -> None:
        """Make the schema of this store, which is one for rebuilding, empty."""
        with self._transaction() as cursor:
            schema.clear_schema(cursor)

    def swap_tables(self) -> None:
        """Put the tables of this store, which is one for rebuilding, in the place of the ones in use, in one transaction.

        Raises UnavailableError if somebody holds the old ones for too long.
        """
        with self._transaction() as cursor:
            schema.swap_tables(cursor)

    def check_tables(self) -> bool:
        """Return whether there are tables; nothing is changed.

        Raises SchemaError that shows each difference between the tables there and the ones this program creates.
        """
        with self._transaction() as cursor:
            return schema.check_tables(cursor)

    def check_bound(self, window_ms: int) -> str | None:
        """Return the id of the topic that this database is tied to, None if it is tied to none yet.

        Raises SchemaError, with both sides shown, if it is tied to a topic of another name or to another window.
        """
        with self._transaction(read_only=True) as cursor:
            return self._check_bound(cursor, window_ms)

    def _check_bound(self, cursor: Any, window_ms: int) -> str | None:
        cursor.execute("select topic, topic_id, window_ms from pipeline_identity")
        row = cursor.fetchone()
        if row is None:
            return None
        topic, topic_id, stored_window = row
        way_out = "name another database in DATABASE_URL, which is filled from the topic"
        if topic != self.topic:
            raise SchemaError(f"cannot start the stream: this database holds the bars of topic {topic!r}, not of {self.topic!r}; {way_out}")
        if stored_window != window_ms:
            raise SchemaError(
                f"cannot start the stream: this database holds bars of {stored_window / 1000:g} s, WINDOW is {window_ms / 1000:g} s; "
                f"set WINDOW back, or make bars of the new width: `stocks rebuild`"
            )
        return str(topic_id)

    def bind(self, topic_id: str, window_ms: int, earliest: dict[int, int]) -> None:
        """Tie this database to one topic and one window at first start, each partition to the earliest offset that it holds.

        A partition that the topic got later is tied to offset 0: it is accounted for from its first message. Raises
        SchemaError or TopicError, with both sides shown, if it is tied to others.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "insert into pipeline_identity (topic, topic_id, window_ms) values (%s, %s, %s) on conflict do nothing",
                (self.topic, topic_id, window_ms),
            )
            stored_id = self._check_bound(cursor, window_ms)
            if stored_id != topic_id:
                raise TopicError.made_again(self.topic, topic_id, stored_id)
            cursor.execute("select count(*) from stream_offsets where topic = %s", (self.topic,))
            is_first = cursor.fetchone()[0] == 0
            execute_values(
                cursor,
                "insert into stream_offsets (topic, topic_id, partition, first_offset, next_offset) values %s on conflict do nothing",
                [(self.topic, topic_id, part, *([offset if is_first else 0] * 2)) for part, offset in sorted(earliest.items())],
            )

    def accept_gaps(self, gaps: Iterable[OffsetGap]) -> None:
        """Go on after messages that retention removed unread, and record that this was chosen. All of them or none.

        Raises OffsetsMovedError if the stored offsets are not those at which the gaps begin.
        """
        with self._transaction() as cursor:
            for partition, start, end in gaps:
                cursor.execute(
                    "update stream_offsets set next_offset = %(end)s, gap_count = gap_count + %(end)s - %(start)s, updated_at = now()"
                    " where topic = %(topic)s and partition = %(partition)s and next_offset = %(start)s",
                    {"topic": self.topic, "partition": partition, "start": start, "end": end},
                )
                if cursor.rowcount != 1:
                    raise OffsetsMovedError(f"cannot accept the gap: partition {partition} is not at offset {start} any more; start anew")
                cursor.execute(
                    "insert into accepted_gaps (topic, partition, from_offset, to_offset) values (%s, %s, %s, %s)",
                    (self.topic, partition, start, end),
                )

    @contextlib.contextmanager
    def only_stream(self, patience_seconds: float = 10) -> Iterator[None]:
        """Hold the right to write bars into this database, on the very connection that commits them.

        A connection that replaces a lost one takes it again before it commits anything. Waits a little, since PostgreSQL may
        need a moment to notice that a killed holder is gone. Raises AlreadyRunningError if another stream has it.
        """
        with self._lock:
            self.close()
            self._writer_patience = patience_seconds
        try:
            with self._transaction(read_only=True):
                pass  # connected, and so the only one
            yield
        finally:
            with self._lock:
                self._writer_patience = None
                self.close()

    def _claim(self, connection: Any) -> None:
        if self._writer_patience is None:
            return

        @retry(
            retry=retry_if_exception_type(AlreadyRunningError),
            stop=stop_after_delay(self._writer_patience),
            wait=wait_fixed(0.2),
            reraise=True,
        )
        def take() -> None:
            with connection, connection.cursor() as cursor:
                cursor.execute("select pg_try_advisory_lock(%s)", (STREAM_LOCK,))
                if cursor.fetchone()[0]:
                    return
                cursor.execute(
                    "select pid, backend_start from pg_stat_activity where pid = (select pid from pg_locks where locktype = 'advisory'"
                    " and objid = %s and granted and database = (select oid from pg_database where datname = current_database()) limit 1)",
                    (STREAM_LOCK,),
                )
                holder = cursor.fetchone()
            since = f", connected since {holder[1]:%Y-%m-%d %H:%M:%S} UTC" if holder else ""
            raise AlreadyRunningError(
                f"cannot write bars: another stream writes to this database{since}; stop it, or name another database in DATABASE_URL"
            )

        try:
            take()
        except psycopg2.Error as error:
            raise pg_faults.translate(error, masked_url(self.url)) from error

    # the stream's writes

    def commit_batch(self, batch: Batch, watermark_delay_ms: int) -> CommitResult:
        """Merge the bars, keep the dead letters, append the progress and advance the offsets, all or nothing.

        Raises OffsetsMovedError if the stored offsets are not those that the batch was filtered by; nothing is merged then.
        """
        self._prune_now_and_then()
        began = time.monotonic()
        bars = merge_bars(batch.bars)
        with self._transaction() as cursor:
            cursor.execute(
                "select partition, next_offset from stream_offsets where topic = %s order by partition for update", (self.topic,)
            )
            stored = dict(cursor.fetchall())
            if stored != batch.filtered_by:
                raise OffsetsMovedError(
                    f"cannot merge batch {batch.batch_id}: it was filtered by offsets {batch.filtered_by}, {stored} are stored; "
                    "it is read again"
                )
            # The one that readers go by: what they were shown as final is amended with a new revision.
            cursor.execute("select watermark from watermark_now")
            row = cursor.fetchone()
            watermark_before = row[0] if row else None
            _finish_bars(cursor, watermark_before)
            late = _merge_into(cursor, bars, watermark_before)
            kept, dead = _keep_letters(cursor, self.topic, batch.dead_letters), sum(count.dead for count in batch.counts)
            if kept != dead:
                raise OffsetsMovedError(
                    f"cannot merge batch {batch.batch_id}: {dead} dead letters were counted, {kept} read; it is read again"
                )
            self._advance(cursor, batch)
            watermark = _advance_watermark(cursor, bars, watermark_delay_ms)
            rows = sum(count.good for count in batch.counts) + dead
            commit_ms = round((time.monotonic() - began) * 1000)
            result = CommitResult(rows, dead, len(bars), late, commit_ms, {count.partition: count.next_offset for count in batch.counts})
            self._finish_progress(cursor, batch.run_id, batch.batch_id - 1, batch.previous_progress)
            committed_at = time.monotonic()
            _append_progress(cursor, batch, result, watermark)
            cursor.execute(sql.SQL("notify {}, {}").format(sql.Identifier(NOTIFY_CHANNEL), sql.Literal(str(batch.batch_id))))
            # Last of all: by now every table that was written to is held, and nobody alters it before the commit.
            shape = schema.read_shape(cursor)
            if shape != self._shape:
                schema.check_tables(cursor)
                self._shape = shape
        self._flushed = batch.run_id, batch.batch_id, (time.monotonic() - committed_at) * 1000
        return result

    def _prune_now_and_then(self) -> None:
        """Delete what is kept no longer, once in a while. In front of a batch, which is read again if this fails."""
        if time.monotonic() < self._prune_at:
            return
        while True:
            with self._transaction() as cursor:
                if not retention.prune(cursor):
                    break
        self._prune_at = time.monotonic() + retention.PRUNE_SECONDS

    def _advance(self, cursor: Any, batch: Batch) -> None:
        execute_values(
            cursor,
            "insert into stream_offsets as o (topic, topic_id, partition, first_offset, next_offset, good_count, dead_letter_count)"
            " values %s on conflict (topic, partition) do update set next_offset = excluded.next_offset,"
            " good_count = o.good_count + excluded.good_count, dead_letter_count = o.dead_letter_count + excluded.dead_letter_count,"
            " updated_at = now()",
            [(self.topic, count.partition, count.first_offset, count.next_offset, count.good, count.dead) for count in batch.counts],
            template="(%s, (select topic_id from pipeline_identity), %s, %s, %s, %s, %s)",
        )

    def beat(self, stage: str, state: str, detail: str, since: dt.datetime | None = None) -> None:
        """Record the last word of a stage.

        ``since`` is kept while the state stays the same and the beats have not paused, unless it is given.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "insert into stage_state as s (stage, state, detail, since, beat_at) values (%(stage)s, %(state)s, %(detail)s,"
                " coalesce(%(since)s, now()), now()) on conflict (stage) do update set state = excluded.state, detail = excluded.detail,"
                " since = case when %(since)s is null and s.state = excluded.state and s.beat_at > now() - interval '10 seconds'"
                " then s.since else excluded.since end, beat_at = now()",
                {"stage": stage, "state": state, "detail": detail, "since": since},
            )

    def keep_feed_status(self, status: FeedStatus) -> None:
        """Record the freshness of the symbols and the gaps that a status tells of.

        A status tells of every gap that lasts: one that it does not name has ended. Freshness is forgotten where the source
        has none, and of symbols that the feed does not speak of any more.
        """
        at = from_ms(status.at)
        with self._transaction() as cursor:
            if status.symbols is None:
                cursor.execute("delete from symbol_freshness")
            else:
                _keep_freshness(cursor, status.symbols, at)
            _keep_gaps(cursor, status.gaps)
            lasting = [(gap.source, from_ms(gap.started_at)) for gap in status.gaps if gap.ended_at is None]
            cursor.execute(
                "update feed_gaps set ended_at = %s where ended_at is null and started_at <= %s and not (source, started_at) in %s",
                (at, at, (*lasting, ("", EPOCH))),
            )

    def keep_gap(self, gap: Gap) -> None:
        """Record a gap that the feed cannot tell of itself."""
        with self._transaction() as cursor:
            _keep_gaps(cursor, [gap])

    def finish_progress(self, run_id: str, batch_id: int, spark_progress: str) -> None:
        """Add Spark's own account of a batch that no later batch follows."""
        with self._transaction() as cursor:
            self._finish_progress(cursor, run_id, batch_id, spark_progress)

    def _finish_progress(self, cursor: Any, run_id: str, batch_id: int, spark_progress: str | None) -> None:
        """Add to the progress of a batch what is known of it only afterwards."""
        flush_ms = self._flushed[2] if self._flushed is not None and self._flushed[:2] == (run_id, batch_id) else None
        if spark_progress is not None or flush_ms is not None:
            cursor.execute(
                "update query_progress set spark_progress = %s, flush_ms = %s where run_id = %s and batch_id = %s",
                (spark_progress, flush_ms, run_id, batch_id),
            )


def _merge_into(cursor: Any, bars: list[PartialBar], watermark: dt.datetime | None) -> int:
    """Merge the bars into the table; return how many ticks came after their bar was final."""
    rows, late_ticks = [], 0
    for bar in bars:
        end = from_ms(bar.window_end)
        late = bar.tick_count + bar.poll_count if watermark is not None and end <= watermark else 0
        late_ticks += late
        rows.append(
            (
                *bar[:1],
                from_ms(bar.window_start),
                end,
                *bar[3:14],
                from_ms(bar.first_event_time),
                bar.open_partition,
                bar.open_offset,
                from_ms(bar.last_event_time),
                bar.close_partition,
                bar.close_offset,
                from_ms(bar.last_receipt_time),
                bar.previous_close,
                late,
            )
        )
    execute_values(cursor, MERGE, rows, page_size=ROWS_A_STATEMENT)
    return late_ticks


def _append_progress(cursor: Any, batch: Batch, result: CommitResult, watermark: dt.datetime | None) -> None:
    bars, stamps = batch.bars, batch.stamps
    execute_values(
        cursor,
        "insert into query_progress (run_id, batch_id, started_at, input_rows, dead_letters, bars, late_ticks, max_event_time,"
        " max_receipt_time, watermark, aggregate_ms, commit_ms, offsets, first_receipt_time, mean_receipt_time, mean_broker_time,"
        " committed_at) values %s",
        [
            (
                batch.run_id,
                batch.batch_id,
                batch.started_at,
                result.input_rows,
                result.dead_letters,
                result.bars,
                result.late_ticks,
                from_ms(max(bar.last_event_time for bar in bars)) if bars else None,
                from_ms(max(bar.last_receipt_time for bar in bars)) if bars else None,
                watermark,
                batch.aggregate_ms,
                result.commit_ms,
                json.dumps({count.partition: [count.first_offset, count.next_offset] for count in batch.counts}),
                *(map(from_ms, stamps) if stamps is not None else [None] * 3),
            )
        ],
        template=f"({', '.join(['%s'] * 16)}, clock_timestamp())",
    )


def _keep_letters(cursor: Any, topic: str, letters: Iterable[DeadLetter]) -> int:
    """Insert the dead letters, a piece at a time; return how many they were."""
    remaining, kept = iter(letters), 0
    while piece := list(islice(remaining, LETTERS_A_STATEMENT)):
        execute_values(
            cursor,
            'insert into dead_letters (topic, partition, "offset", broker_time, reason, key, value, value_length, value_sha256) values %s',
            [(topic, x.partition, x.offset, from_ms(x.timestamp), x.reason, x.key, x.value, x.value_length, x.value_sha256) for x in piece],
            page_size=LETTERS_A_STATEMENT,
        )
        kept += len(piece)
    return kept


def _keep_freshness(cursor: Any, symbols: Iterable[SymbolFreshness], at: dt.datetime) -> None:
    def moment(milliseconds: int | None) -> dt.datetime | None:
        return None if milliseconds is None else from_ms(milliseconds)

    execute_values(
        cursor,
        "insert into symbol_freshness as f (symbol, state, since, event_time, receipt_time, opens_at, updated_at) values %s"
        " on conflict (symbol) do update set state = excluded.state, since = excluded.since, event_time = excluded.event_time,"
        " receipt_time = excluded.receipt_time, opens_at = excluded.opens_at, updated_at = excluded.updated_at"
        " where f.updated_at <= excluded.updated_at",
        [(x.symbol, x.state, from_ms(x.since), *map(moment, (x.event_time, x.receipt_time, x.opens_at)), at) for x in symbols],
        page_size=ROWS_A_STATEMENT,
    )
    cursor.execute("delete from symbol_freshness where updated_at < %s", (at - FRESHNESS_FORGOTTEN,))


def _keep_gaps(cursor: Any, gaps: Iterable[Gap]) -> None:
    execute_values(
        cursor,
        "insert into feed_gaps (source, started_at, ended_at, reason) values %s"
        " on conflict (source, started_at) do update set ended_at = excluded.ended_at, reason = excluded.reason",
        [(gap.source, from_ms(gap.started_at), None if gap.ended_at is None else from_ms(gap.ended_at), gap.reason) for gap in gaps],
        page_size=ROWS_A_STATEMENT,
    )


def _advance_watermark(cursor: Any, bars: list[PartialBar], delay_ms: int) -> dt.datetime | None:
    """Move the watermark up to the latest event time less the delay, never back, and mark the bars it has passed.

    An event time that is ahead of the clock counts as now: one tick from the future makes nothing late.
    """
    if not bars:
        return None
    latest = min(from_ms(max(bar.last_event_time for bar in bars)), dt.datetime.now(dt.UTC))
    cursor.execute(
        "insert into stream_watermark as w (max_event_time, watermark) values (%s, %s) on conflict (only_row) do update set"
        " max_event_time = greatest(w.max_event_time, excluded.max_event_time), watermark = greatest(w.watermark, excluded.watermark),"
        " updated_at = case when excluded.watermark > w.watermark then now() else w.updated_at end returning watermark",
        (latest, latest - dt.timedelta(milliseconds=delay_ms)),
    )
    watermark = cursor.fetchone()[0]
    _finish_bars(cursor, watermark)
    return watermark


def _finish_bars(cursor: Any, watermark: dt.datetime | None) -> None:
    if watermark is not None:
        cursor.execute("update stock_aggregates set is_final = true where not is_final and window_end <= %s", (watermark,))
