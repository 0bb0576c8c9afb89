"""Kafka's client with a short way in: a message that follows others is written behind them, into their batch.

kafka-python's `send` takes some 20 µs of processor time for each message, most of it for a future, locks and checks of its
own. Here only the message that opens a batch is sent so: that chooses the partition, makes the batch, and wakes up the thread
that sends it. What follows while the batch is open and has room is written behind it as kafka-python would, byte for byte and
under its lock, and shares the batch's future. All that becomes of a batch, kafka-python does.

It reaches into private parts of kafka-python, of the version that pyproject.toml pins; a test compares the bytes. What cannot go
the short way is sent as always. It counts nothing and repeats nothing. Called by `producer`.
"""

from __future__ import annotations

import time
from threading import Lock

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.producer.future import FutureProduceResult
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import encode_varint

# Keys are symbols, of which there are thousands at most; anybody may send others.
MAX_KEYS = 10_000


def _varint(number: int) -> bytes:
    written = bytearray()
    encode_varint(number, written.append)
    return bytes(written)


# Of lengths, places in a batch and milliseconds since its first message; what goes beyond is sent, not written.
_BEYOND = 4_096
_VARINTS = tuple(_varint(number) for number in range(_BEYOND))


def write_behind(records: MemoryRecordsBuilder, key: bytes, value: bytes, max_bytes: int, now_ms: int) -> int | None:
    """Write a message behind the first one of a batch; return its place in it, None if the batch is closed or full.

    `key` is the message's key with its length before it, as `key_bytes` returns it. The lock of the partition has to be held.
    """
    builder = records._builder
    if builder is None:
        return None
    place = records._next_offset
    since_first = now_ms - builder._first_timestamp
    if place >= _BEYOND or len(key) + len(value) >= _BEYOND - 10 or not 0 <= since_first < _BEYOND:
        return None
    body = b"".join((b"\0", _VARINTS[since_first], _VARINTS[place], key, _VARINTS[len(value)], value, b"\0"))
    record = _VARINTS[len(body)] + body
    written = builder._buffer
    if len(written) + len(record) > max_bytes:
        return None
    count, latest = builder._num_records + 1, max(builder._max_timestamp, now_ms)
    # Nothing is called in these lines, so that no interrupt (Ctrl-C) comes between them and leaves half a message.
    written += record
    builder._num_records = count
    builder._last_offset = place
    builder._max_timestamp = latest
    records._next_offset = place + 1
    return place


def key_bytes(key: bytes) -> bytes:
    """Return a key as it stands in a batch."""
    return _varint(len(key)) + key


def error_of(future: FutureProduceResult, place: int) -> KafkaError | None:
    """Return what a message of a batch that is done has failed with, None if the broker has acknowledged it."""
    if future.exception is not None:
        return future.exception
    errors = future.value[2]
    return None if errors is None else errors(place)


class _OpenBatch:
    """The latest batch of a partition that was opened here."""

    __slots__ = ("future", "lock", "records")

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.records: MemoryRecordsBuilder | None = None
        self.future: FutureProduceResult | None = None


class BatchClient(KafkaProducer):
    """Kafka's client for one topic; `settings` are kafka-python's."""

    def __init__(self, topic: str, **settings: object) -> None:
        super().__init__(**settings)
        self._topic = topic
        self._open: dict[int, _OpenBatch] = {}
        self._partitions = 0
        self._homes: dict[bytes, tuple[bytes, _OpenBatch]] = {}

    def add(self, key: bytes | None, value: bytes | None) -> tuple[FutureProduceResult, int]:
        """Return the future of the batch that has taken the message, and the message's place in it, from 0.

        Raises what `send` raises, and also at once what a send's future has failed with at once.
        """
        if key is not None and value is not None and (home := self._homes.get(key)) is not None:
            bytes_of_key, batch = home
            with batch.lock:
                place = write_behind(batch.records, bytes_of_key, value, self.config["batch_size"], int(time.time() * 1_000))
                if place is not None:
                    return batch.future, place
        return self._open_batch(key, value)

    def _open_batch(self, key: bytes | None, value: bytes | None) -> tuple[FutureProduceResult, int]:
        """Send a message, and remember the batch that it was put into, so that others can be written behind it."""
        sent = self.send(self._topic, value, key)
        if sent.failed():
            raise sent.exception
        future: FutureProduceResult = sent._produce_future
        where = future.topic_partition
        # Where a key belongs changes with the number of partitions.
        partitions = len(self.partitions_for(self._topic))
        if partitions != self._partitions or len(self._homes) >= MAX_KEYS:
            self._homes.clear()
            self._partitions = partitions
        lock = self._accumulator._tp_lock(where)
        with lock:
            waiting = self._accumulator._batches.get(where)
            # The thread that sends may have taken it already.
            if waiting and waiting[-1].produce_future is future:
                batch = self._open.setdefault(where.partition, _OpenBatch(lock))
                batch.records, batch.future = waiting[-1].records, future
                if key is not None:
                    self._homes[key] = key_bytes(key), batch
        return future, sent.args[0]
