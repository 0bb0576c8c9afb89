"""The limit of calls, on a clock that passes only when somebody waits."""

from __future__ import annotations

import email.utils
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread

import msgspec
import pytest
from fake_clock import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from pipeline_lib.sources.call_ledger import FileLedger, Spent, ledger_path
from pipeline_lib.sources.rate_limit import RateLimit, open_limit, refresh_words


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
        assert all(later - earlier > window for earlier, later in zip(times, times[number:], strict=False))


def test_calls_below_the_limit_do_not_wait() -> None:
    clock = FakeClock()
    call_times(RateLimit(clock=clock), clock, [1.002] * 300)
    assert clock.waited == []


def test_the_sixty_first_call_waits_for_the_minute_to_end() -> None:
    clock = FakeClock()
    times = call_times(RateLimit(clock=clock), clock, [0.0] * 61)
    assert times[29] == 0.0 and 1.0 < times[30] < 1.2 and 60.0 < times[60] < 60.2


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


def answer(limit: RateLimit, clock: FakeClock, status: int = 200, **headers: object) -> float | None:
    """Make a call and take in its answer; headers are named without X-Ratelimit, a Reset is in so many seconds."""
    assert limit.acquire(Event())
    asked = clock.now_ms()
    if "Reset" in headers:
        headers["Reset"] = clock.now_ms() // 1_000 + int(str(headers["Reset"]))
    return limit.learn(status, {f"X-Ratelimit-{name}": str(value) for name, value in headers.items()}, asked)


def next_call(limit: RateLimit, clock: FakeClock) -> float:
    """Return how long the next call has to wait."""
    began = clock.passed
    assert limit.acquire(Event())
    return clock.passed - began


def test_what_the_server_has_left_is_believed_over_our_count() -> None:
    clock = FakeClock()
    limit = RateLimit(clock=clock)
    answer(limit, clock, Limit=60, Remaining=2, Reset=40)  # somebody else has used 57
    assert [next_call(limit, clock) for _ in range(2)] == [0, 0]
    assert 40 <= next_call(limit, clock) < 40.01
    assert [next_call(limit, clock) for _ in range(20)] == [0] * 20


def test_a_server_that_allows_less_is_believed_and_one_that_allows_more_is_not_made_use_of() -> None:
    clock = FakeClock()
    limit = RateLimit(clock=clock)
    answer(limit, clock, Limit=300)
    assert (limit.per_minute, limit.pause_seconds) == (60, 1)
    answer(limit, clock, Limit=30)
    assert (limit.per_minute, limit.pause_seconds) == (30, 2)


def test_a_429_closes_the_limit_until_the_reset_and_no_longer() -> None:
    clock = FakeClock()
    limit = RateLimit(clock=clock)
    assert answer(limit, clock, 429, Remaining=0, Reset=37) == 37
    assert 37 <= next_call(limit, clock) < 37.01
    assert next_call(limit, clock) == 0


def test_a_429_with_calls_left_is_about_the_second_and_does_not_close_the_minute() -> None:
    clock = FakeClock()
    limit = RateLimit(clock=clock)
    assert answer(limit, clock, 429, Remaining=12, Reset=37) is None
    assert next_call(limit, clock) == 0


def test_a_reset_that_cannot_be_closes_nothing() -> None:
    clock = FakeClock()
    limit = RateLimit(clock=clock)
    assert answer(limit, clock, 429, Reset=100_000) is None
    assert answer(limit, clock, 429, Reset=-1) is None
    assert limit.learn(429, {"X-Ratelimit-Reset": "soon", "Retry-After": "-1"}, 0) is None
    assert next_call(limit, clock) == 0


def test_a_reset_is_reckoned_by_the_clock_that_it_was_written_by() -> None:
    clock = FakeClock()
    limit = RateLimit(clock=clock)
    there = clock.now_ms() // 1_000 + 600  # ten minutes ahead of ours
    headers = {"X-Ratelimit-Reset": str(there + 20), "Date": email.utils.formatdate(there, usegmt=True)}
    assert limit.acquire(Event()) and limit.learn(429, headers, clock.now_ms()) == 20


def test_a_clock_set_back_by_an_hour_costs_a_minute_at_most(tmp_path: Path) -> None:
    ahead, back = FakeClock(1_767_703_600_000), FakeClock(1_767_700_000_000)
    call_times(RateLimit(clock=ahead, ledger=FileLedger(tmp_path / "a.json")), ahead, [0.0] * 60)
    assert next_call(RateLimit(clock=back, ledger=FileLedger(tmp_path / "a.json")), back) < 61


def test_a_restart_does_not_forget_the_calls_that_were_made(tmp_path: Path) -> None:
    clock = FakeClock()
    times = []
    for _ in range(90):  # each a process of its own
        times += call_times(RateLimit(clock=clock, ledger=FileLedger(tmp_path / "a.json")), clock, [0.0])
    assert times[60] - times[0] > 60


def test_a_file_that_is_not_ours_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in (b"", b"{", b"[]", b'{"calls": 3}', b"\xff"):
        path.write_bytes(text)
        assert RateLimit(ledger=FileLedger(path)).acquire(Event())
        assert msgspec.json.decode(path.read_bytes(), type=Spent).calls


def test_the_file_is_named_by_a_hash_and_no_part_of_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    key = SecretStr("sentinel0key0that0nobody0may0see")
    path = ledger_path(key)
    assert path == ledger_path(key) != ledger_path(SecretStr("another"))
    open_limit(key, 60, 30).acquire(Event())
    everything = [str(found) + (found.read_text() if found.is_file() else "") for found in path.parent.rglob("*")]
    assert everything and not [text for text in everything if "sentinel" in text]


def test_the_refresh_of_the_symbols_is_worked_out() -> None:
    assert refresh_words(8, RateLimit().pause_seconds) == "8 symbols: each every 8.0 s"
    assert refresh_words(120, RateLimit().pause_seconds) == "120 symbols: each every 120 s"
    assert refresh_words(1, RateLimit(300, 30).pause_seconds) == "1 symbol: each every 0.2 s"


CALLER = """
import sys, time
from pathlib import Path
from threading import Event
from pipeline_lib.sources.call_ledger import FileLedger
from pipeline_lib.sources.rate_limit import RateLimit
limit = RateLimit(1_000, 10, ledger=FileLedger(Path(sys.argv[1])))
while limit.acquire(Event()):
    print(time.time(), flush=True)
"""


def test_processes_that_share_a_key_keep_the_limit_together_and_one_that_is_killed_holds_up_nobody(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path / "a.json")], stdout=subprocess.PIPE, text=True)

    callers = [start(), start()]
    times: list[float] = []
    readers = [Thread(target=lambda out=caller.stdout: times.extend(float(line) for line in out)) for caller in callers]
    for reader in readers:
        reader.start()
    try:
        for caller, until in ((callers[0], 25), (callers[1], 60)):
            deadline = time.monotonic() + 60
            while len(times) < until and time.monotonic() < deadline:
                time.sleep(0.05)
            caller.kill()
            caller.wait()
    finally:
        for caller in callers:
            caller.kill()
        for reader in readers:
            reader.join()
        for caller in callers:
            caller.wait()
            caller.stdout.close()  # type: ignore[union-attr]
    times.sort()
    assert len(times) >= 60
    assert all(later - earlier > 1 for earlier, later in zip(times, times[10:], strict=False))
