"""Merging halves of a bar: any order, any grouping, the same bar."""

from __future__ import annotations

import random
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import T0, tick

from pipeline_lib.merge import merge_bars
from pipeline_lib.recompute import recompute_bars
from pipeline_lib.records import Message, PartialBar, encode_tick

SUMS = {"volume", "notional", "mean_price", "square_deviation"}
EXACT = [name for name in PartialBar._fields if name not in SUMS]


def partial_bar(messages: list[Message]) -> PartialBar:
    """Return what these messages of one symbol and window add to their bar, by verify's arithmetic."""
    (((symbol, start), bar),) = recompute_bars(messages, 10_000).bars.items()
    row = {**bar.row(), "window_end": start + 10_000}
    count, deviation = row["tick_count"], (row["price_stddev"] or 0.0) ** 2
    named = {name: row[name] for name in PartialBar._fields if name in row}
    return PartialBar(symbol=symbol, window_start=start, square_deviation=deviation * (count - 1 if count else 0), **named)


ticks = st.lists(
    st.tuples(
        st.integers(100, 900_000),  # price in hundredths
        st.sampled_from([0.0, 1.0, 100.0, 0.5]),
        st.integers(0, 9_999),  # ms after T0: many ties
        st.sampled_from([None, "unchanged"]),
        st.integers(0, 3),  # partition
        st.sampled_from([None, 9.0, 10.0]),  # previous close
    ),
    min_size=2,
    max_size=30,
)


@given(ticks, st.randoms(use_true_random=False))
def test_any_cut_and_any_order_give_the_bar_computed_at_once(some: list[Any], dice: random.Random) -> None:
    messages = [
        Message(
            partition,
            number,
            T0,
            b"AAPL",
            encode_tick(tick(number, price=cents / 100, volume=volume, at=ms / 1000, repeat=repeat, previous_close=previous)),
        )
        for number, (cents, volume, ms, repeat, partition, previous) in enumerate(some)
    ]
    whole = partial_bar(messages)
    pieces: list[list[Message]] = [[] for _ in range(dice.randint(1, 5))]
    for message in messages:
        dice.choice(pieces).append(message)
    parts = [partial_bar(piece) for piece in pieces if piece]
    dice.shuffle(parts)
    (at_once,) = merge_bars(parts)
    (one_by_one,) = reduce(lambda bars, part: merge_bars([part, *bars]), parts[1:], [parts[0]])
    for merged in (at_once, one_by_one):
        assert [getattr(merged, name) for name in EXACT] == [getattr(whole, name) for name in EXACT]
        assert merged.volume == pytest.approx(whole.volume, rel=1e-9)
        assert merged.notional == pytest.approx(whole.notional, rel=1e-9)
        assert merged.mean_price == (None if whole.mean_price is None else pytest.approx(whole.mean_price, rel=1e-9))
        assert merged.square_deviation == pytest.approx(whole.square_deviation, rel=1e-9, abs=1e-9 * whole.high)


def test_bars_of_different_symbols_and_windows_stay_apart() -> None:
    bar = partial_bar([Message(0, 0, T0, b"AAPL", encode_tick(tick(1)))])
    others = [bar._replace(symbol="MSFT"), bar._replace(window_start=bar.window_start + 10_000, window_end=bar.window_end + 10_000)]
    assert len(merge_bars([bar, *others, bar])) == 3
