"""How many calls may be made: at most so many in any minute, and so many in any second, over all who use the key.

A call counts when it is allowed, whether it then fails or not, as the server counts it. What the server says of its limit
is believed over our count: see `learn`. Who counts with whom is decided by the ledger: `open_limit` gives the one that
every process of this user shares.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from threading import Event

from pydantic import SecretStr

from pipeline_lib.sources.call_ledger import CallLedger, FileLedger, MemoryLedger, Spent, ledger_path
from pipeline_lib.sources.clock import Clock

# Finnhub's free plan, and what every plan of theirs has. Source: finnhub.io/docs/api/rate-limit.
CALLS_A_MINUTE = 60
CALLS_A_SECOND = 30

# A call is some time on its way, and two do not take the same: what leaves us 60 s apart may arrive closer.
MARGIN_MS = 100
MINUTE_MS = 60_000 + MARGIN_MS
SECOND_MS = 1_000 + MARGIN_MS

# The longest that a server can make us wait. The limit is one by the minute: more is a mistake, of its clock or of ours.
LONGEST_WAIT_MS = 120_000

# The header Date counts whole seconds, and an answer is on its way for some time: less is no difference of clocks.
CLOCKS_DIFFER_SECONDS = 3.0


class RateLimit:
    """Allows calls so that no window of a minute or of a second, wherever it begins, holds more than its number."""

    def __init__(
        self,
        per_minute: int = CALLS_A_MINUTE,
        per_second: int = CALLS_A_SECOND,
        clock: Clock | None = None,
        ledger: CallLedger | None = None,
    ) -> None:
        self._per_minute, self._per_second = per_minute, per_second
        self._clock = clock or Clock()
        self._ledger = ledger or MemoryLedger()
        with self._ledger.open() as spent:
            self._server_limit = spent.limit

    @property
    def per_minute(self) -> int:
        """How many calls a minute there are: the number set, or what the server allows if that is less."""
        return min(self._per_minute, self._server_limit or self._per_minute)

    @property
    def pause_seconds(self) -> float:
        """The time between two calls at which both limits hold for ever."""
        return max(60 / self.per_minute, 1 / self._per_second)

    def acquire(self, cancelled: Event) -> bool:
        """Wait until a call may be made, and count it; return False, and count nothing, if cancelled before."""
        while not cancelled.is_set():
            with self._ledger.open() as spent:
                now = self._clock.now_ms()
                self._server_limit = spent.limit
                wait_ms = self._wait_ms(spent, now)
                if wait_ms <= 0:
                    spent.calls.append(now)
                    spent.left = max(0, spent.left - 1)
                    return True
            if self._clock.wait(cancelled, wait_ms / 1_000):
                return False
        return False

    def learn(self, status: int, headers: Mapping[str, str], asked_at_ms: int) -> float | None:
        """Take in what an answer says of the limit; return for how many seconds a refusal says to wait, None if it does not.

        `X-Ratelimit-Limit` lowers ours; `-Remaining` and `-Reset` say how many calls there are until when. A 429 with
        calls remaining is about the second, not the minute, so its reset is not what has to be waited for.
        """
        now = self._clock.now_ms()
        limit, remaining = _number(headers, "X-Ratelimit-Limit"), _number(headers, "X-Ratelimit-Remaining")
        reset_ms = self._until_reset(headers, now)
        with self._ledger.open() as spent:
            if limit:
                self._server_limit = spent.limit = limit
            if status == 429 and not remaining:
                wait_ms = reset_ms or _bounded((_number(headers, "Retry-After") or 0) * 1_000)
                if wait_ms:
                    spent.closed_until = now + wait_ms
                    return wait_ms / 1_000
            elif remaining is not None and reset_ms:
                spent.left = max(0, remaining - sum(call > asked_at_ms for call in spent.calls))
                spent.left_until = now + reset_ms
        return None

    def _wait_ms(self, spent: Spent, now: int) -> int:
        """Return how long it is until a call may be made, and forget the calls that are of no more account."""
        # A clock that was set back has left times that are still to come: taken as now, they count in full.
        spent.calls = [min(call, now) for call in spent.calls if call > now - MINUTE_MS]
        windows = ((self.per_minute, MINUTE_MS), (self._per_second, SECOND_MS))
        waits = [spent.calls[-number] + window - now for number, window in windows if len(spent.calls) >= number]
        until = spent.closed_until if spent.left else max(spent.closed_until, spent.left_until)
        if until - now <= LONGEST_WAIT_MS:
            waits.append(until - now)
        return max(waits, default=0)

    def _until_reset(self, headers: Mapping[str, str], now: int) -> int | None:
        """Return the milliseconds until the server's minute ends, by its own clock; None if it says nothing that can be."""
        reset = _number(headers, "X-Ratelimit-Reset")
        if reset is None:
            return None
        return _bounded(reset * 1_000 - now - round((clock_difference(headers, now) or 0) * 1_000))


def clock_difference(headers: Mapping[str, str], now_ms: int) -> float | None:
    """Return by how many seconds the server's clock, as its header Date has it, is ahead of ours; None if they agree."""
    try:
        there = email.utils.parsedate_to_datetime(headers.get("Date", "")).timestamp()
    except (TypeError, ValueError):
        return None
    ahead = there - now_ms / 1_000
    return ahead if abs(ahead) > CLOCKS_DIFFER_SECONDS else None


def _bounded(wait_ms: int) -> int | None:
    return wait_ms if 0 < wait_ms <= LONGEST_WAIT_MS else None


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "")
    return int(text) if re.fullmatch(r"\d{1,12}", text) else None


def open_limit(key: SecretStr, per_minute: int, per_second: int) -> RateLimit:
    """Return the limit that every process of this user shares for this key. Raises SettingsError if it cannot be counted."""
    return RateLimit(per_minute, per_second, ledger=FileLedger(ledger_path(key)))


def refresh_words(symbols: int, pause_seconds: float) -> str:
    """Return how often each of so many symbols is asked for: "8 symbols: each every 8.0 s"; from 100 s on without a decimal."""
    seconds = symbols * pause_seconds
    shown = f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"
    return f"{symbols} symbol{'' if symbols == 1 else 's'}: each every {shown} s"
