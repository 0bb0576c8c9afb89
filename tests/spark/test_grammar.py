"""One grammar, said twice: Spark and Python agree on every message, good or bad, and on what a good one says."""

from __future__ import annotations

import datetime as dt
import random
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import BAD, GOOD_ONES, NOW
from pyspark.sql import SparkSession
from ticks import ticks

from pipeline_lib.bars import PLAIN_PATTERN, parse_ticks
from pipeline_lib.errors import MessageError
from pipeline_lib.records import MIN_TIME, Tick, decode_tick, encode_key, encode_tick

MESSAGE_COLUMNS = "key binary, value binary, partition int, offset long, timestamp timestamp"
FIELDS = [name for name in Tick.__struct_fields__ if name != "conditions"]

CLOCK = dt.datetime.fromtimestamp(NOW / 1000)

Pair = tuple[bytes | None, bytes | None]


def spark_ticks(session: SparkSession, pairs: list[Pair]) -> list[dict[str, Any] | None]:
    """Return for each (value, key) the fields that Spark reads, or None where it finds no tick."""
    rows = [(key, value, 0, number, CLOCK) for number, (value, key) in enumerate(pairs)]
    parsed = parse_ticks(session.createDataFrame(rows, MESSAGE_COLUMNS)).select("offset", *(f"tick.{name}" for name in FIELDS))
    found = {row["offset"]: row.asDict() for row in parsed.collect()}
    return [None if row["symbol"] is None else {name: row[name] for name in FIELDS} for _, row in sorted(found.items())]


def python_tick(value: bytes | None, key: bytes | None) -> dict[str, Any] | None:
    try:
        tick = decode_tick(value, key, NOW)
    except MessageError:
        return None
    return {name: getattr(tick, name) for name in FIELDS}


def test_spark_refuses_every_kind_of_bad_message(session: SparkSession) -> None:
    pairs: list[Pair] = [(value, b"AAPL" if key is ... else key) for value, key in BAD.values()]
    taken = [name for name, tick in zip(BAD, spark_ticks(session, pairs), strict=True) if tick is not None]
    assert taken == []


def test_spark_takes_every_kind_of_good_message_and_reads_the_same(session: SparkSession) -> None:
    pairs: list[Pair] = list(GOOD_ONES.values())
    for name, tick, pair in zip(GOOD_ONES, spark_ticks(session, pairs), pairs, strict=True):
        assert tick == python_tick(*pair), name


@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(ticks(st.integers(MIN_TIME, NOW)), min_size=30, max_size=60))
def test_spark_and_python_read_the_same_from_any_tick(session: SparkSession, some: list[Tick]) -> None:
    pairs: list[Pair] = [(encode_tick(tick), encode_key(tick.symbol)) for tick in some]
    assert spark_ticks(session, pairs) == [python_tick(*pair) for pair in pairs]


@given(ticks(st.integers(MIN_TIME, NOW)))
def test_what_a_producer_writes_goes_the_short_way(tick: Tick) -> None:
    assert re.search(PLAIN_PATTERN, encode_tick(tick).decode())


@pytest.mark.parametrize("seed", range(5))
def test_spark_and_python_agree_on_messages_with_bytes_changed_at_random(session: SparkSession, seed: int) -> None:
    dice = random.Random(seed)
    pieces = [
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\\",
        b"0",
        b"-",
        b".",
        b"e",
        b"null",
        b"true",
        b" ",
        b"\n",
        b"\xff",
        b"\xc3",
        b"NaN",
        b"'",
    ]
    sources = [value for value, _ in (*GOOD_ONES.values(), *BAD.values()) if value and len(value) < 900]
    pairs: list[Pair] = []
    for _ in range(4_000):
        value = bytearray(dice.choice(sources))
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(value) + 1)
            value[at : at + dice.choice([0, 0, 1, 1, 2, 8])] = dice.choice(pieces)
        pairs.append((bytes(value), b"AAPL"))
    for pair, tick in zip(pairs, spark_ticks(session, pairs), strict=True):
        assert tick == python_tick(*pair), pair[0]
