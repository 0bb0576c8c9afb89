"""A batch that is filled the short way is the batch that kafka-python fills, to the last byte and after any interrupt."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from types import FrameType

import pytest
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from pipeline_lib.batch_client import key_bytes, write_behind

MAX_BYTES = 64 * 1024
NOW = 1_763_900_000_000


def new_batch(key: bytes, value: bytes, now_ms: int) -> MemoryRecordsBuilder:
    """Return a batch of the newest format, without compression, that holds one message."""
    records = MemoryRecordsBuilder(2, 0, MAX_BYTES)
    records.append(now_ms, key, value, [])
    return records


def closed(records: MemoryRecordsBuilder) -> bytes:
    records.set_producer_state(7, 1, 0, False)
    records.close()
    return bytes(records.buffer())


def random_messages(dice: random.Random) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield keys, values and times: mostly small and close together, some of the lengths at which a varint grows."""
    now = NOW
    while True:
        now += dice.choice([0] * 60 + [1, 63, 64, -1, 5_000])
        length = dice.choice([0, 1, 62, 63, 64, 170, 8_191, *(dice.randint(0, 600) for _ in range(60))])
        yield dice.randbytes(dice.choice([0, 4, 63, 64, 100])), dice.randbytes(length), now


@pytest.mark.parametrize("seed", range(30))
def test_a_batch_filled_the_short_way_is_byte_for_byte_what_kafka_python_makes(seed: int) -> None:
    messages = random_messages(random.Random(seed))
    first = next(messages)
    theirs, ours = new_batch(*first), new_batch(*first)
    places = []
    for key, value, now_ms in messages:
        found = theirs.append(now_ms, key, value, [])
        place = write_behind(ours, key_bytes(key), value, MAX_BYTES, now_ms)
        if found is None:
            assert place is None
            break
        if place is None:
            assert ours.append(now_ms, key, value, []).offset == found.offset  # what cannot go the short way is sent
        else:
            assert place == found.offset
            places.append(place)
        assert (ours.next_offset(), ours.size_in_bytes()) == (theirs.next_offset(), theirs.size_in_bytes())
    assert places
    assert closed(ours) == closed(theirs)


def test_nothing_is_written_into_a_batch_that_is_closed() -> None:
    records = new_batch(b"AAPL", b"1", NOW)
    records.close()
    assert write_behind(records, key_bytes(b"AAPL"), b"2", MAX_BYTES, NOW) is None


class _InterruptError(Exception):
    pass


def test_an_interrupt_at_any_instant_leaves_whole_messages() -> None:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise _InterruptError

    key, value, dice = key_bytes(b"AAPL"), b"x" * 20, random.Random(1)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            records = new_batch(b"AAPL", value, NOW)
            with contextlib.suppress(_InterruptError):
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-5, 3e-4))
                while write_behind(records, key, value, 1 << 30, NOW) is not None or records.next_offset() == 4_096:
                    pass
            count = records.next_offset()
            batch = MemoryRecords(closed(records)).next_batch()
            assert [record.offset for record in batch] == list(range(count))
            assert {(record.key, record.value) for record in batch} <= {(b"AAPL", value)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
