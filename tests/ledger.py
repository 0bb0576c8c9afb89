"""What a feed was told is acknowledged, and in plain Python what the tables have to be for it.

It shares nothing with the stream and nothing with verify: a message is good or bad because the test that sends it says
so, and a bar is a handful of sums. Tables are compared up to the offsets that they say themselves to have consumed, so
equality can be asked at any instant, right after a kill too.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from kafka import KafkaProducer
from runs import SYMBOLS, assert_eventually

from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.records import Tick, encode_key, encode_tick

BARS = (
    "select symbol, extract(epoch from window_start)::bigint * 1000 as start, open, high, low, close, volume, notional, tick_count,"
    " trade_count, poll_count from stock_aggregates"
)


class Entry(NamedTuple):
    """A message that the broker acknowledged; ``tick`` is None where it was sent to be a dead letter."""

    partition: int
    offset: int
    tick: Tick | None


class Ledger:
    """The acknowledged messages of one topic, and a producer of its own that writes them down."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.entries: list[Entry] = []
        servers = pipeline.servers_of(settings)
        topics.create_topic(servers, settings.kafka_topic)
        self._kafka = KafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True, linger_ms=5, max_request_size=4 << 20)

    def send(self, ticks: Iterable[Tick]) -> None:
        """Publish good ticks, and return when all are acknowledged."""
        self._settle([(self._kafka.send(self.settings.kafka_topic, encode_tick(tick), encode_key(tick.symbol)), tick) for tick in ticks])

    def send_bad(self, messages: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Publish (value, key) pairs that are no ticks, and return when all are acknowledged."""
        self._settle([(self._kafka.send(self.settings.kafka_topic, value, key), None) for value, key in messages])

    def _settle(self, sent: list[tuple[Any, Tick | None]]) -> None:
        for future, tick in sent:
            told = future.get(timeout=150)
            self.entries.append(Entry(told.partition, told.offset, tick))

    def close(self) -> None:
        """Disconnect."""
        self._kafka.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # the model

    def bars(self, ends: dict[int, int]) -> dict[tuple[str, int], dict[str, Any]]:
        """Return the bars of what was acknowledged before these offsets, by symbol and start of the window in epoch ms."""
        width = self.settings.window_ms
        groups: dict[tuple[str, int], list[tuple[tuple[int, int, int], Tick]]] = {}
        for partition, offset, tick in _before(list(self.entries), ends):
            if tick is not None:
                place = tick.symbol, tick.event_time // width * width
                groups.setdefault(place, []).append(((tick.event_time, partition, offset), tick))
        return {place: _bar(group) for place, group in groups.items()}

    def assert_kept(self, *, all_of_it: bool = False) -> int:
        """Assert that the tables are what the model says up to the offsets they tell; return how many messages those are.

        With `all_of_it` they have to tell all that was acknowledged.
        """
        store = pipeline.open_store(self.settings)
        try:
            with store._transaction(read_only=True, repeatable=True) as cursor:  # one instant, while a stream goes on
                cursor.execute("select partition, next_offset, good_count, dead_letter_count from stream_offsets")
                accounts = {partition: (next_offset, good, dead) for partition, next_offset, good, dead in cursor.fetchall()}
                cursor.execute("select partition, count(*) from dead_letters group by partition")
                letters = dict(cursor.fetchall())
                cursor.execute(BARS)
                names = [column.name for column in cursor.description]
                rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        finally:
            store.close()
        ends = {partition: account[0] for partition, account in accounts.items()}
        # A stream may have a message before the feed has read its acknowledgement.
        entries = assert_eventually(lambda: list(self.entries), lambda seen: len(_before(seen, ends)) >= sum(ends.values()), seconds=30)
        if all_of_it:
            assert sum(ends.values()) == len(entries)
        entries = _before(entries, ends)
        for partition, (end, good, dead) in accounts.items():
            before = [entry for entry in entries if entry.partition == partition]
            assert sorted(entry.offset for entry in before) == list(range(end)), f"partition {partition}: not 0 to {end}"
            expected = sum(entry.tick is not None for entry in before)
            assert (good, dead, letters.get(partition, 0)) == (expected, len(before) - expected, len(before) - expected), partition
        _assert_same({(row.pop("symbol"), row.pop("start")): row for row in rows}, self.bars(ends))
        return sum(ends.values())


def _before(entries: list[Entry], ends: dict[int, int]) -> list[Entry]:
    return [entry for entry in entries if entry.offset < ends.get(entry.partition, 0)]


def _bar(group: list[tuple[tuple[int, int, int], Tick]]) -> dict[str, Any]:
    ticks = [tick for _, tick in sorted(group, key=lambda each: each[0])]
    polls = sum(tick.repeat == "unchanged" for tick in ticks)
    return {
        "open": ticks[0].price,
        "high": max(tick.price for tick in ticks),
        "low": min(tick.price for tick in ticks),
        "close": ticks[-1].price,
        "volume": math.fsum(tick.volume or 0 for tick in ticks),
        "notional": math.fsum(tick.price * (tick.volume or 0) for tick in ticks),
        "tick_count": len(ticks) - polls,
        "trade_count": sum((tick.volume or 0) > 0 for tick in ticks),
        "poll_count": polls,
    }


def _assert_same(found: dict[Any, dict[str, Any]], expected: dict[Any, dict[str, Any]]) -> None:
    assert sorted(found) == sorted(expected)
    for place, bar in expected.items():
        for name, value in bar.items():
            is_same = (
                math.isclose(found[place][name], value, rel_tol=1e-9) if name in ("volume", "notional") else found[place][name] == value
            )
            assert is_same, (place, name, found[place][name], value)


def live_ticks(seed: int) -> Iterator[Tick]:
    """Yield ticks without end, of now and a little before, in some disorder and with some that are hours late."""
    dice = random.Random(seed)
    number = 0
    while True:
        number += 1
        now = time.time_ns() // 1_000_000
        back = dice.choice([0, 0, 0, dice.randint(0, 2_000), dice.randint(0, 7_200_000) if dice.random() < 0.1 else 5])
        yield Tick(
            schema=1,
            id=f"led{seed}-{number}",
            kind="trade",
            symbol=dice.choice(SYMBOLS),
            price=round(dice.uniform(90, 110), 2),
            volume=float(dice.choice([0, 1, 100, 250])),
            event_time=now - back,
            receipt_time=now,
            source="simulated",
            repeat=dice.choice([None, None, None, "unchanged"]),
        )


class LiveFeed:
    """A thread that publishes live ticks into a ledger until the context is left, a bad one among them now and then."""

    def __init__(self, ledger: Ledger, seed: int, rate: float = 300.0) -> None:
        self.ledger, self._rate = ledger, rate
        self._ticks = live_ticks(seed)
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ledger-feed", daemon=True)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(0.1):
                self.ledger.send(islice(self._ticks, round(self._rate / 10)))
                self.ledger.send_bad([(b"not JSON", b"AAPL")] * max(1, round(self._rate / 500)))
        except BaseException as error:
            self._error = error

    def __enter__(self) -> LiveFeed:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
