"""The clock that sources are paced by, and the wait that ends when a source is closed.

It is an object so that a test can hand a source a clock that passes an hour in no time. Every source here waits through
it, and on nothing else: that is what makes `close()` prompt.
"""

from __future__ import annotations

import time
from threading import Event

# A tick goes out when it is due, or up to this much later: at 10,000 a second a wait for each one is impossible.
BURST_SECONDS = 0.01


class Clock:
    """The clock of this machine."""

    def now_ms(self) -> int:
        """Return the time in epoch milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return seconds of a clock that is never set back, from an arbitrary zero."""
        return time.monotonic()

    def wait(self, closed: Event, seconds: float) -> bool:
        """Wait until the seconds have passed or the event is set; return whether it is set."""
        return closed.wait(seconds) if seconds > 0 else closed.is_set()
