"""Recompute the bars from the topic, without Spark and without PostgreSQL, and compare them with the stored ones.

The second opinion: it shares the grammar with the stream and nothing else. It is given messages and a snapshot, and
reads neither Kafka nor PostgreSQL itself. Called by pipeline.py.

Prices, counts and times are compared exactly. Sums of fractions, vwap and mean_price to a relative 1e-9, since
different cuts of one bar give different last digits; price_stddev likewise, or to 1e-9 of the price.
is_final, revision, late_tick_count and updated_at depend on when ticks came, and are no part of it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline_lib.errors import MessageError
from pipeline_lib.records import Message, Tick, decode_tick

RELATIVE_TOLERANCE = 1e-9

_EXACT = (
    "window_end",
    "open",
    "high",
    "low",
    "close",
    "tick_count",
    "trade_count",
    "poll_count",
    "first_event_time",
    "open_partition",
    "open_offset",
    "last_event_time",
    "close_partition",
    "close_offset",
    "last_receipt_time",
    "previous_close",
)
_CLOSE = ("volume", "notional", "vwap", "mean_price")
MAX_SHOWN = 20


class Difference(NamedTuple):
    """One value of one bar that is not what the topic says. ``expected`` is recomputed, ``found`` is stored."""

    symbol: str
    window_start: str
    column: str
    expected: Any
    found: Any


class VerifyReport(NamedTuple):
    """What the comparison found. ``left_out`` are bars whose first ticks retention has removed from the topic."""

    messages: int
    good: int
    dead_letters: int
    bars: int
    differing_bars: int
    differences: list[Difference]
    account_faults: list[str]
    left_out: list[str]
    offsets: dict[int, int]
    unread: int = 0  # messages after the stored offsets: neither compared nor wrong

    @property
    def equal(self) -> bool:
        """Whether the table is what the topic says, bar for bar, and every message is accounted for."""
        return not self.differing_bars and not self.account_faults

    def __str__(self) -> str:
        return (
            f"{self.messages:,} messages: {self.good:,} ticks and {self.dead_letters:,} dead letters; "
            f"{self.bars:,} bars compared, {self.differing_bars:,} differ"
        )


class _Bar:
    """The ticks of one bar, as columns, until it is computed."""

    __slots__ = ("closing", "last_receipt_time", "news", "opening", "polls", "previous_close", "prices", "volumes")

    def __init__(self) -> None:
        self.prices, self.volumes, self.news = array("d"), array("d"), array("d")
        self.polls = 0
        self.opening: tuple[int, int, int, float] = (2**63, 0, 0, 0.0)
        self.closing: tuple[int, int, int, float] = (-1, 0, 0, 0.0)
        self.last_receipt_time = 0
        self.previous_close = -math.inf

    def add(self, tick: Tick, partition: int, offset: int) -> None:
        place = (tick.event_time, partition, offset, tick.price)
        if place < self.opening:
            self.opening = place
        if place > self.closing:
            self.closing = place
        self.prices.append(tick.price)
        self.volumes.append(tick.volume or 0.0)
        if tick.repeat == "unchanged":
            self.polls += 1
        else:
            self.news.append(tick.price)
        if tick.receipt_time > self.last_receipt_time:
            self.last_receipt_time = tick.receipt_time
        if tick.previous_close is not None and tick.previous_close > self.previous_close:
            self.previous_close = tick.previous_close

    def row(self) -> dict[str, Any]:
        prices, volumes, news = np.frombuffer(self.prices), np.frombuffer(self.volumes), np.frombuffer(self.news)
        volume, notional = math.fsum(volumes), math.fsum(prices * volumes)
        return {
            "open": self.opening[3],
            "high": float(prices.max()),
            "low": float(prices.min()),
            "close": self.closing[3],
            "tick_count": len(news),
            "trade_count": int((volumes > 0).sum()),
            "poll_count": self.polls,
            "first_event_time": self.opening[0],
            "open_partition": self.opening[1],
            "open_offset": self.opening[2],
            "last_event_time": self.closing[0],
            "close_partition": self.closing[1],
            "close_offset": self.closing[2],
            "last_receipt_time": self.last_receipt_time,
            "previous_close": self.previous_close if self.previous_close > -math.inf else None,
            "volume": volume,
            "notional": notional,
            "vwap": notional / volume if volume else None,
            "mean_price": math.fsum(news) / len(news) if len(news) else None,
            "price_stddev": float(news.std(ddof=1)) if len(news) > 1 else None,
        }


class Recomputed(NamedTuple):
    """The bars of the topic, and what each partition held: (good, dead) messages."""

    bars: dict[tuple[str, int], dict[str, Any]]
    counts: dict[int, tuple[int, int]]


def recompute_bars(messages: Iterable[Message], window_ms: int) -> Recomputed:
    """Return the bars that the messages come to, keyed by symbol and window start (epoch ms)."""
    bars: dict[tuple[str, int], _Bar] = {}
    good: dict[int, int] = {}
    dead: dict[int, int] = {}
    for partition, offset, timestamp, key, value in messages:
        try:
            tick = decode_tick(value, key, timestamp)
        except MessageError:
            dead[partition] = dead.get(partition, 0) + 1
            continue
        good[partition] = good.get(partition, 0) + 1
        place = tick.symbol, tick.event_time - tick.event_time % window_ms
        bar = bars.get(place)
        if bar is None:
            bar = bars[place] = _Bar()
        bar.add(tick, partition, offset)
    rows = {place: {**bar.row(), "window_end": place[1] + window_ms} for place, bar in bars.items()}
    return Recomputed(rows, {number: (good.get(number, 0), dead.get(number, 0)) for number in {*good, *dead}})


def compare_bars(recomputed: Recomputed, stored: pd.DataFrame, offsets: pd.DataFrame) -> VerifyReport:
    """Return the report of comparing recomputed bars with the stored ones.

    `stored` has the columns of stock_aggregates; `offsets` those of stream_offsets and two more: `kept_dead_letters`, how
    many rows there are in dead_letters, and `earliest`, the first offset that the partition still holds.
    """
    earliest = {int(part): int(offset) for part, offset in zip(offsets["partition"], offsets["earliest"], strict=True)}
    found = {(row["symbol"], row["window_start"]): row for row in _in_ms(stored).to_dict("records")}
    left_out = _bars_cut_by_retention(found, offsets, earliest)
    differences: list[Difference] = []
    differing = 0
    for place in sorted({*found, *recomputed.bars} - left_out):
        faults = list(_compare(place, recomputed.bars.get(place), found.get(place)))
        differing += bool(faults)
        differences += faults[: max(0, MAX_SHOWN - len(differences))]
    good = sum(count[0] for count in recomputed.counts.values())
    dead = sum(count[1] for count in recomputed.counts.values())
    return VerifyReport(
        messages=good + dead,
        good=good,
        dead_letters=dead,
        bars=len({*found, *recomputed.bars} - left_out),
        differing_bars=differing,
        differences=differences,
        account_faults=_account_faults(recomputed.counts, offsets, earliest),
        left_out=[f"{symbol} {_utc(start)}" for symbol, start in sorted(left_out)],
        offsets={int(partition): int(offset) for partition, offset in zip(offsets["partition"], offsets["next_offset"], strict=True)},
    )


def _in_ms(bars: pd.DataFrame) -> pd.DataFrame:
    bars = bars.copy()
    for name in bars.columns:
        if isinstance(bars[name].dtype, pd.DatetimeTZDtype):
            bars[name] = bars[name].astype("int64") // 1_000
    return bars


def _compare(place: tuple[str, int], expected: dict[str, Any] | None, found: dict[str, Any] | None) -> Iterable[Difference]:
    symbol, start = place[0], _utc(place[1])
    if expected is None or found is None:
        yield Difference(symbol, start, "bar", "present" if expected else "absent", "present" if found else "absent")
        return
    for column in _EXACT:
        if _value(expected[column]) != _value(found[column]):
            yield Difference(symbol, start, column, expected[column], found[column])
    for column in (*_CLOSE, "price_stddev"):
        ours, theirs = _value(expected[column]), _value(found[column])
        scale = expected["high"] if column == "price_stddev" else 0.0
        if (ours is None) != (theirs is None) or (ours is not None and not _near(ours, theirs, scale)):
            yield Difference(symbol, start, column, ours, theirs)


def _near(ours: float, theirs: float, scale: float) -> bool:
    return math.isclose(ours, theirs, rel_tol=RELATIVE_TOLERANCE, abs_tol=RELATIVE_TOLERANCE * scale)


def _value(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _bars_cut_by_retention(found: dict[tuple[str, int], Any], offsets: pd.DataFrame, earliest: dict[int, int]) -> set[tuple[str, int]]:
    """Return the bars that removed messages may have been part of.

    They are those whose open or close has gone, and every earlier bar of the same symbol.
    """
    first = dict(zip(offsets["partition"], offsets["first_offset"], strict=True))
    lost = {partition: start for partition, start in earliest.items() if start > first.get(partition, start)}
    last_cut: dict[str, int] = {}
    for (symbol, start), bar in found.items():
        places = (bar["open_partition"], bar["open_offset"]), (bar["close_partition"], bar["close_offset"])
        if any(offset < lost.get(partition, -1) for partition, offset in places):
            last_cut[symbol] = max(start, last_cut.get(symbol, start))
    return {(symbol, start) for symbol, start in found if start <= last_cut.get(symbol, -1)}


def _account_faults(counts: dict[int, tuple[int, int]], offsets: pd.DataFrame, earliest: dict[int, int]) -> list[str]:
    faults = []
    for row in offsets.to_dict("records"):
        partition = row["partition"]
        if earliest.get(partition, 0) > row["first_offset"]:
            continue
        stored, ours = (row["good_count"], row["dead_letter_count"]), counts.get(partition, (0, 0))
        if stored != ours:
            faults.append(f"partition {partition}: {stored[0]} good and {stored[1]} dead are stored, the topic has {ours[0]} and {ours[1]}")
        if row["kept_dead_letters"] + row["pruned_letter_count"] != ours[1]:
            faults.append(
                f"partition {partition}: {row['kept_dead_letters']} dead letters are kept, {row['pruned_letter_count']} pruned, "
                f"the topic has {ours[1]}"
            )
    return faults


def _utc(milliseconds: int) -> str:
    return pd.Timestamp(milliseconds, unit="ms", tz="UTC").strftime("%Y-%m-%d %H:%M:%S")
