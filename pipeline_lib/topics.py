"""Kafka topics: create, describe, read offsets, peek, read to the end.

Knows Kafka, and nothing about stocks. Called by the producer's and the stream's callers, by verify and by the notebooks;
writes nothing but topics.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.partitioner.default import murmur2
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from pipeline_lib.errors import PipelineError, SettingsError, TopicError, UnavailableError
from pipeline_lib.records import Message

# Kafka's client warns of each of its tries; whoever sets up logging sees it, and nobody else.
logging.getLogger("kafka").addHandler(logging.NullHandler())

Answer = TypeVar("Answer")

# Four: more than the cores of a small machine, fewer than the symbols. Changing it later moves symbols to other
# partitions, which is allowed but makes bars of two partitions.
PARTITIONS = 4

# A week of ticks can be rebuilt or verified.
RETENTION_MS = 7 * 24 * 3_600_000

# Large enough that a bad message of a megabyte arrives, and is seen and kept as a dead letter.
MAX_TOPIC_MESSAGE_BYTES = 2 * 1024 * 1024

TOPIC_CONFIG = {
    # The broker's clock on every message: an event time of 2013 is not deleted by retention, a future one can be told.
    "message.timestamp.type": "LogAppendTime",
    "max.message.bytes": str(MAX_TOPIC_MESSAGE_BYTES),
    "cleanup.policy": "delete",
}

BOOTSTRAP_TIMEOUT_MS = 5_000

# How long one look at the topic may hold up a micro-batch: as long as Spark's own requests.
WATCH_TIMEOUT_MS = 10_000


class TopicInfo(NamedTuple):
    """A topic as the broker describes it. ``id`` changes when a topic is deleted and made again under the same name."""

    name: str
    id: str
    partitions: tuple[int, ...]
    config: dict[str, str]


class OffsetRange(NamedTuple):
    """What a partition holds: messages from ``earliest`` up to, not including, ``latest``."""

    earliest: int
    latest: int


def wait_reachable(servers: str) -> None:
    """Return once a server takes connections. Raises UnavailableError if none does within five seconds.

    Kafka's client would find out by itself, and leave open every socket that it tried with.
    """
    deadline = time.monotonic() + BOOTSTRAP_TIMEOUT_MS / 1_000
    while True:
        for server in servers.split(","):
            host, _, port = server.strip().rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
                return
            except ValueError:
                raise SettingsError(
                    f"cannot reach Kafka at {servers}: {server!r} is no HOST:PORT; correct KAFKA_BOOTSTRAP_SERVERS"
                ) from None
            except OSError as error:
                found = error.strerror or error
        if time.monotonic() > deadline:
            raise UnavailableError(f"cannot reach Kafka at {servers}: {found}; is it running? (`stocks status`)")
        time.sleep(0.2)


@contextlib.contextmanager
def _admin(servers: str) -> Iterator[KafkaAdminClient]:
    wait_reachable(servers)
    with _translated(servers):
        admin = KafkaAdminClient(bootstrap_servers=servers.split(","), bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS)
        try:
            yield admin
        finally:
            admin.close()


@contextlib.contextmanager
def _translated(servers: str) -> Iterator[None]:
    """Turn Kafka's errors into ours; which of them are worth another try is Kafka's own word."""
    try:
        yield
    except kafka_errors.UnknownTopicOrPartitionError as error:
        raise TopicError(f"cannot read the topic: {error}; start the producer, which creates it") from error
    except kafka_errors.KafkaError as error:
        if error.retriable or isinstance(error, kafka_errors.KafkaTimeoutError | kafka_errors.KafkaConnectionError):
            raise UnavailableError(f"cannot reach Kafka at {servers}: {error}; is it running? (`stocks status`)") from error
        raise PipelineError(f"cannot use Kafka at {servers}: {error}") from error


def create_topic(servers: str, topic: str, partitions: int = PARTITIONS, retention_ms: int = RETENTION_MS) -> TopicInfo:
    """Return the topic, which is created if there is none. An existing one is left as it is."""
    options = {"num_partitions": partitions, "replication_factor": -1, "configs": {**TOPIC_CONFIG, "retention.ms": str(retention_ms)}}
    with _admin(servers) as admin, contextlib.suppress(kafka_errors.TopicAlreadyExistsError):
        admin.create_topics({topic: options}, wait_for_metadata=True)
    return describe_topic(servers, topic)


def delete_topic(servers: str, topic: str) -> None:
    """Delete a topic and all that is in it; no topic of that name is no error."""
    with _admin(servers) as admin, contextlib.suppress(kafka_errors.UnknownTopicOrPartitionError):
        admin.delete_topics([topic])


def list_topics(servers: str) -> list[str]:
    """Return the names of all topics but Kafka's own, sorted."""
    with _admin(servers) as admin:
        return sorted(name for name in admin.list_topics() if not name.startswith("__"))


class _NotReadyError(UnavailableError):
    """A topic that was created a moment ago is not known to every answer yet."""


@retry(retry=retry_if_exception_type(_NotReadyError), stop=stop_after_delay(10), wait=wait_random_exponential(0.05, 1), reraise=True)
def describe_topic(servers: str, topic: str) -> TopicInfo:
    """Return what the broker says of a topic. Raises TopicError if there is none."""
    with _admin(servers) as admin:
        found = admin.describe_topics([topic])[0]
        if found["error_code"] == kafka_errors.UnknownTopicOrPartitionError.errno:
            raise TopicError(f"cannot find topic {topic!r} on {servers}: it does not exist; start the producer, which creates it")
        if found["error_code"] or any(part["error_code"] for part in found["partitions"]):
            raise _NotReadyError(f"cannot describe topic {topic!r}: Kafka says error {found['error_code']}; it is not ready yet")
        config = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")["topic"][topic]
    return TopicInfo(
        topic,
        str(uuid.UUID(str(found["topic_id"]))),
        tuple(sorted(part["partition_index"] for part in found["partitions"])),
        {name: entry["value"] for name, entry in config.items()},
    )


def read_offsets(servers: str, topic: str) -> dict[int, OffsetRange]:
    """Return the range of offsets that each partition holds. Raises TopicError if there is no such topic."""
    partitions = [TopicPartition(topic, number) for number in describe_topic(servers, topic).partitions]
    with _admin(servers) as admin:
        earliest = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST))
        latest = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    return {part.partition: OffsetRange(earliest[part].offset, latest[part].offset) for part in partitions}


def find_offsets(servers: str, topic: str, timestamp: int) -> dict[int, int]:
    """Return for each partition the first offset whose message has that time, epoch milliseconds, or a later one; else its end."""
    partitions = [TopicPartition(topic, number) for number in describe_topic(servers, topic).partitions]
    with _admin(servers) as admin:
        found = admin.list_partition_offsets(dict.fromkeys(partitions, max(0, timestamp)))
        latest = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    # Kafka says -1 where every message is earlier.
    return {part.partition: found[part].offset if found[part].offset >= 0 else latest[part].offset for part in partitions}


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that producers give a key: Kafka's own rule, the murmur2 hash of its bytes."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def read_lag(servers: str, topic: str, next_offsets: dict[int, int]) -> dict[int, int]:
    """Return how many messages each partition holds at or after the given next offset."""
    return {
        partition: found.latest - max(next_offsets.get(partition, 0), found.earliest)
        for partition, found in read_offsets(servers, topic).items()
    }


def peek_messages(servers: str, topic: str, count: int = 5, partition: int | None = None) -> list[Message]:
    """Return the last `count` messages of each partition (or of one), oldest first, without disturbing any reader."""
    ranges = {number: found for number, found in read_offsets(servers, topic).items() if partition in (None, number)}
    starts = {number: max(found.earliest, found.latest - count) for number, found in ranges.items()}
    return sorted(
        read_messages(servers, topic, starts, {number: found.latest for number, found in ranges.items()}),
        key=lambda message: (message.partition, message.offset),
    )


def read_messages(servers: str, topic: str, starts: dict[int, int], ends: dict[int, int]) -> Iterator[Message]:
    """Yield the messages of each partition from its start up to, not including, its end.

    Offsets may have holes, so a partition is done when the reader's position has reached its end. Raises UnavailableError
    if nothing comes for 30 seconds.
    """
    parts = {TopicPartition(topic, number): end for number, end in ends.items() if starts.get(number, 0) < end}
    if not parts:
        return
    wait_reachable(servers)
    with _translated(servers):
        consumer = KafkaConsumer(
            bootstrap_servers=servers.split(","),
            bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
            enable_auto_commit=False,
            auto_offset_reset="none",
            allow_auto_create_topics=False,
            max_poll_records=10_000,
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=4 * 1024 * 1024,
        )
        try:
            consumer.assign(list(parts))
            for part in parts:
                consumer.seek(part, starts.get(part.partition, 0))
            quiet_polls = 0
            while parts:
                records = consumer.poll(timeout_ms=1_000)
                quiet_polls = 0 if records else quiet_polls + 1
                if quiet_polls == 30:
                    raise UnavailableError(f"cannot read topic {topic!r} on {servers}: no answer for 30 s; is Kafka running?")
                for part, found in records.items():
                    for record in found:
                        if record.offset < parts.get(part, 0):
                            yield Message(record.partition, record.offset, record.timestamp, record.key, record.value)
                for part in [part for part, end in parts.items() if consumer.position(part) >= end]:
                    del parts[part]
                    consumer.pause(part)
        finally:
            consumer.close()


class TopicWatch:
    """One topic, by its id, looked at again and again over a connection that is kept.

    An id never comes back: if it is still the one after messages were read, all of them came from that topic. Every look
    raises TopicError if the topic is gone or is another one by now, UnavailableError if the broker does not answer.
    """

    def __init__(self, servers: str, topic: str, topic_id: str) -> None:
        self.topic, self.id = topic, topic_id
        self._servers = servers
        self._lock = threading.Lock()
        self._kept: KafkaAdminClient | None = None

    def list_partitions(self) -> set[int]:
        """Return the partitions of the topic."""
        return self._ask(self._look)

    def read_offsets(self) -> dict[int, OffsetRange]:
        """Return the range of offsets that each partition holds."""

        def read(admin: KafkaAdminClient) -> dict[int, OffsetRange]:
            earliest, latest = (self._offsets(admin, spec) for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST))
            return {
                number: OffsetRange(earliest[number].offset, latest[number].offset) for number in sorted(self._look(admin) & set(earliest))
            }

        return self._ask(read)

    def newest_stamp(self) -> int | None:
        """Return the latest time (epoch ms) that any message of the topic bears, None if it holds none."""
        found = self._ask(lambda admin: self._offsets(admin, OffsetSpec.MAX_TIMESTAMP))
        return max((each.timestamp for each in found.values() if each.timestamp >= 0), default=None)

    def close(self) -> None:
        """Give the connection back; a later look makes another."""
        with self._lock:
            self._drop()

    def _ask(self, question: Callable[[KafkaAdminClient], Answer]) -> Answer:
        with self._lock, _translated(self._servers):
            if self._kept is not None:
                try:
                    return question(self._kept)
                except kafka_errors.KafkaError:
                    self._drop()  # the broker ends connections on which nothing was said for minutes: once more on a new one
            wait_reachable(self._servers)
            self._kept = KafkaAdminClient(
                bootstrap_servers=self._servers.split(","), bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS, request_timeout_ms=WATCH_TIMEOUT_MS
            )
            try:
                return question(self._kept)
            except kafka_errors.KafkaError:
                self._drop()
                raise

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _offsets(self, admin: KafkaAdminClient, spec: OffsetSpec) -> dict[int, Any]:
        parts = [TopicPartition(self.topic, number) for number in self._look(admin)]
        return {part.partition: found for part, found in admin.list_partition_offsets(dict.fromkeys(parts, spec)).items()}

    def _look(self, admin: KafkaAdminClient) -> set[int]:
        found = admin.describe_topics([self.topic])[0]
        if found["error_code"] == kafka_errors.UnknownTopicOrPartitionError.errno:
            raise TopicError(f"cannot go on with topic {self.topic!r}: it is gone, it had id {self.id}; {TopicError.way_out}")
        if found["error_code"]:
            raise _NotReadyError(f"cannot describe topic {self.topic!r}: Kafka says error {found['error_code']}; it is not ready yet")
        if (found_id := str(uuid.UUID(str(found["topic_id"])))) != self.id:
            raise TopicError.made_again(self.topic, found_id, self.id)
        return {part["partition_index"] for part in found["partitions"]}


class Tail:
    """A reader that stays at the end of a topic: each poll returns what came since the last one.

    Starts `back` messages before the end of every partition, so that the last word on a quiet topic is heard.
    """

    def __init__(self, servers: str, topic: str, back: int = 1) -> None:
        ranges = read_offsets(servers, topic)
        self._servers = servers
        with _translated(servers):
            self._consumer = KafkaConsumer(
                bootstrap_servers=servers.split(","),
                bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
                enable_auto_commit=False,
                auto_offset_reset="latest",
                allow_auto_create_topics=False,
            )
            self._consumer.assign([TopicPartition(topic, number) for number in ranges])
            for number, found in ranges.items():
                self._consumer.seek(TopicPartition(topic, number), max(found.earliest, found.latest - back))

    def poll(self, timeout_ms: int = 500) -> list[Message]:
        """Return the messages that came since the last poll, waiting at most `timeout_ms` for the first."""
        with _translated(self._servers):
            records = self._consumer.poll(timeout_ms=timeout_ms)
        return [Message(r.partition, r.offset, r.timestamp, r.key, r.value) for found in records.values() for r in found]

    def close(self) -> None:
        """Give the connection back."""
        self._consumer.close()
