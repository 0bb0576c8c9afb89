"""The limit of calls, on a clock that passes only when somebody waits."""

from __future__ import annotations

from threading import Event, Thread

from fake_clock import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.sources.rate_limit import RateLimit


def call_times(limit: RateLimit, clock: FakeClock, pauses: list[float]) -> list[float]:
    """Return when calls were allowed that came with these pauses between them."""
    times = []
    for pause in pauses:
        clock.passed += pause
        assert limit.acquire(Event())
        times.append(clock.monotonic())
    return times


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0, 20.0]), max_size=200), st.integers(1, 10), st.integers(1, 5))
def test_no_window_holds_more_calls_than_allowed(pauses: list[float], per_minute: int, per_second: int) -> None:
    clock = FakeClock()
    times = call_times(RateLimit(per_minute, per_second, clock), clock, pauses)
    for number, window in ((per_minute, 60.0), (per_second, 1.0)):
        assert all(later - earlier > window - 1e-6 for earlier, later in zip(times, times[number:], strict=False))


def test_calls_below_the_limit_do_not_wait() -> None:
    clock = FakeClock()
    call_times(RateLimit(clock=clock), clock, [1.0] * 300)
    assert clock.waited == []


def test_the_sixty_first_call_waits_for_the_minute_to_end() -> None:
    clock = FakeClock()
    times = call_times(RateLimit(clock=clock), clock, [0.0] * 61)
    assert times[29] == 0.0 and 1.0 <= times[30] < 1.01 and 60.0 <= times[60] < 60.01


def test_a_cancelled_call_is_not_allowed_and_not_counted() -> None:
    clock = FakeClock()
    limit, cancelled = RateLimit(1, 1, clock), Event()
    cancelled.set()
    assert not limit.acquire(cancelled)
    assert limit.acquire(Event()) and clock.waited == []


def test_cancelling_ends_a_wait_from_another_thread() -> None:
    limit, cancelled, answers = RateLimit(1, 1), Event(), []
    assert limit.acquire(cancelled)
    waiting = Thread(target=lambda: answers.append(limit.acquire(cancelled)))
    waiting.start()
    cancelled.set()
    waiting.join(timeout=5)
    assert answers == [False]
