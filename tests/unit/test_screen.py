"""From the table to the screen: which commits count, when they are on the screen, and what is said of them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pipeline_lib.records import Commit
from pipeline_lib.screen import KEPT_MS, ScreenTimes, percentiles, screen_parts, table_to_screen, tick_to_screen

T0 = 1_763_900_000_000.0


def commit(number: int, at: float, ticks: int = 100) -> Commit:
    """A commit at +at ms, of ticks that were first seen 400 to 100 ms before it."""
    return Commit("run", number, T0 + at, ticks, T0 + at - 400, T0 + at - 100)


def test_a_commit_is_on_the_screen_when_a_picture_that_holds_it_is_drawn() -> None:
    times = ScreenTimes()
    times.hear([1], T0 + 5)
    times.send(1, [commit(1, 0)], asked_at=T0 + 6, loaded_at=T0 + 16)
    times.hear([2, 3], T0 + 30)
    times.send(2, [commit(2, 20), commit(3, 25)], asked_at=T0 + 40, loaded_at=T0 + 50)
    assert times.drawn(T0 + 60) == []
    times.draw(2, T0 + 60)  # and with it what the picture before it held
    times.draw(1, T0 + 90)  # a second page, later
    drawn = times.drawn(T0 + 60)
    assert [(each.commit.batch_id, each.drawn_at - each.commit.committed_at) for each in drawn] == [(1, 60), (2, 40), (3, 35)]
    assert table_to_screen(drawn) == {"p50": 40, "p99": 60}
    assert times.drawn(T0 + 61 + KEPT_MS) == []


def test_the_parts_between_commit_and_screen_add_up_to_the_whole() -> None:
    times, dice = ScreenTimes(), random.Random(1)
    for number in range(50):
        at = 100 * number
        if number % 3:  # the others were found by polling
            times.hear([number], T0 + at + 4)
        times.send(number, [commit(number, at, dice.randint(1, 500))], asked_at=T0 + at + 7, loaded_at=T0 + at + 20)
        times.draw(number, T0 + at + dice.uniform(21, 80))
    drawn = times.drawn(T0 + 5_000)
    ticks = sum(each.commit.ticks for each in drawn)
    whole = sum((each.drawn_at - each.commit.committed_at) * each.commit.ticks for each in drawn) / ticks
    assert sum(part["mean"] for part in screen_parts(drawn)) == pytest.approx(whole)
    assert [part["part"] for part in screen_parts(drawn)] == ["notify", "wait for the page", "load", "draw"]


def test_what_nobody_could_have_seen_is_not_counted() -> None:
    times = ScreenTimes()
    times.send(1, [commit(1, 0)], T0, T0)
    times.forget()
    times.draw(1, T0 + 9_000)
    assert times.drawn(T0 + 9_000) == []
    assert (table_to_screen([]), tick_to_screen([]), screen_parts([])) == ({}, {}, [])


def test_ticks_that_come_evenly_have_the_percentiles_of_each_one() -> None:
    times = ScreenTimes()
    every = []
    for number in range(100):
        one = commit(number, 250 * number, ticks=1_000)
        times.send(number, [one], one.committed_at, one.committed_at)
        times.draw(number, one.committed_at + 50 + number)
        assert one.first_receipt_time is not None and one.last_receipt_time is not None
        every.append(one.committed_at + 50 + number - np.linspace(one.first_receipt_time, one.last_receipt_time, 1_000))
    found = tick_to_screen(times.drawn(T0 + 25_000))
    assert [found["p50"], found["p99"]] == pytest.approx(np.percentile(np.concatenate(every), [50, 99]), abs=5)


def test_percentiles_are_those_of_values_written_out_by_their_weights() -> None:
    dice = random.Random(3)
    points = [(dice.uniform(0, 1_000), float(dice.randint(1, 9))) for _ in range(300)]
    written = sorted(value for value, weight in points for _ in range(int(weight)))
    found = percentiles(points)
    assert found == {"p50": written[-(-len(written) // 2) - 1], "p99": written[-(-len(written) * 99 // 100) - 1]}
