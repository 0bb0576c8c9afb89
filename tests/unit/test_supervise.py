"""How long something that dies is started again."""

from __future__ import annotations

import pytest

from pipeline_lib import supervise
from pipeline_lib.errors import PipelineError
from pipeline_lib.supervise import MAX_DEATHS, MAX_PAUSE_SECONDS, Lives


class Clock:
    """The time of the module, which passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


def die(lives: Lives, clock: Clock, *, for_ever: bool) -> float:
    """Return how long it is before another start."""
    died_at = clock.now
    while not lives.may_begin_again(for_ever=for_ever):
        clock.now += 0.25
    lives.begin()
    return clock.now - died_at


def test_what_dies_again_and_again_is_left_dead_unless_another_try_may_do(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(supervise, "time", clock)
    lives = Lives("stream")
    lives.begin()
    pauses = [die(lives, clock, for_ever=True) for _ in range(20)]  # an hour's outage is no reason to give up
    assert pauses == sorted(pauses) and pauses[0] == 0.5 and pauses[-1] == MAX_PAUSE_SECONDS
    clock.now += 120
    for _ in range(MAX_DEATHS):
        die(lives, clock, for_ever=False)
    with pytest.raises(PipelineError, match="has died 6 times in a row"):
        lives.may_begin_again()
