"""PostgreSQL: the tables, the one transaction of a micro-batch, and what readers load.

The only module that knows psycopg2. The stream is given `Store.commit_batch`, the dashboard `Store.load_bars` and its
siblings, verify `Store.snapshot`. It computes nothing that the database can compute.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import pandas as pd
import psycopg2
from psycopg2 import extensions, sql
from psycopg2.extras import execute_values
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from pipeline_lib import pg_faults, retention, schema
from pipeline_lib.config import masked_url
from pipeline_lib.errors import (
    AlreadyRunningError,
    OffsetsMovedError,
    PipelineError,
    SchemaError,
    SettingsError,
    TopicError,
)
from pipeline_lib.records import Batch, DeadLetter, FeedStatus, Gap, OffsetGap, PartialBar, SymbolFreshness

NOTIFY_CHANNEL = "stock_pipeline"

# A number that no other program is likely to choose.
STREAM_LOCK = 7_220_413

# One statement takes up to 10,000 rows well; dead letters can be 4 kB each, so they go in smaller pieces.
ROWS_A_STATEMENT = 10_000
LETTERS_A_STATEMENT = 1_000

CONNECT_TIMEOUT_SECONDS = 5

# The feed speaks of every symbol within a few seconds. After this silence its word is no longer taken, and a symbol that
# it has not named for so much longer is none of its own any more.
FRESHNESS_HOLDS_SECONDS = 15
FRESHNESS_FORGOTTEN = dt.timedelta(minutes=10)

_FRESHNESS_NOW = (
    "select symbol, case when is_old then 'NO DATA' else state end as state, case when is_old then updated_at else since end as since,"
    " event_time, receipt_time, case when not is_old then opens_at end as opens_at, updated_at"
    " from (select *, updated_at < now() - %(seconds)s * interval '1 second' as is_old from symbol_freshness) each"
)

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

# first_offset to next_offset = good + dead + gap + holes; of the dead letters, pruned ones are not kept any more.
_ACCOUNT_COLUMNS = "partition, first_offset, next_offset, good_count, dead_letter_count, pruned_letter_count, gap_count"

_BAR_COLUMNS = (
    "symbol, window_start, window_end, open, high, low, close, volume, notional, tick_count, trade_count, poll_count, mean_price, "
    "square_deviation, first_event_time, open_partition, open_offset, last_event_time, close_partition, close_offset, "
    "last_receipt_time, previous_close, late_tick_count"
)

# Halves of a bar become one row: extremes, sums, the earlier open, the later close; means and deviations in Chan's
# parallel form (Chan, Golub and LeVeque, 1979), where a half without ticks adds nothing.
_MERGE = f"""
insert into stock_aggregates as bar ({_BAR_COLUMNS}) values %s
on conflict (symbol, window_start, window_end) do update set
    high = greatest(bar.high, excluded.high),
    low = least(bar.low, excluded.low),
    open = case when {{opens}} then excluded.open else bar.open end,
    first_event_time = least(bar.first_event_time, excluded.first_event_time),
    open_partition = case when {{opens}} then excluded.open_partition else bar.open_partition end,
    open_offset = case when {{opens}} then excluded.open_offset else bar.open_offset end,
    close = case when {{closes}} then excluded.close else bar.close end,
    last_event_time = greatest(bar.last_event_time, excluded.last_event_time),
    close_partition = case when {{closes}} then excluded.close_partition else bar.close_partition end,
    close_offset = case when {{closes}} then excluded.close_offset else bar.close_offset end,
    previous_close = greatest(bar.previous_close, excluded.previous_close), -- which passes over nulls
    last_receipt_time = greatest(bar.last_receipt_time, excluded.last_receipt_time),
    volume = bar.volume + excluded.volume,
    notional = bar.notional + excluded.notional,
    tick_count = bar.tick_count + excluded.tick_count,
    trade_count = bar.trade_count + excluded.trade_count,
    poll_count = bar.poll_count + excluded.poll_count,
    mean_price = case
        when excluded.tick_count = 0 then bar.mean_price
        when bar.tick_count = 0 then excluded.mean_price
        else bar.mean_price + (excluded.mean_price - bar.mean_price) * excluded.tick_count / (bar.tick_count + excluded.tick_count) end,
    square_deviation = bar.square_deviation + excluded.square_deviation + case
        when excluded.tick_count = 0 or bar.tick_count = 0 then 0
        else (excluded.mean_price - bar.mean_price) ^ 2 * bar.tick_count
             * (excluded.tick_count::double precision / (bar.tick_count + excluded.tick_count)) end,
    late_tick_count = bar.late_tick_count + excluded.late_tick_count,
    revision = bar.revision + bar.is_final::integer,
    updated_at = now()
""".format(
    opens="(excluded.first_event_time, excluded.open_partition, excluded.open_offset)"
    " < (bar.first_event_time, bar.open_partition, bar.open_offset)",
    closes="(excluded.last_event_time, excluded.close_partition, excluded.close_offset)"
    " > (bar.last_event_time, bar.close_partition, bar.close_offset)",
)


def merge_bars(bars: Iterable[PartialBar]) -> list[PartialBar]:
    """Return one bar for each symbol and window: the rule of the merge statement, for rows that are not stored yet.

    One statement cannot touch a key twice, so the parts that several partitions have of one bar meet here first.
    """
    merged: dict[tuple[str, int, int], PartialBar] = {}
    for bar in bars:
        key = bar.symbol, bar.window_start, bar.window_end
        merged[key] = _merge_pair(merged[key], bar) if key in merged else bar
    return list(merged.values())


def _merge_pair(a: PartialBar, b: PartialBar) -> PartialBar:
    opening = min(a, b, key=lambda bar: (bar.first_event_time, bar.open_partition, bar.open_offset))
    closing = max(a, b, key=lambda bar: (bar.last_event_time, bar.close_partition, bar.close_offset))
    told = [bar.previous_close for bar in (a, b) if bar.previous_close is not None]
    ticks = a.tick_count + b.tick_count
    mean, deviation = a.mean_price if a.tick_count else b.mean_price, a.square_deviation + b.square_deviation
    if a.tick_count and b.tick_count and a.mean_price is not None and b.mean_price is not None:
        delta = b.mean_price - a.mean_price
        mean = a.mean_price + delta * b.tick_count / ticks
        deviation += delta * delta * a.tick_count * (b.tick_count / ticks)
    return a._replace(
        open=opening.open,
        high=max(a.high, b.high),
        low=min(a.low, b.low),
        close=closing.close,
        volume=a.volume + b.volume,
        notional=a.notional + b.notional,
        tick_count=ticks,
        trade_count=a.trade_count + b.trade_count,
        poll_count=a.poll_count + b.poll_count,
        mean_price=mean,
        square_deviation=deviation,
        first_event_time=opening.first_event_time,
        open_partition=opening.open_partition,
        open_offset=opening.open_offset,
        last_event_time=closing.last_event_time,
        close_partition=closing.close_partition,
        close_offset=closing.close_offset,
        last_receipt_time=max(a.last_receipt_time, b.last_receipt_time),
        previous_close=max(told, default=None),
    )


def from_ms(milliseconds: int) -> dt.datetime:
    """Return the UTC time of epoch milliseconds, exactly."""
    return EPOCH + dt.timedelta(milliseconds=milliseconds)


class CommitResult(NamedTuple):
    """What a micro-batch committed."""

    input_rows: int
    dead_letters: int
    bars: int
    late_ticks: int
    commit_ms: int
    next_offsets: dict[int, int]


class Snapshot(NamedTuple):
    """The stored offsets and bars of one instant, and how many dead letters are kept of each partition.

    ``bars`` are those asked for, ``bar_count`` is how many there are, changed or not. ``seen`` is what a later snapshot is
    given to have the bars alone that were written after this one.
    """

    topic: str
    topic_id: str
    window_ms: int
    offsets: pd.DataFrame
    bars: pd.DataFrame
    dead_letters: dict[int, int]  # kept, by partition
    bar_count: int
    seen: str

    @property
    def first_offsets(self) -> dict[int, int]:
        """Where the consumption of each partition began."""
        return {int(part): int(offset) for part, offset in zip(self.offsets["partition"], self.offsets["first_offset"], strict=True)}

    @property
    def next_offsets(self) -> dict[int, int]:
        """Up to where each partition has been consumed."""
        return {int(part): int(offset) for part, offset in zip(self.offsets["partition"], self.offsets["next_offset"], strict=True)}


class Store:
    """One database of the pipeline. Connects when first used; a connection that died is replaced at the next use.

    Reads may come from several threads. A write is one transaction, by one thread at a time.
    """

    def __init__(self, url: str, topic: str, schema_name: str = "public") -> None:
        self.url, self.topic, self._schema_name = url, topic, schema_name
        self._lock = threading.RLock()
        self._connection: Any = None
        self._writer_patience: float | None = None  # of the only stream; None where this store is not the stream's
        self._shape: str | None = None  # of the tables, when they were last compared
        self._prune_at = 0.0

    # connections

    def _connect(self) -> Any:
        try:
            connection = psycopg2.connect(
                self.url,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                application_name="stocks",
                # A connection whose server or network has gone is noticed within seconds, not hours; by the server likewise,
                # since it keeps the right to write for as long as it believes in the connection.
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                options=f"-c timezone=UTC -c client_min_messages=warning -c search_path={self._schema_name}"
                " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3",
            )
        except psycopg2.OperationalError as error:
            raise pg_faults.translate(error, masked_url(self.url)) from None
        if self._writer_patience is not None:
            try:
                self._take_stream_lock(connection, self._writer_patience)
            except BaseException:
                connection.close()
                raise
        return connection

    @contextlib.contextmanager
    def _transaction(self, *, read_only: bool = False, repeatable: bool = False) -> Iterator[Any]:
        """Yield a cursor; commit at the end, roll back on any error, drop a connection that has died."""
        with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            connection = self._connection
            try:
                connection.set_session(isolation_level="REPEATABLE READ" if repeatable else "READ COMMITTED", readonly=read_only)
                with connection, connection.cursor() as cursor:
                    yield cursor
            except psycopg2.Error as error:
                if pg_faults.is_lost(error, connection):
                    connection.close()
                raise pg_faults.translate(error, masked_url(self.url)) from error

    def close(self) -> None:
        """Close the connection; a later use opens another."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()

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

    def count_ticks(self) -> int | None:
        """Return how many ticks the bars were made of, None where the accounts cannot be read."""
        try:
            return int(self._frame("select coalesce(sum(good_count), 0)::bigint as ticks from stream_offsets")["ticks"][0])
        except SchemaError:
            return None

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

    def read_clock(self) -> dt.datetime:
        """Return the time by PostgreSQL's clock."""
        with self._transaction(read_only=True) as cursor:
            cursor.execute("select clock_timestamp()")
            return cursor.fetchone()[0]

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

    def _take_stream_lock(self, connection: Any, patience_seconds: float) -> None:
        @retry(
            retry=retry_if_exception_type(AlreadyRunningError), stop=stop_after_delay(patience_seconds), wait=wait_fixed(0.2), reraise=True
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

    def load_offsets(self) -> dict[int, int]:
        """Return the next offset of each partition that has been consumed from."""
        with self._transaction(read_only=True) as cursor:
            cursor.execute("select partition, next_offset from stream_offsets where topic = %s", (self.topic,))
            return dict(cursor.fetchall())

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
            if batch.previous_progress is not None:
                cursor.execute(
                    "update query_progress set spark_progress = %s where run_id = %s and batch_id = %s",
                    (batch.previous_progress, batch.run_id, batch.batch_id - 1),
                )
            cursor.execute(
                "insert into query_progress (run_id, batch_id, started_at, committed_at, input_rows, dead_letters, bars, late_ticks,"
                " max_event_time, max_receipt_time, watermark, aggregate_ms, commit_ms)"
                " values (%s, %s, %s, clock_timestamp(), %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    batch.run_id,
                    batch.batch_id,
                    batch.started_at,
                    rows,
                    dead,
                    len(bars),
                    late,
                    from_ms(max(bar.last_event_time for bar in bars)) if bars else None,
                    from_ms(max(bar.last_receipt_time for bar in bars)) if bars else None,
                    watermark,
                    batch.aggregate_ms,
                    commit_ms,
                ),
            )
            cursor.execute(sql.SQL("notify {}, {}").format(sql.Identifier(NOTIFY_CHANNEL), sql.Literal(str(batch.batch_id))))
            # Last of all: by now every table that was written to is held, and nobody alters it before the commit.
            shape = schema.read_shape(cursor)
            if shape != self._shape:
                schema.check_tables(cursor)
                self._shape = shape
        return CommitResult(rows, dead, len(bars), late, commit_ms, {count.partition: count.next_offset for count in batch.counts})

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
            cursor.execute(
                "update query_progress set spark_progress = %s where run_id = %s and batch_id = %s", (spark_progress, run_id, batch_id)
            )

    # what readers load

    def _frame(self, query: str, arguments: Any = None) -> pd.DataFrame:
        with self._transaction(read_only=True) as cursor:
            return _fetch_frame(cursor, query, arguments)

    def query(self, query: str, arguments: Any = None) -> pd.DataFrame:
        """Return the rows of any reading statement as a DataFrame; times are in UTC."""
        return self._frame(query, arguments)

    def load_bars(self, symbol: str, width: str | None = None, since: dt.datetime | None = None, limit: int = 500) -> pd.DataFrame:
        """Return the last `limit` bars of a symbol in time order; a width of None is the stored one.

        Columns are those of stock_aggregates that a reader wants: symbol, window_start, window_end, open, high, low, close,
        volume, vwap, tick_count, trade_count, change_pct, is_final, revision, late_tick_count, updated_at and others.
        ``is_final`` goes on with the clock where data have stopped.
        """
        factor = 1
        with self._transaction(read_only=True) as cursor:
            if width is not None:
                cursor.execute("select extract(epoch from %s::interval) * 1000 / window_ms from pipeline_identity", (width,))
                row = cursor.fetchone()
                factor = 1 if row is None else row[0]
                if factor != int(factor) or factor < 1:
                    raise SettingsError(
                        f"cannot make bars of {width}: the stored ones are not a whole part of it; choose a multiple of WINDOW"
                    )
                factor = int(factor)
                width = None if factor == 1 else width
            if width is None:
                source = sql.SQL("select * from stock_aggregates where symbol = %(symbol)s and window_start >= %(since)s")
            else:
                # No more stored bars than the wide ones can be made of, counted back from the last over whatever gaps.
                source = sql.SQL(
                    "select * from wider_bars(%(width)s::interval, %(symbol)s, greatest(%(since)s, (select min(window_start) from ("
                    " select window_start from stock_aggregates where symbol = %(symbol)s order by window_start desc limit %(stored)s) s)))"
                )
            frame = _fetch_frame(
                cursor,
                sql.SQL("select * from ({}) bars order by window_start desc limit %(limit)s").format(source),
                {"symbol": symbol, "width": width, "since": since or EPOCH, "limit": limit, "stored": limit * max(factor, 1)},
            )
            cursor.execute("select watermark from watermark_now")
            row = cursor.fetchone()
        if row is not None and len(frame):
            frame["is_final"] |= frame["window_end"] <= pd.Timestamp(row[0])
        return frame.iloc[::-1].reset_index(drop=True)

    def load_prices(self) -> pd.DataFrame:
        """Return one row a symbol: symbol, price, change, change_pct, change_since, volume, event_time, receipt_time, updated_at …

        Of a live feed also freshness, fresh_since and opens_at; a symbol that it has no price of yet is a row, too. Where the
        feed has not spoken for a while, freshness is NO DATA since its last word.
        """
        return self._frame(
            "select coalesce(p.symbol, f.symbol) as symbol, p.price, p.change, p.change_pct, p.change_since, p.volume, p.day_open,"
            " p.day_high, p.day_low, p.vwap, p.event_time, p.receipt_time, p.updated_at, p.age,"
            " f.state as freshness, f.since as fresh_since, f.opens_at"
            f" from latest_prices p full join ({_FRESHNESS_NOW}) f using (symbol) order by 1",
            {"seconds": FRESHNESS_HOLDS_SECONDS},
        )

    def load_freshness(self) -> pd.DataFrame:
        """Return how fresh each symbol of a live feed is: symbol, state, since, event_time, receipt_time, opens_at, updated_at."""
        return self._frame(f"{_FRESHNESS_NOW} order by symbol", {"seconds": FRESHNESS_HOLDS_SECONDS})

    def load_gaps(self, limit: int = 100) -> pd.DataFrame:
        """Return the last `limit` gaps of the feed, oldest first: source, started_at, ended_at, reason; ended_at is NaT while one lasts."""
        return self._frame(
            "select * from (select source, started_at, ended_at, reason from feed_gaps order by started_at desc, source limit %s) g"
            " order by started_at, source",
            (limit,),
        )

    def load_stages(self) -> pd.DataFrame:
        """Return the last word of each stage: stage, state, detail, since, beat_at; feed, kafka, spark, postgres in this order."""
        return self._frame(
            "select stage, state, detail, since, beat_at from ("
            " select s.place, s.stage, coalesce(t.state, 'stopped') as state, coalesce(t.detail, 'has not started yet') as detail,"
            " t.since, t.beat_at from (values (1, 'feed'), (2, 'kafka'), (3, 'spark')) s (place, stage)"
            " left join stage_state t using (stage)"
            " union all select 4, 'postgres', 'running', 'PostgreSQL ' || split_part(current_setting('server_version'), ' ', 1),"
            " pg_postmaster_start_time(), now()) stages order by place"
        )

    def load_progress(self, limit: int = 200) -> pd.DataFrame:
        """Return the last `limit` micro-batches, oldest first: the columns of query_progress."""
        return self._frame(
            "select * from (select * from query_progress order by committed_at desc limit %s) p order by committed_at", (limit,)
        )

    def load_dead_letters(self, limit: int = 100) -> pd.DataFrame:
        """Return the last `limit` dead letters: the columns of dead_letters, newest first."""
        return self._frame('select * from dead_letters order by recorded_at desc, partition, "offset" desc limit %s', (limit,))

    def load_accounts(self) -> pd.DataFrame:
        """Return for each partition what was consumed: the columns of _ACCOUNT_COLUMNS."""
        return self._frame(f"select {_ACCOUNT_COLUMNS} from stream_offsets where topic = %s order by partition", (self.topic,))

    def snapshot(
        self,
        *,
        since: int | None = None,
        until: int | None = None,
        symbols: list[str] | None = None,
        changed_since: str | None = None,
    ) -> Snapshot:
        """Return offsets, bars and the number of dead letters as they were at one instant.

        Of all bars, or those whose window lies within [since, until] (epoch milliseconds), of some symbols, written since
        an earlier snapshot. Raises SchemaError if no stream has written here yet.
        """
        asked = (
            " from stock_aggregates where (%(since)s is null or window_start >= %(since)s)"
            " and (%(until)s is null or window_end <= %(until)s) and (%(symbols)s::text[] is null or symbol = any(%(symbols)s))"
        )
        arguments = {
            "since": None if since is None else from_ms(since),
            "until": None if until is None else from_ms(until),
            "symbols": symbols,
            "changed": changed_since,
        }
        with self._transaction(read_only=True, repeatable=True) as cursor:
            # In front of the snapshot: tables that a rebuild swaps in after it would look empty in it.
            cursor.execute("lock table pipeline_identity, stream_offsets, stock_aggregates, dead_letters in access share mode")
            cursor.execute("select topic, topic_id, window_ms from pipeline_identity")
            row = cursor.fetchone()
            if row is None:
                raise SchemaError("cannot read the bars: no stream has written to this database yet; run `stocks stream`")
            offsets = _fetch_frame(cursor, f"select {_ACCOUNT_COLUMNS} from stream_offsets order by partition")
            # A transaction that runs now may commit rows of an older number later: what is new is counted from the oldest of these.
            bars = _fetch_frame(
                cursor,
                f"select *{asked} and (%(changed)s is null or age(xmin) <= age(%(changed)s::xid)) order by symbol, window_start",
                arguments,
            )
            cursor.execute(f"select count(*){asked}", arguments)
            bar_count = cursor.fetchone()[0]
            cursor.execute("select (txid_snapshot_xmin(txid_current_snapshot()) % 4294967296)::text")
            seen = cursor.fetchone()[0]
            cursor.execute("select partition, count(*) from dead_letters where topic = %s group by partition", (row[0],))
            return Snapshot(row[0], row[1], row[2], offsets, bars, dict(cursor.fetchall()), bar_count, seen)


def create_database(url: str, name: str, template: str = "template1") -> str:
    """Return the address of a new database beside the one of `url`: empty, or a copy of one that nobody is connected to.

    Raises UnavailableError or PipelineError.
    """
    _administer(url, sql.SQL("create database {} template {}").format(*map(sql.Identifier, (name, template))))
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/{name}"))


def drop_database(url: str, name: str) -> None:
    """Drop a database beside the one of `url`, and end what this user still has connected to it.

    Without FORCE, which is refused to all but a superuser while the server's own autovacuum is at work there.
    """
    own = "select pg_terminate_backend(pid) from pg_stat_activity where datname = {} and usename = current_user and pid <> pg_backend_pid()"
    _administer(url, sql.SQL(own).format(sql.Literal(name)))
    _administer(url, sql.SQL("drop database if exists {}").format(sql.Identifier(name)))


def _administer(url: str, statement: sql.Composed) -> None:
    try:
        connection = psycopg2.connect(url, connect_timeout=CONNECT_TIMEOUT_SECONDS, application_name="stocks")
    except psycopg2.OperationalError as error:
        raise pg_faults.translate(error, masked_url(url)) from None
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    except psycopg2.Error as error:
        said = pg_faults.first_line(error)
        raise PipelineError(f"cannot make or drop a database: {said}; the user needs the right CREATEDB") from error
    finally:
        connection.close()


def _fetch_frame(cursor: Any, query: Any, arguments: Any = None) -> pd.DataFrame:
    cursor.execute(query, arguments)
    frame = pd.DataFrame(cursor.fetchall(), columns=[column.name for column in cursor.description])
    for column in cursor.description:
        if column.type_code == extensions.PYDATETIMETZ.values[0]:
            frame[column.name] = pd.to_datetime(frame[column.name], utc=True).astype("datetime64[us, UTC]")
        elif column.type_code == extensions.FLOAT.values[0]:
            frame[column.name] = frame[column.name].astype("float64")
    return frame


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
    execute_values(cursor, _MERGE, rows, page_size=ROWS_A_STATEMENT)
    return late_ticks


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
