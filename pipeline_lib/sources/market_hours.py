"""The regular sessions of the New York Stock Exchange, with its holidays and early closes.

From exchange_calendars' XNYS, which takes a second to import, so that happens at the first question. It knows the
planned sessions only: a halt, or a close that was announced last week, is not in it.
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from pipeline_lib.errors import SettingsError

NEW_YORK = "America/New_York"

DAY = dt.timedelta(days=1)


class Session(NamedTuple):
    """One session, in epoch milliseconds, and whether the time that was asked about lies in it."""

    open_ms: int
    close_ms: int
    is_open: bool


class Hours(NamedTuple):
    """Whether the market is open at a time, and the sessions around it, in epoch milliseconds.

    `opened_ms` and `closed_ms` are of the last session that has ended, `opens_ms` and `closes_ms` of the open or else
    the next one, `reopens_ms` is when the first session after this time begins.
    """

    is_open: bool
    opened_ms: int
    closed_ms: int
    opens_ms: int
    closes_ms: int
    reopens_ms: int


def hours_at(ms: int) -> Hours:
    """Return the hours around this time."""
    opens, closes = _sessions(dt.datetime.fromtimestamp(ms / 1_000, dt.UTC).year)
    place = int(np.searchsorted(closes, ms, side="right"))
    is_open = bool(opens[place] <= ms)
    return Hours(
        is_open,
        int(opens[place - 1]),
        int(closes[place - 1]),
        int(opens[place]),
        int(closes[place]),
        int(opens[place + is_open]),
    )


def read_moment(text: str, *, is_end: bool = False) -> int:
    """Return the epoch milliseconds of a time that a person writes: ISO, in UTC unless it ends in NY or has an offset.

    A date is its midnight, and as the end of a range the midnight after it. Raises SettingsError for anything else.

    >>> read_moment("2026-11-23 09:30 NY") == read_moment("2026-11-23T14:30") == read_moment("2026-11-23T15:30+01:00")
    True
    >>> read_moment("2026-11-23", is_end=True) == read_moment("2026-11-24")
    True
    """
    in_new_york = text.upper().endswith("NY")
    plain = text[:-2].strip() if in_new_york else text.strip()
    try:
        moment = dt.datetime.fromisoformat(plain)
        if is_end and len(plain) <= len("2026-11-23"):
            moment += DAY
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=ZoneInfo(NEW_YORK) if in_new_york else dt.UTC)
        elif in_new_york:
            raise ValueError(text)
        return round(moment.timestamp() * 1_000)
    except (ValueError, OverflowError):
        raise SettingsError(
            f"cannot read the time {text!r}: it is no ISO time or date; write 2026-11-23, '2026-11-23 09:30 NY' or 2026-11-23T14:30 (UTC)"
        ) from None


def moment_words(ms: int) -> str:
    """Return a time in UTC and in New York, for a person."""
    moment = dt.datetime.fromtimestamp(ms / 1_000, dt.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC ({moment.astimezone(ZoneInfo(NEW_YORK)):%Y-%m-%d %H:%M:%S} New York)"


def has_session(symbol: str) -> bool:
    """Return whether New York's sessions are this symbol's: `BINANCE:BTCUSDT` and the like trade at hours of their own."""
    return ":" not in symbol


def session_at(ms: int) -> Session:
    """Return the session that is open at this time, or else the next one. A session ends just before its close."""
    opens, closes = _sessions(dt.datetime.fromtimestamp(ms / 1_000, dt.UTC).year)
    place = int(np.searchsorted(closes, ms, side="right"))
    return Session(int(opens[place]), int(closes[place]), bool(opens[place] <= ms))


@lru_cache(maxsize=32)
def _sessions(year: int) -> tuple[np.ndarray, ...]:
    """Return opens and closes of the sessions of a year, and of some weeks before and after it, in order."""
    import exchange_calendars

    # The sessions before the year's first one and after its last are among them, whatever holidays fall there.
    calendar = exchange_calendars.get_calendar("XNYS", start=f"{year - 1}-12-01", end=f"{year + 1}-01-31")
    return tuple(column.dt.as_unit("ms").astype("int64").to_numpy() for column in (calendar.opens, calendar.closes))
