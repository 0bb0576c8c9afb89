"""What readers load: bars, prices, stages, progress, letters, accounts, and all of it as it was at one instant.

It writes nothing and computes nothing that the database can compute. A Store is one; the dashboard is given its `load_bars`
and siblings, verify its `snapshot`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, NamedTuple

import pandas as pd
from psycopg2 import extensions, sql

from pipeline_lib.commits import CommitWatch
from pipeline_lib.database import Database
from pipeline_lib.errors import SchemaError, SettingsError
from pipeline_lib.records import EPOCH, Commit, from_ms

# The feed speaks of every symbol within a few seconds. After this silence its word is no longer taken.
FRESHNESS_HOLDS_SECONDS = 15

_FRESHNESS_NOW = (
    "select symbol, case when is_old then 'NO DATA' else state end as state, case when is_old then updated_at else since end as since,"
    " event_time, receipt_time, case when not is_old then opens_at end as opens_at, updated_at"
    " from (select *, updated_at < now() - %(seconds)s * interval '1 second' as is_old from symbol_freshness) each"
)

# first_offset to next_offset = good + dead + gap + holes; of the dead letters, pruned ones are not kept any more.
_ACCOUNT_COLUMNS = "partition, first_offset, next_offset, good_count, dead_letter_count, pruned_letter_count, gap_count"


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


class Readings(Database):
    """What is read of one database of the pipeline. Reads may come from several threads."""

    def __init__(self, url: str, topic: str, schema_name: str = "public") -> None:
        super().__init__(url, schema_name)
        self.topic = topic

    def _frame(self, query: str, arguments: Any = None) -> pd.DataFrame:
        with self._transaction(read_only=True) as cursor:
            return _fetch_frame(cursor, query, arguments)

    def query(self, query: str, arguments: Any = None) -> pd.DataFrame:
        """Return the rows of any reading statement as a DataFrame; times are in UTC."""
        return self._frame(query, arguments)

    def count_ticks(self) -> int | None:
        """Return how many ticks the bars were made of, None where the accounts cannot be read."""
        try:
            return int(self._frame("select coalesce(sum(good_count), 0)::bigint as ticks from stream_offsets")["ticks"][0])
        except SchemaError:
            return None

    def load_offsets(self) -> dict[int, int]:
        """Return the next offset of each partition that has been consumed from."""
        with self._transaction(read_only=True) as cursor:
            cursor.execute("select partition, next_offset from stream_offsets where topic = %s", (self.topic,))
            return dict(cursor.fetchall())

    def read_clock(self) -> dt.datetime:
        """Return the time by PostgreSQL's clock."""
        with self._transaction(read_only=True) as cursor:
            cursor.execute("select clock_timestamp()")
            return cursor.fetchone()[0]

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

    def load_last_prices(self) -> pd.DataFrame:
        """Return one row a symbol, of its last bar: symbol, price, event_time, receipt_time, updated_at.

        What of load_prices changes with every tick, and costs the same however many bars there are.
        """
        return self._frame(
            "select s.symbol, last.close as price, last.last_event_time as event_time, last.last_receipt_time as receipt_time,"
            " last.updated_at from symbols s cross join lateral (select * from stock_aggregates a where a.symbol = s.symbol"
            " order by a.window_start desc limit 1) last order by 1"
        )

    def watch_commits(self) -> CommitWatch:
        """Return what tells of each commit, on a connection of its own; not connected yet."""
        return CommitWatch(self)

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

    def load_budget(self) -> pd.DataFrame:
        """Return where the time goes from a tick's first sight to the table, a row a part: the columns of latency_budget.

        Of the minute up to the last micro-batch: stage, part, is_on_way, mean_ms, most_ms; NaN where it is not known.
        """
        return self._frame("select stage, part, is_on_way, mean_ms, most_ms from latency_budget order by place")

    def load_delays(self) -> pd.DataFrame:
        """Return one row, how long the ticks of that minute took to the table: the columns of tick_to_table.

        p50_ms and p99_ms take the ticks of a batch to be spread evenly between its first and its last; the others are exact.
        """
        return self._frame("select * from tick_to_table")

    def load_commits(self, since: float | None = None) -> list[Commit]:
        """Return the micro-batches committed after `since`, epoch milliseconds, in order; by default the last one alone."""
        with self._transaction(read_only=True) as cursor:
            cursor.execute(
                "select run_id, batch_id, (extract(epoch from committed_at) * 1000)::double precision, input_rows - dead_letters,"
                " (extract(epoch from first_receipt_time) * 1000)::double precision,"
                " (extract(epoch from max_receipt_time) * 1000)::double precision from query_progress"
                " where committed_at > coalesce(%(since)s, (select max(committed_at) - interval '1 microsecond' from query_progress))"
                " order by committed_at",
                {"since": None if since is None else from_ms(since)},
            )
            return [Commit(*row) for row in cursor.fetchall()]

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


def _fetch_frame(cursor: Any, query: Any, arguments: Any = None) -> pd.DataFrame:
    cursor.execute(query, arguments)
    frame = pd.DataFrame(cursor.fetchall(), columns=[column.name for column in cursor.description])
    for column in cursor.description:
        if column.type_code == extensions.PYDATETIMETZ.values[0]:
            frame[column.name] = pd.to_datetime(frame[column.name], utc=True).astype("datetime64[us, UTC]")
        elif column.type_code == extensions.FLOAT.values[0]:
            frame[column.name] = frame[column.name].astype("float64")
    return frame
