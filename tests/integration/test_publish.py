"""Many messages on the short way into Kafka: each acknowledged by its batch, and none of which it is not known what became."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from runs import assert_eventually, random_ticks

from pipeline_lib import pipeline, producer, topics
from pipeline_lib.batch_client import BatchClient, error_of
from pipeline_lib.pipeline import Place
from pipeline_lib.producer import Producer
from pipeline_lib.records import Message, decode_tick, encode_tick

KEYS = [None, *(f"KEY{number}".encode() for number in range(20))]


@contextlib.contextmanager
def client(place: Place, **settings: Any) -> Iterator[BatchClient]:
    """A client of the place's topic, which is created; thrown away at the end."""
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    topics.create_topic(servers, topic)
    found = BatchClient(topic, bootstrap_servers=servers.split(","), enable_idempotence=True, acks="all", **settings)
    try:
        yield found
    finally:
        found._sender.force_close()
        found._sender.join(30)
        found.close(timeout=0)


@contextlib.contextmanager
def admin(place: Place) -> Iterator[KafkaAdminClient]:
    found = KafkaAdminClient(bootstrap_servers=pipeline.servers_of(place.settings).split(","))
    try:
        yield found
    finally:
        found.close()


def read(place: Place) -> list[Message]:
    """Return all messages of the topic, those of a partition in order."""
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    ends = {number: found.latest for number, found in topics.read_offsets(servers, topic).items()}
    return list(topics.read_messages(servers, topic, dict.fromkeys(ends, 0), ends))


def test_each_message_lies_where_the_future_of_its_batch_and_its_place_say(place: Place) -> None:
    dice = random.Random(1)
    with client(place, linger_ms=5, batch_size=8_192) as sender:
        sent = []
        for number in range(5_000):
            key, value = dice.choice(KEYS), b"%d " % number + dice.randbytes(dice.choice([0, 30, 300, 9_000 if number % 50 == 0 else 30]))
            value = None if number % 100 == 0 and key is not None else value
            sent.append((*sender.add(key, value), key, value))
        assert all(future.wait(30) for future, *_ in sent)
    assert len({id(future) for future, *_ in sent}) < len(sent) / 5  # most went the short way
    there = {(message.partition, message.offset): (message.key, message.value) for message in read(place)}
    assert len(there) == len(sent)
    for future, place_in_batch, key, value in sent:
        assert error_of(future, place_in_batch) is None
        partition = future.topic_partition.partition
        assert there[partition, future.value[0] + place_in_batch] == (key, value)
        assert key is None or partition == topics.partition_of(key, 4)


def test_a_client_that_is_thrown_away_leaves_no_message_in_doubt(place: Place) -> None:
    with client(place, linger_ms=60_000) as sender:
        sent = [sender.add(f"KEY{number % 10}".encode(), b"value") for number in range(1_000)]
        assert not any(future.is_done for future, _ in sent)
    assert all(future.is_done and error_of(future, place_in_batch) is not None for future, place_in_batch in sent)
    assert read(place) == []


def test_where_a_key_belongs_follows_the_number_of_partitions(place: Place) -> None:
    keys = [key for key in KEYS if key is not None]
    with client(place, linger_ms=5, metadata_max_age_ms=200) as sender:
        futures = [sender.add(key, b"before")[0] for _ in range(10) for key in keys]
        assert {future.topic_partition.partition for future in futures} <= set(range(4))
        with admin(place) as broker:
            broker.create_partitions({place.settings.kafka_topic: 7})
        assert_eventually(lambda: len(sender.partitions_for(place.settings.kafka_topic)), lambda count: count == 7, seconds=30)
        assert all(future.wait(30) for future in futures)
        sent = [(key, sender.add(key, b"after")[0]) for _ in range(10) for key in keys]
        assert {key: future.topic_partition.partition for key, future in sent} == {key: topics.partition_of(key, 7) for key in keys}
        assert all(future.wait(30) for _, future in sent)


def take_small_batches(place: Place) -> None:
    """Let the topic take no batch of more than 5,000 bytes from now on."""
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    with admin(place) as broker:
        broker.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "5000"})])
    assert_eventually(lambda: topics.describe_topic(servers, topic).config["max.message.bytes"], lambda found: found == "5000")


def test_a_topic_that_takes_only_small_batches_is_given_such(place: Place) -> None:
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    topics.create_topic(servers, topic)
    take_small_batches(place)
    ticks = random_ticks(1, 3_000)
    with Producer(servers, topic) as sender:
        for tick in ticks:
            sender.publish(tick)
    report = sender.report
    assert (report.sent, report.acknowledged, report.found, report.resent) == (3_000, 3_000, 0, 0)
    assert Counter(decode_tick(message.value, message.key).id for message in read(place)) == Counter(tick.id for tick in ticks)


def test_a_batch_that_was_cut_in_two_is_accounted_for(place: Place) -> None:
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    topics.create_topic(servers, topic)
    ticks = random_ticks(1, 3_000)
    with Producer(servers, topic) as sender:
        sender.publish(ticks[0])
        take_small_batches(place)  # which the producer does not know of
        for tick in ticks[1:]:
            sender.publish(tick)
    report = sender.report
    assert report.sent == report.acknowledged == 3_000 and report.failed == 0 < report.found + report.resent
    assert Counter(decode_tick(message.value, message.key).id for message in read(place)) == Counter(tick.id for tick in ticks)


def test_no_more_than_the_bound_is_unacknowledged(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer, "MAX_IN_FLIGHT", 50)
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    topics.create_topic(servers, topic)
    with Producer(servers, topic) as sender:
        for tick in random_ticks(1, 2_000):
            sender.publish(tick)
            report = sender.report
            assert report.sent - report.acknowledged <= 50
    assert sender.report.acknowledged == 2_000


def test_messages_that_are_sent_again_keep_their_order_and_come_once(place: Place) -> None:
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    topics.create_topic(servers, topic)
    ticks = random_ticks(1, 6_000)
    with Producer(servers, topic) as sender:
        for number, tick in enumerate(ticks):
            sender.publish(tick)
            if number % 2_000 == 1_000:
                # As if the client had failed with all that it had under way.
                assert sender._client is not None
                sender._client._sender.force_close()
                sender._client._sender.join(30)
    report = sender.report
    assert report.sent == report.acknowledged == 6_000 and report.failed == 0
    messages = read(place)
    assert Counter(message.value for message in messages) == Counter(encode_tick(tick) for tick in ticks)
    for part in range(4):
        numbers = [int(decode_tick(m.value, m.key).id[4:]) for m in messages if m.partition == part]
        assert numbers == sorted(numbers)
