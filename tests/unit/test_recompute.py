"""Verify's own sums: whatever way messages are cut, they come to the same bars; ids that came before are found, and no others."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import random_ticks, tick

from pipeline_lib.audit import cut_offsets
from pipeline_lib.recompute import TICKS_A_FOLD, KnownIds, Recomputed, recompute_bars
from pipeline_lib.records import Message, encode_key, encode_tick

SUMS = {"volume", "notional", "vwap", "mean_price", "price_stddev"}


def messages_of(ticks: list[Any], partition: int = 0) -> list[Message]:
    """Return the ticks as messages of one partition, in their order."""
    return [Message(partition, number, each.event_time, encode_key(each.symbol), encode_tick(each)) for number, each in enumerate(ticks)]


def rows_of(found: Recomputed) -> dict[Any, dict[str, Any]]:
    return {place: bar.row() for place, bar in found.bars.items()}


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_a_topic_come_to_what_the_whole_does(seed: int) -> None:
    dice = random.Random(seed)
    messages = messages_of(random_ticks(seed, 6 * TICKS_A_FOLD, seconds=19))
    whole = recompute_bars(messages, 10_000)
    cuts = sorted(dice.sample(range(len(messages)), 3))
    merged = Recomputed()
    for start, end in zip([0, *cuts], [*cuts, len(messages)], strict=True):
        merged.merge(recompute_bars(messages[start:end], 10_000))
    assert merged.counts == whole.counts
    expected = rows_of(whole)
    for place, row in rows_of(merged).items():
        assert {name: value for name, value in row.items() if name not in SUMS} == {
            name: value for name, value in expected[place].items() if name not in SUMS
        }
        assert {name: row[name] for name in SUMS} == pytest.approx({name: expected[place][name] for name in SUMS}, rel=1e-12)
    assert merged.bars.keys() == whole.bars.keys()


@given(st.dictionaries(st.integers(0, 5), st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=5), st.integers(1, 6))
def test_cut_offsets_leave_none_out_and_have_none_twice(spans: dict[int, tuple[int, int]], pieces: int) -> None:
    starts = {part: start for part, (start, _) in spans.items()}
    ends = {part: start + length for part, (start, length) in spans.items()}
    cut = list(cut_offsets(starts, ends, pieces))
    found = sorted((part, offset) for low, high in cut for part in high for offset in range(low[part], high[part]))
    assert found == sorted((part, offset) for part, end in ends.items() for offset in range(starts[part], end))
    sizes = [sum(high[part] - low[part] for part in high) for low, high in cut]
    assert len(cut) == pieces and max(sizes) - min(sizes) <= 1


@given(st.lists(st.lists(st.integers(0, 20), max_size=30), max_size=6))
def test_ids_that_came_before_are_found_and_no_others(passes: list[list[int]]) -> None:
    known, seen = KnownIds(), set[int]()
    for numbers in passes:
        found = known.add(recompute_bars(messages_of([tick(number) for number in numbers]), 10_000).ids, shown=100)
        expected = []
        for offset, number in enumerate(numbers):
            if number in seen:
                expected.append((0, offset))
            seen.add(number)
        assert (found.messages, found.places) == (len(expected), expected)
