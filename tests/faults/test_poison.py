"""Messages that break the contract, every kind of them among good ones: each is kept with its reason, and stops nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ledger import Ledger
from messages import BAD, message
from pyspark.sql import SparkSession
from runs import assert_equal, drain, open_store, random_ticks

from pipeline_lib import pipeline
from pipeline_lib.errors import PipelineError
from pipeline_lib.pipeline import Place
from pipeline_lib.producer import Producer
from pipeline_lib.topics import MAX_TOPIC_MESSAGE_BYTES

LARGE = 100_000  # bytes; of larger ones fewer are read at a time
DAY_MS = 86_400_000


def kinds() -> dict[str, tuple[bytes | None, Any]]:
    """Return every kind of bad message: those of the grammar's tests, and those that need the topic or the clock of now."""
    symbol = "A" * 10_000
    return {
        **BAD,
        "a time of next week": (message(event_time=time.time_ns() // 1_000_000 + 7 * DAY_MS), ...),
        "a time beyond PostgreSQL's": (message(event_time=9_300_000_000_000_000), ...),
        "symbol of 10 kB": (message(symbol=symbol), symbol.encode()),
        "volume 1e400": (message().replace(b'"volume": 100', b'"volume": 1e400'), ...),
        "2 MB": (b"x" * (MAX_TOPIC_MESSAGE_BYTES - 1_000), ...),
    }


@pytest.mark.repeats("poison, every kind", short=20, full=1_000)
def test_every_bad_message_is_kept_with_its_reason_and_the_good_ones_are_in_the_bars(
    place: Place, session: SparkSession, repeats: int
) -> None:
    settings = place.settings.replaced(max_offsets_per_trigger=20_000)
    good = random_ticks(2, 3_000)
    sent: dict[str, set[tuple[int, int]]] = {}
    with Ledger(settings) as ledger:
        ledger.send(good[:1_500])
        for name, (value, key) in kinds().items():
            count = repeats if value is None or len(value) < LARGE or repeats > 20 else 2
            before = len(ledger.entries)
            for _ in range(0, count, 50):  # no more than 100 MB of large ones at a time
                ledger.send_bad([(value, b"AAPL" if key is ... else key)] * min(50, count))
            sent[name] = {(entry.partition, entry.offset) for entry in ledger.entries[before:]}
        ledger.send(good[1_500:])
        drain(settings, session)
        ledger.assert_kept(all_of_it=True)
    assert_equal(settings)
    letters = open_store(place).query('select partition, "offset", reason, length(value) as kept, value_length from dead_letters')
    found = {(row["partition"], row["offset"]): row for row in letters.to_dict("records")}
    for name, places in sent.items():
        assert places and places <= set(found), name
        reasons = {found[place]["reason"].split(" ahead of")[0].split(": event_time")[0] for place in places}
        assert len(reasons) == 1 and len(reasons.pop()) > 10, name
    assert not letters["reason"].str.contains("Spark's parser alone").any()
    assert letters["kept"].max() == 4_096 and letters["value_length"].max() > 2_000_000
    assert open_store(place).query("select count(distinct run_id) as n from query_progress")["n"][0] == 1  # the query has lived


def test_what_is_larger_than_the_topic_takes_is_refused_with_its_reason_and_hurts_no_other(place: Place, session: SparkSession) -> None:
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    pipeline.topics.create_topic(servers, topic)
    with Producer(servers, topic) as producer:
        producer.publish(random_ticks(1, 1)[0])
        with pytest.raises(PipelineError, match=rf"cannot publish to '{topic}': .*(size|large|byte).*; correct the message"):
            producer.publish_message(b"AAPL", b"x" * (MAX_TOPIC_MESSAGE_BYTES + 1))
        producer.publish(random_ticks(2, 1)[0])
    assert sum(found.latest for found in pipeline.topics.read_offsets(servers, topic).values()) == 2
