"""One grammar, said twice: Spark and Python agree on every message, good or bad, and on what a good one says."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import BAD, GOOD_ONES, NOW
from pyspark.sql import DataFrame, SparkSession
from ticks import ticks

from pipeline_lib.bars import BAR_FIELDS, parse_plain, parse_ticks
from pipeline_lib.errors import MessageError
from pipeline_lib.records import MIN_TIME, Tick, decode_tick, encode_key, encode_tick, tick_from_quote, tick_from_trade

MESSAGE_COLUMNS = "key binary, value binary, partition int, offset long, timestamp timestamp"
FIELDS = [name for name in Tick.__struct_fields__ if name != "conditions"]

CLOCK = dt.datetime.fromtimestamp(NOW / 1000)

Pair = tuple[bytes | None, bytes | None]

# What sources make: a trade, a quote, a poll that brought nothing new.
TRADE = tick_from_trade({"s": "AAPL", "p": 187.25, "t": NOW, "v": 0.5, "c": ["1", "12"]}, id="ws-1-a", receipt_time=NOW)
QUOTE = tick_from_quote(
    "AAPL",
    {"c": 187, "o": 186.5, "h": 188.123456, "l": 186.0, "pc": 185.9, "d": -1.1, "dp": -0.59, "t": NOW // 1000},
    id="rest-1-1",
    receipt_time=NOW,
)
POLL = tick_from_quote("AAPL", {"c": 187.0, "t": NOW // 1000}, id="rest-1-2", receipt_time=NOW, repeat="unchanged")
OURS = [encode_tick(tick) for tick in (TRADE, QUOTE, POLL)]


def spark_ticks(session: SparkSession, pairs: list[Pair]) -> list[dict[str, Any] | None]:
    """Return for each (value, key) the fields that Spark reads, or None where it finds no tick.

    What the short way of a message reads is the same; what it cannot read it leaves to the long one.
    """
    rows = [(key, value, 0, number, CLOCK) for number, (value, key) in enumerate(pairs)]
    messages = session.createDataFrame(rows, MESSAGE_COLUMNS)
    long, short = _read(parse_ticks(messages), FIELDS), _read(parse_plain(messages), BAR_FIELDS)
    for (value, _), tick, plain in zip(pairs, long, short, strict=True):
        assert plain is None or (tick is not None and plain == {name: tick[name] for name in BAR_FIELDS}), value
    return long


def _read(parsed: DataFrame, fields: Sequence[str]) -> list[dict[str, Any] | None]:
    found = {row["offset"]: row.asDict() for row in parsed.select("offset", *(f"tick.{name}" for name in fields)).collect()}
    return [None if row["symbol"] is None else {name: row[name] for name in fields} for _, row in sorted(found.items())]


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


def test_what_a_producer_writes_goes_the_short_way(session: SparkSession) -> None:
    rows = [(b"AAPL", value, 0, number, CLOCK) for number, value in enumerate(OURS)]
    read = _read(parse_plain(session.createDataFrame(rows, MESSAGE_COLUMNS)), BAR_FIELDS)
    assert read == [{name: getattr(tick, name) for name in BAR_FIELDS} for tick in (TRADE, QUOTE, POLL)]


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
    sources = [value for value, _ in (*GOOD_ONES.values(), *BAD.values()) if value and len(value) < 900] + 20 * OURS
    pairs: list[Pair] = []
    for _ in range(4_000):
        value = bytearray(dice.choice(sources))
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(value) + 1)
            value[at : at + dice.choice([0, 0, 1, 1, 2, 8])] = dice.choice(pieces)
        pairs.append((bytes(value), b"AAPL"))
    for pair, tick in zip(pairs, spark_ticks(session, pairs), strict=True):
        assert tick == python_tick(*pair), pair[0]
