"""How many calls may be made: at most so many in any minute, and so many in any second.

For the threads of one process. A call counts when it is allowed, whether it then fails or not, as the server counts it.
"""

from __future__ import annotations

from collections import deque
from threading import Event, Lock

from pipeline_lib.sources.clock import Clock

# Finnhub's free plan, and what every plan of theirs has. Source: finnhub.io/docs/api/rate-limit.
CALLS_A_MINUTE = 60
CALLS_A_SECOND = 30


class RateLimit:
    """Allows calls so that no window of a minute or of a second, wherever it begins, holds more than its number."""

    def __init__(self, per_minute: int = CALLS_A_MINUTE, per_second: int = CALLS_A_SECOND, clock: Clock | None = None) -> None:
        self.per_minute = per_minute
        self._limits = ((per_minute, 60.0), (per_second, 1.0))
        self._calls: deque[float] = deque(maxlen=max(per_minute, per_second))
        self._clock = clock or Clock()
        self._lock = Lock()

    def acquire(self, cancelled: Event) -> bool:
        """Wait until a call may be made, and count it; return False, and count nothing, if cancelled before."""
        while True:
            with self._lock:
                now = self._clock.monotonic()
                wait = max(self._wait(now, number, window) for number, window in self._limits)
                if wait <= 0 and not cancelled.is_set():
                    self._calls.append(now)
                    return True
            # No shorter than a millisecond: a clock need not be able to pass the last bit of a difference.
            if self._clock.wait(cancelled, max(wait, 0.001)):
                return False

    def _wait(self, now: float, number: int, window: float) -> float:
        """Return how long it is until the last calls but `number` have left the window."""
        return self._calls[-number] + window - now if len(self._calls) >= number else 0.0
