"""A clock that passes time only when something waits on it."""

from __future__ import annotations

from threading import Event

from pipeline_lib.sources.clock import Clock


class FakeClock(Clock):
    """Stands at `start_ms` until somebody waits; then it is later at once. `waited` holds every wait, in seconds."""

    def __init__(self, start_ms: int = 1_767_700_000_000) -> None:
        self.start_ms = start_ms
        self.passed = 0.0
        self.waited: list[float] = []

    def now_ms(self) -> int:
        return self.start_ms + int(self.passed * 1_000)

    def monotonic(self) -> float:
        return self.passed

    def wait(self, closed: Event, seconds: float) -> bool:
        if seconds > 0 and not closed.is_set():
            self.waited.append(seconds)
            self.passed += seconds
        return closed.is_set()
