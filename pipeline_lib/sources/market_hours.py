"""The regular sessions of the New York Stock Exchange, with its holidays and early closes.

From exchange_calendars' XNYS, which takes a second to import, so that happens at the first question. It knows the
planned sessions only: a halt, or a close that was announced last week, is not in it.
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import NamedTuple

import numpy as np

NEW_YORK = "America/New_York"


class Session(NamedTuple):
    """One session, in epoch milliseconds, and whether the time that was asked about lies in it."""

    open_ms: int
    close_ms: int
    is_open: bool


def session_at(ms: int) -> Session:
    """Return the session that is open at this time, or else the next one. A session ends just before its close."""
    opens, closes = _sessions(dt.datetime.fromtimestamp(ms / 1_000, dt.UTC).year)
    place = int(np.searchsorted(closes, ms, side="right"))
    return Session(int(opens[place]), int(closes[place]), bool(opens[place] <= ms))


@lru_cache(maxsize=32)
def _sessions(year: int) -> tuple[np.ndarray, ...]:
    """Return opens and closes of the sessions of a year, and of some weeks after it, in order."""
    import exchange_calendars

    # To the end of next January: the session after the year's last one is among them, whatever holidays fall there.
    calendar = exchange_calendars.get_calendar("XNYS", start=f"{year}-01-01", end=f"{year + 1}-01-31")
    return tuple(column.dt.as_unit("ms").astype("int64").to_numpy() for column in (calendar.opens, calendar.closes))
