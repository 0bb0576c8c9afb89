"""What tests of the whole line do again and again: make ticks, publish them, stream them, compare.

Event times are seconds after T0, the start of a window of ten seconds.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import psycopg2
from pyspark.sql import SparkSession

from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.pipeline import Place
from pipeline_lib.producer import Producer, publish_ticks
from pipeline_lib.records import Tick
from pipeline_lib.store import Store

T0 = 1_763_900_000_000
SYMBOLS = ("AAPL", "MSFT", "GOOGL", "TSLA", "AMZN", "META", "NVDA", "NFLX")


def tick(number: int, *, symbol: str = "AAPL", price: float = 100.0, at: float = 0.0, **more: Any) -> Tick:
    """Return a trade `at` seconds after T0."""
    fields = {"volume": 10.0, "kind": "trade", "source": "simulated", "schema": 1, **more}
    return Tick(id=f"sim-{number}", symbol=symbol, price=price, event_time=T0 + round(at * 1000), receipt_time=T0 + number, **fields)


def random_ticks(seed: int, count: int, seconds: float = 600) -> list[Tick]:
    """Return ticks in disorder, with many ties in time, some without volume, some polls."""
    dice = random.Random(seed)
    return [
        tick(
            number,
            symbol=dice.choice(SYMBOLS),
            price=round(dice.uniform(90, 110), 2),
            at=round(dice.uniform(0, seconds), 1),
            volume=float(dice.choice([0, 1, 100, 250])),
            repeat=dice.choice([None, None, None, "unchanged"]),
        )
        for number in range(count)
    ]


def publish(settings: Settings, ticks: Iterable[Tick]) -> None:
    """Publish the ticks, all acknowledged."""
    servers = pipeline.servers_of(settings)
    topics.create_topic(servers, settings.kafka_topic)
    with Producer(servers, settings.kafka_topic) as producer:
        publish_ticks(producer, ticks)


def publish_raw(settings: Settings, messages: Iterable[tuple[bytes | None, bytes | None]]) -> int:
    """Publish (value, key) pairs as they are; return how many they were."""
    servers = pipeline.servers_of(settings)
    topics.create_topic(servers, settings.kafka_topic)
    count = 0
    with Producer(servers, settings.kafka_topic) as producer:
        for value, key in messages:
            producer.publish_message(key, value)
            count += 1
    return count


def drain(settings: Settings, session: SparkSession) -> None:
    """Stream what is in the topic now."""
    pipeline.stream_until_caught_up(settings, session)


def assert_eventually(get: Callable[[], Any], expected: Callable[[Any], bool], seconds: float = 120) -> Any:
    """Return the first value that is as expected; fail with the last one seen."""
    deadline = time.monotonic() + seconds
    while not expected(seen := get()):
        assert time.monotonic() < deadline, f"still {seen!r} after {seconds} s"
        threading.Event().wait(0.1)
    return seen


def open_store(place: Place) -> Store:
    """Return the store of the place."""
    return pipeline.open_store(place.settings)


def execute(place: Place, *statements: str) -> None:
    """Run the statements in the place's database, all or none."""
    connection = psycopg2.connect(open_store(place).url)
    with connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


def assert_equal(settings: Settings) -> None:
    """Assert that the table is what the topic says."""
    report = pipeline.verify(settings)
    assert report.equal, (report.differences, report.account_faults)
