"""What the stream is measured beside: a plain loop over the topic, and less.

`python -m benchmarks.loops floor` reads the topic with kafka-python and parses each message with msgspec: below that no
Python program on this client gets. `… bars` aggregates into a dict and upserts the bars that each poll has touched: what one
would write in an afternoon. It has no recovery, no dead letters, no accounts, and its table is wrong after any fault. Both
are one process, as such loops are. Started by the parts, with addresses in the environment.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg2
from kafka import KafkaConsumer, TopicPartition
from psycopg2.extras import execute_values

from benchmarks.programs import end_with_parent

CHANNEL = "stock_pipeline"

TABLE = """
create table if not exists loop_bars (
    symbol text, window_start timestamptz, open double precision, high double precision, low double precision,
    close double precision, volume double precision, vwap double precision, tick_count bigint, primary key (symbol, window_start)
)
"""

UPSERT = """
insert into loop_bars (symbol, window_start, open, high, low, close, volume, vwap, tick_count) values %s
on conflict (symbol, window_start) do update set
    open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
    volume = excluded.volume, vwap = excluded.vwap, tick_count = excluded.tick_count
"""


class Tick(msgspec.Struct):
    """The fields that a bar needs."""

    symbol: str
    price: float
    event_time: int
    volume: float | None = None


class Bar(msgspec.Struct):
    """A bar as far as it has come."""

    open: float
    high: float
    low: float
    close: float
    first: int
    last: int
    volume: float = 0.0
    notional: float = 0.0
    count: int = 0


def polls(live: bool) -> Iterator[tuple[dict[Any, Any], dict[str, int]]]:
    """Yield what each poll brings, and the next offsets after it: up to the end that there is now, or live from there on."""
    consumer = KafkaConsumer(
        bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"].split(","),
        enable_auto_commit=False,
        max_poll_records=10_000,
        max_partition_fetch_bytes=4 * 1024 * 1024,
    )
    topic = os.environ["KAFKA_TOPIC"]
    parts = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(parts)
    ends = consumer.end_offsets(parts)
    for part in parts:
        consumer.seek(part, ends[part] if live else 0)
    while live or any(consumer.position(part) < ends[part] for part in parts):
        if records := consumer.poll(timeout_ms=500):
            yield records, {str(part.partition): consumer.position(part) for part in parts}
    consumer.close()


def read_only() -> int:
    """Return how many messages there are, each of them parsed."""
    decode, count = msgspec.json.Decoder(Tick).decode, 0
    for records, _ in polls(live=False):
        for found in records.values():
            for record in found:
                decode(record.value)
            count += len(found)
    return count


def keep_bars(window_ms: int, live: bool) -> int:
    """Return how many messages went into the table."""
    connection = psycopg2.connect(os.environ["DATABASE_URL"])
    with connection, connection.cursor() as cursor:
        cursor.execute(TABLE)
    decode, count, bars = msgspec.json.Decoder(Tick).decode, 0, dict[tuple[str, int], Bar]()
    for records, positions in polls(live):
        touched = set()
        for found in records.values():
            count += len(found)
            for record in found:
                tick = decode(record.value)
                price, at, volume = tick.price, tick.event_time, tick.volume or 0.0
                key = tick.symbol, at - at % window_ms
                bar = bars.get(key)
                if bar is None:
                    bar = bars[key] = Bar(price, price, price, price, at, at)
                elif at >= bar.last:
                    bar.close, bar.last = price, at
                elif at < bar.first:
                    bar.open, bar.first = price, at
                if price > bar.high:
                    bar.high = price
                if price < bar.low:
                    bar.low = price
                bar.volume += volume
                bar.notional += price * volume
                bar.count += 1
                touched.add(key)
        with connection, connection.cursor() as cursor:
            execute_values(cursor, UPSERT, [row_of(key, bars[key]) for key in touched], page_size=10_000)
            cursor.execute(f"notify {CHANNEL}, '{json.dumps(positions)}'")
    connection.close()
    return count


def row_of(key: tuple[str, int], bar: Bar) -> tuple[Any, ...]:
    """Return the row of a bar."""
    symbol, start = key
    began = dt.datetime.fromtimestamp(start / 1_000, dt.UTC)
    vwap = bar.notional / bar.volume if bar.volume else None
    return symbol, began, bar.open, bar.high, bar.low, bar.close, bar.volume, vwap, bar.count


def main() -> None:
    """Read, and print how many messages it was and the processor seconds."""
    end_with_parent()
    what, *options = sys.argv[1:]
    count = read_only() if what == "floor" else keep_bars(int(options[0]), live="live" in options)
    print(json.dumps({"messages": count, "cpu_seconds": time.process_time()}))


if __name__ == "__main__":
    main()
