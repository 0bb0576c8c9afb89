"""A paced source yields its source's ticks, later."""

from __future__ import annotations

from itertools import islice

import pytest
from fake_clock import FakeClock

from pipeline_lib.sources.paced import Paced
from pipeline_lib.sources.simulated import SimulatedMarket


def market() -> SimulatedMarket:
    return SimulatedMarket(("AAPL",), seed=1, rate=100, ticks=101)


def test_all_ticks_come_at_the_pace_that_was_asked_for() -> None:
    clock = FakeClock()
    paced = Paced(market(), per_second=50, clock=clock)
    assert list(paced) == list(market())
    assert clock.passed == pytest.approx(2.0)
    assert (paced.finite, paced.total) == (True, 101)


def test_closing_ends_it_and_its_source() -> None:
    source = market()
    paced = Paced(source, per_second=50, clock=FakeClock())
    ticks = iter(paced)
    assert len(list(islice(ticks, 10))) == 10
    paced.close()
    assert list(ticks) == [] and list(source) == []
