"""Late, doubled and out of order, from clocks that are an hour off: the bars are those of the messages, whatever their order."""

from __future__ import annotations

import random

import msgspec
import pytest
from ledger import Ledger
from pyspark.sql import SparkSession
from runs import T0, assert_equal, drain, open_store, random_ticks

from pipeline_lib import pipeline
from pipeline_lib.pipeline import Place

HOUR_MS = 3_600_000


@pytest.mark.repeats("late, doubled, out of order, clocks off by an hour", full=5)
def test_late_doubled_and_disordered_ticks_are_all_in_their_bars(place: Place, session: SparkSession, repeat: int) -> None:
    dice = random.Random(repeat)
    settings = place.settings.replaced(max_offsets_per_trigger=900)
    ticks = sorted(random_ticks(repeat, 3_000, seconds=7_200), key=lambda tick: tick.event_time)
    off = {"TSLA": HOUR_MS, "META": -HOUR_MS}  # their source's clock is wrong
    ticks = [msgspec.structs.replace(tick, event_time=tick.event_time + off.get(tick.symbol, 0)) for tick in ticks]
    late = [ticks.pop(dice.randrange(len(ticks))) for _ in range(200)]
    for place_of in range(0, len(ticks) - 50, 50):  # out of order within a few seconds
        part = ticks[place_of : place_of + 50]
        dice.shuffle(part)
        ticks[place_of : place_of + 50] = part
    doubled = dice.sample(ticks, 100)
    with Ledger(settings) as ledger:
        ledger.send(ticks)
        drain(settings, session)
        ledger.send(late)
        ledger.send(doubled)
        drain(settings, session)
        ledger.assert_kept(all_of_it=True)
    assert_equal(settings)
    assert pipeline.verify(settings).ids_twice == len(doubled)  # each is a message of its own, and said to be one that came before
    bars = open_store(place).query(
        "select symbol, min(window_start) as first, sum(late_tick_count) as late from stock_aggregates group by 1"
    )
    found = bars.set_index("symbol")
    assert found["late"].sum() >= 200  # all that came after the bars of two hours, whatever their clock
    assert found.loc["META", "first"].timestamp() < T0 / 1000 < found.loc["TSLA", "first"].timestamp()
