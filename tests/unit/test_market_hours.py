"""The sessions of the New York Stock Exchange, against days whose hours are known."""

from __future__ import annotations

import datetime as dt

import pytest

from pipeline_lib.sources.market_hours import session_at


def ms(text: str) -> int:
    return int(dt.datetime.fromisoformat(f"{text}+00:00").timestamp() * 1_000)


@pytest.mark.parametrize(
    ("time", "opens", "closes", "is_open"),
    [
        ("2013-10-07 13:30:00", "2013-10-07 13:30", "2013-10-07 20:00", True),  # the open itself, in summer time
        ("2013-10-07 13:29:59", "2013-10-07 13:30", "2013-10-07 20:00", False),
        ("2013-10-07 19:59:59", "2013-10-07 13:30", "2013-10-07 20:00", True),
        ("2013-10-07 20:00:00", "2013-10-08 13:30", "2013-10-08 20:00", False),  # the close belongs to the night
        ("2026-01-05 15:00:00", "2026-01-05 14:30", "2026-01-05 21:00", True),  # winter time
        ("2025-11-28 17:59:59", "2025-11-28 14:30", "2025-11-28 18:00", True),  # the day after Thanksgiving closes at one
        ("2025-11-28 18:00:00", "2025-12-01 14:30", "2025-12-01 21:00", False),
        ("2025-12-31 22:00:00", "2026-01-02 14:30", "2026-01-02 21:00", False),  # the next session is next year's
    ],
)
def test_the_session_is_the_open_one_or_else_the_next(time: str, opens: str, closes: str, is_open: bool) -> None:
    assert session_at(ms(time)) == (ms(opens), ms(closes), is_open)
