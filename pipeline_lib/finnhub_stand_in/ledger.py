"""What the stand-in has done: the calls that it answered, the trades that it delivered, the gaps that it made.

A trade counts as delivered when it was written to a socket. Before the stand-in drops a socket on purpose it waits for the
client's pong, which says that all was received: so what stands here did arrive.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, NamedTuple

# Some minutes at thousands a second, a day at tens; older entries of a stand-in that runs on are forgotten.
KEPT = 2_000_000


class Poll(NamedTuple):
    """A call by REST and how it was answered. ``at`` is epoch milliseconds, ``monotonic`` the stand-in's other clock."""

    path: str
    symbol: str | None
    status: int
    body: Any
    at: int
    monotonic: float
    delivered: bool


class Delivery(NamedTuple):
    """A trade as it went out on a socket; one that went out twice stands here twice."""

    symbol: str
    price: float
    volume: float
    event_time: int
    conditions: tuple[str, ...] | None
    at: int


class Gap(NamedTuple):
    """A time in which no trade could reach the client: why, from, and until, None while it lasts. Epoch milliseconds."""

    cause: str
    began: int
    ended: int | None


class Ledger:
    """The account of one stand-in. It is read while the stand-in runs; each list is a copy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._polls: deque[Poll] = deque(maxlen=KEPT)
        self._deliveries: deque[Delivery] = deque(maxlen=KEPT)
        self._gaps: list[Gap] = []
        self.connections = 0
        self.refusals = 0
        self.subscribed: list[str] = []
        self.faults: list[str] = []

    @property
    def polls(self) -> list[Poll]:
        """The calls by REST, in their order."""
        with self._lock:
            return list(self._polls)

    @property
    def deliveries(self) -> list[Delivery]:
        """The trades that went out, in their order."""
        with self._lock:
            return list(self._deliveries)

    @property
    def gaps(self) -> list[Gap]:
        """The gaps that were made, in their order."""
        with self._lock:
            return list(self._gaps)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each there were."""
        with self._lock:
            return {
                "polls": len(self._polls),
                "deliveries": len(self._deliveries),
                "gaps": len(self._gaps),
                "connections": self.connections,
                "refusals": self.refusals,
                "faults": len(self.faults),
            }

    def note_poll(self, poll: Poll) -> None:
        """Enter a call."""
        with self._lock:
            self._polls.append(poll)

    def note_deliveries(self, deliveries: list[Delivery]) -> None:
        """Enter the trades of one message."""
        with self._lock:
            self._deliveries.extend(deliveries)

    def begin_gap(self, cause: str, at: int) -> None:
        """Enter that a gap has begun, unless one is open."""
        with self._lock:
            if not self._gaps or self._gaps[-1].ended is not None:
                self._gaps.append(Gap(cause, at, None))

    def end_gap(self, at: int) -> None:
        """Enter that the gap which is open, if one is, has ended."""
        with self._lock:
            if self._gaps and self._gaps[-1].ended is None:
                self._gaps[-1] = self._gaps[-1]._replace(ended=at)
