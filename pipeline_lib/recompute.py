"""Recompute the bars from messages, without Spark and without PostgreSQL, in pieces that merge.

It shares the grammar with the stream and nothing else: its sums and its merge are its own. It is given messages, and
reads none. Several processes may each do a part of a topic; audit.py hands these out and merges what comes back.

What is held does not grow with the ticks of a bar, and 16 bytes a message tell which ids came before. A sum is that of
exact sums of a few hundred values each, of one sign: it differs from the exact one by far less than the 1e-9 compared to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline_lib.errors import MessageError
from pipeline_lib.records import Message, Tick, decode_tick

TICKS_A_FOLD = 512
IDS_A_BLOCK = 65_536

Place = tuple[str, int]  # a bar: symbol, window start in epoch milliseconds


class Scope(NamedTuple):
    """What is asked about: bars whose window lies within [since, until], in epoch milliseconds, of some symbols; None is all."""

    since: int | None = None
    until: int | None = None
    symbols: frozenset[str] | None = None

    @property
    def is_all(self) -> bool:
        """Whether every bar is asked about."""
        return self == Scope()

    def holds(self, symbol: str, start: int, window_ms: int) -> bool:
        """Return whether that bar is asked about."""
        return (
            (self.since is None or start >= self.since)
            and (self.until is None or start + window_ms <= self.until)
            and (self.symbols is None or symbol in self.symbols)
        )


class Bar:
    """What the ticks of one bar come to; it takes one tick at a time, or all of another part of the same bar."""

    __slots__ = (
        "closing",
        "high",
        "last_receipt_time",
        "low",
        "mean",
        "news",
        "notional",
        "opening",
        "polls",
        "previous_close",
        "prices",
        "squares",
        "ticks",
        "trades",
        "volume",
        "volumes",
    )

    def __init__(self) -> None:
        # Not folded yet: prices and volumes of all ticks, and prices of those that are no unchanged poll.
        self.prices: list[float] = []
        self.volumes: list[float] = []
        self.news: list[float] = []
        # (event time, partition, offset, price) of the first and the last tick.
        self.opening: tuple[int, int, int, float] = (2**63, 0, 0, 0.0)
        self.closing: tuple[int, int, int, float] = (-1, 0, 0, 0.0)
        self.high, self.low = -math.inf, math.inf
        self.volume = self.notional = self.mean = self.squares = 0.0
        self.ticks = self.trades = self.polls = self.last_receipt_time = 0
        self.previous_close = -math.inf

    def add(self, tick: Tick, partition: int, offset: int) -> None:
        """Take one tick, which lies at that partition and offset."""
        price = tick.price
        place = (tick.event_time, partition, offset, price)
        if place < self.opening:
            self.opening = place
        if place > self.closing:
            self.closing = place
        self.prices.append(price)
        self.volumes.append(tick.volume or 0.0)
        if tick.repeat == "unchanged":
            self.polls += 1
        else:
            self.news.append(price)
        if tick.receipt_time > self.last_receipt_time:
            self.last_receipt_time = tick.receipt_time
        if tick.previous_close is not None and tick.previous_close > self.previous_close:
            self.previous_close = tick.previous_close
        if len(self.prices) >= TICKS_A_FOLD:
            self.fold()

    def fold(self) -> Bar:
        """Return the bar, after adding up what has been taken since the last time."""
        if self.prices:
            self.high, self.low = max(self.high, *self.prices), min(self.low, *self.prices)
            self.volume += math.fsum(self.volumes)
            self.notional += math.fsum(map(mul, self.prices, self.volumes))
            self.trades += sum(volume > 0 for volume in self.volumes)
            if self.news:
                mean = math.fsum(self.news) / len(self.news)
                self._join(len(self.news), mean, math.fsum((price - mean) ** 2 for price in self.news))
            self.prices, self.volumes, self.news = [], [], []
        return self

    def _join(self, ticks: int, mean: float, squares: float) -> None:
        """Add so many prices with that mean and sum of squared deviations from it."""
        if ticks:
            before, self.ticks = self.ticks, self.ticks + ticks
            apart = mean - self.mean
            self.mean = self.mean + apart * ticks / self.ticks if before else mean
            self.squares += squares + apart * apart * before * ticks / self.ticks

    def merge(self, other: Bar) -> None:
        """Take all of another part of this bar."""
        self.fold()
        other.fold()
        self.opening, self.closing = min(self.opening, other.opening), max(self.closing, other.closing)
        self.high, self.low = max(self.high, other.high), min(self.low, other.low)
        self.volume += other.volume
        self.notional += other.notional
        self.trades += other.trades
        self.polls += other.polls
        self._join(other.ticks, other.mean, other.squares)
        self.last_receipt_time = max(self.last_receipt_time, other.last_receipt_time)
        self.previous_close = max(self.previous_close, other.previous_close)

    @property
    def messages(self) -> int:
        """How many ticks it has, unchanged polls too."""
        return self.fold().ticks + self.polls

    def row(self) -> dict[str, Any]:
        """Return the bar in the columns of the table; times are epoch milliseconds."""
        self.fold()
        return {
            "open": self.opening[3],
            "high": self.high,
            "low": self.low,
            "close": self.closing[3],
            "tick_count": self.ticks,
            "trade_count": self.trades,
            "poll_count": self.polls,
            "first_event_time": self.opening[0],
            "open_partition": self.opening[1],
            "open_offset": self.opening[2],
            "last_event_time": self.closing[0],
            "close_partition": self.closing[1],
            "close_offset": self.closing[2],
            "last_receipt_time": self.last_receipt_time,
            "previous_close": self.previous_close if self.previous_close > -math.inf else None,
            "volume": self.volume,
            "notional": self.notional,
            "vwap": self.notional / self.volume if self.volume else None,
            "mean_price": self.mean if self.ticks else None,
            "price_stddev": math.sqrt(self.squares / (self.ticks - 1)) if self.ticks > 1 else None,
        }


class Recomputed:
    """Bars of the messages, what each partition held as (good, dead), and the ids that were met."""

    def __init__(self) -> None:
        self.bars: dict[Place, Bar] = {}
        self.counts: dict[int, tuple[int, int]] = {}
        self.ids: list[IdBlock] = []

    def merge(self, other: Recomputed) -> None:
        """Take all that other messages came to."""
        for place, bar in other.bars.items():
            if place in self.bars:
                self.bars[place].merge(bar)
            else:
                self.bars[place] = bar
        for partition, (good, dead) in other.counts.items():
            ours = self.counts.get(partition, (0, 0))
            self.counts[partition] = ours[0] + good, ours[1] + dead
        self.ids += other.ids


class IdBlock(NamedTuple):
    """The hashes of some ids of one partition, and the offsets of their messages."""

    partition: int
    hashes: np.ndarray
    offsets: np.ndarray


def recompute_bars(messages: Iterable[Message], window_ms: int, scope: Scope = Scope()) -> Recomputed:  # noqa: B008 - a value
    """Return what the messages come to.

    A good message's key is its symbol, so those with another key than the symbols asked about are passed over unread.
    """
    found = Recomputed()
    bars = found.bars
    good: dict[int, int] = {}
    dead: dict[int, int] = {}
    ids: dict[int, tuple[list[str], list[int]]] = {}
    keys = None if scope.symbols is None else {symbol.encode() for symbol in scope.symbols}
    is_all = scope.is_all
    for partition, offset, timestamp, key, value in messages:
        if keys is not None and key not in keys:
            continue
        try:
            tick = decode_tick(value, key, timestamp)
        except MessageError:
            dead[partition] = dead.get(partition, 0) + 1
            continue
        good[partition] = good.get(partition, 0) + 1
        if partition not in ids:
            ids[partition] = [], []
        block, offsets = ids[partition]
        block.append(tick.id)
        offsets.append(offset)
        if len(block) == IDS_A_BLOCK:
            found.ids.append(_hash_ids(partition, *ids.pop(partition)))
        place = tick.symbol, tick.event_time - tick.event_time % window_ms
        bar = bars.get(place)
        if bar is None:
            if not is_all and not scope.holds(*place, window_ms):
                continue
            bar = bars[place] = Bar()
        bar.add(tick, partition, offset)
    found.ids += [_hash_ids(partition, *block) for partition, block in ids.items()]
    found.counts = {number: (good.get(number, 0), dead.get(number, 0)) for number in {*good, *dead}}
    for bar in bars.values():
        bar.fold()
    return found


def _hash_ids(partition: int, ids: list[str], offsets: list[int]) -> IdBlock:
    return IdBlock(partition, pd.util.hash_array(np.array(ids, dtype=object), categorize=False), np.array(offsets, dtype=np.int64))


class IdsTwice(NamedTuple):
    """How many messages had an id that came before, and where some of them lie: (partition, offset)."""

    messages: int
    places: list[tuple[int, int]]


class KnownIds:
    """The ids met so far, as sorted hashes of 64 bits: two ids are taken for one once in 10**7 topics of a million messages."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, blocks: Iterable[IdBlock], shown: int = 5) -> IdsTwice:
        """Return which of these ids came before, among themselves or earlier, and know them from now on."""
        blocks = list(blocks)
        if not blocks:
            return IdsTwice(0, [])
        hashes = np.concatenate([block.hashes for block in blocks])
        offsets = np.concatenate([block.offsets for block in blocks])
        partitions = np.concatenate([np.full(len(block.offsets), block.partition) for block in blocks])
        order = np.lexsort((offsets, partitions, hashes))
        hashes = hashes[order]
        twice = np.zeros(len(hashes), dtype=bool)
        twice[1:] = hashes[1:] == hashes[:-1]
        for run in self._runs:
            found = run[np.minimum(np.searchsorted(run, hashes), len(run) - 1)]
            twice |= found == hashes
        places = sorted(zip(partitions[order][twice].tolist(), offsets[order][twice].tolist(), strict=True))
        self._keep(hashes)
        return IdsTwice(len(places), places[:shown])

    def _keep(self, run: np.ndarray) -> None:
        """Keep a sorted run; runs of like length become one, so that there are few."""
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)
