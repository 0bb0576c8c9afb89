"""What the upsert and the dashboard's readings take on a table that holds so many sessions of bars.

The bars of the past are written by one statement of SQL, those of now by the store's own commit, as the stream calls it, and
read by the store's own readings, as the dashboard calls them. Called by growth.py.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import psycopg2

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.records import Batch, PartialBar, PartitionCount
from pipeline_lib.store import Store

WINDOW_MS = 10_000
TIMES = 100

# Sessions of six and a half hours, on the last so many weekdays before today; prices that walk, as in a table that was streamed.
_PAST = """
insert into stock_aggregates (
    symbol, window_start, window_end, open, high, low, close, volume, notional, tick_count, trade_count, poll_count, mean_price,
    square_deviation, first_event_time, open_partition, open_offset, last_event_time, close_partition, close_offset,
    last_receipt_time, is_final
)
select symbol, start, start + '10 seconds', price, price + 0.05, price - 0.05, price + 0.01, 1000, 1000 * price, 40, 40, 0, price,
    0.04, start, 0, number * 40, start + '9.9 seconds', 0, number * 40 + 39, start + '9.9 seconds', true
from (
    select day from generate_series(current_date - (2 * %(days)s + 7), current_date - 1, '1 day') day
    where extract(isodow from day) < 6 order by day desc limit %(days)s
) sessions
cross join generate_series(0, 2339) number
cross join unnest(%(symbols)s) symbol
cross join lateral (select day + interval '14.5 hours' + number * interval '10 seconds' as start, 100 + 10 * random() as price) values_of
order by start, symbol
"""


def run(settings: Settings, days: int) -> dict[str, Any]:
    """Return the bars in the table, its size, and the median milliseconds of each statement."""
    with contextlib.closing(pipeline.open_store(settings)) as store:
        store.create_tables()
        store.bind("growth", WINDOW_MS, {0: 0})
        fill(store, settings.symbols, days)
        statements: dict[str, Callable[[], Any]] = {
            "load_bars, the tail": lambda: store.load_bars("AAPL", "10 seconds", limit=30),
            "load_bars, all of the chart": lambda: store.load_bars("AAPL", "10 seconds", limit=500),
            "load_bars, 500 of a minute": lambda: store.load_bars("AAPL", "1 minute", limit=500),
            "load_bars, 500 of an hour": lambda: store.load_bars("AAPL", "1 hour", limit=500),
            "load_prices": store.load_prices,
        }
        commits = [took(lambda: commit(store, settings.symbols)) for _ in range(TIMES)]
        figures = {name: [took(statement) for _ in range(TIMES // 5)] for name, statement in statements.items()}
        counted = store.query("select count(*) as bars, pg_total_relation_size('stock_aggregates') as bytes from stock_aggregates")
    medians = {"commit of a micro-batch": statistics.median(commits), **{name: statistics.median(each) for name, each in figures.items()}}
    return {"days": days, "bars": int(counted["bars"][0]), "table_mb": counted["bytes"][0] / 1e6, "ms": medians}


def fill(store: Store, symbols: tuple[str, ...], days: int) -> None:
    """Write the bars of the past, and let PostgreSQL see to the table as it does by itself in time."""
    connection = psycopg2.connect(store.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(_PAST, {"days": days, "symbols": list(symbols)})
        cursor.execute("vacuum analyze stock_aggregates")
    connection.close()


def took(call: Callable[[], Any]) -> float:
    """Return the milliseconds of a call."""
    began = time.perf_counter()
    call()
    return 1_000 * (time.perf_counter() - began)


def commit(store: Store, symbols: tuple[str, ...]) -> None:
    """Commit a micro-batch of one bar a symbol, in the window that is open now."""
    stored, now = store.load_offsets(), time.time_ns() // 1_000_000
    first = stored.get(0, 0)
    bars = [bar_of(symbol, now, first + number) for number, symbol in enumerate(symbols)]
    counts = [PartitionCount(0, first, first + len(bars), len(bars), 0)]
    batch = Batch(
        run_id="growth",
        batch_id=first,
        started_at=dt.datetime.now(dt.UTC),
        filtered_by=stored,
        bars=bars,
        counts=counts,
        dead_letters=[],
        aggregate_ms=1,
    )
    store.commit_batch(batch, WINDOW_MS)


def bar_of(symbol: str, now: int, offset: int) -> PartialBar:
    """Return a bar of one tick."""
    price, start = round(random.uniform(90, 110), 2), now - now % WINDOW_MS
    return PartialBar(
        symbol=symbol,
        window_start=start,
        window_end=start + WINDOW_MS,
        open=price,
        high=price,
        low=price,
        close=price,
        volume=10.0,
        notional=10 * price,
        tick_count=1,
        trade_count=1,
        poll_count=0,
        mean_price=price,
        square_deviation=0.0,
        first_event_time=now,
        open_partition=0,
        open_offset=offset,
        last_event_time=now,
        close_partition=0,
        close_offset=offset,
        last_receipt_time=now,
        previous_close=None,
    )
