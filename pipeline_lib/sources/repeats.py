"""Trades that look like one delivered before. Finnhub gives trades no id, and was seen to send some of them again.

Two equal trades can both be real, so this only suspects: it never decides that a trade is none. It remembers nothing of
before its own start. Called by `finnhub_trades`.
"""

from __future__ import annotations

from collections import OrderedDict

from pipeline_lib.records import Tick

# After a reconnection, what had come shortly before comes again. The time of the trade is part of what is compared, so a
# long span suspects hardly more than a short one; it bounds the memory of a quiet feed, and the number that of a busy one.
SPAN_SECONDS = 300.0
MAX_REMEMBERED = 200_000  # about 25 MB


class SeenTrades:
    """The trades of the last minutes, each by symbol, time, price, volume and conditions."""

    def __init__(self, span_seconds: float = SPAN_SECONDS, max_remembered: int = MAX_REMEMBERED) -> None:
        self._span_ms, self._max = span_seconds * 1_000, max_remembered
        self._seen: OrderedDict[int, int] = OrderedDict()  # a trade's hash, and when it was last received

    def suspect(self, tick: Tick) -> bool:
        """Remember the trade; return whether an equal one was received within the span."""
        conditions = None if tick.conditions is None else tuple(tick.conditions)
        equal = hash((tick.symbol, tick.event_time, tick.price, tick.volume, conditions))
        before = self._seen.pop(equal, None)
        self._seen[equal] = tick.receipt_time
        while len(self._seen) > self._max or next(iter(self._seen.values())) < tick.receipt_time - self._span_ms:
            self._seen.popitem(last=False)
        return before is not None and tick.receipt_time - before <= self._span_ms

    def __len__(self) -> int:
        return len(self._seen)
