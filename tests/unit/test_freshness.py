"""How fresh a price is, around a session of Monday 2026-01-05: 14:30 to 21:00 UTC. Times are written as seconds from an instant."""

from __future__ import annotations

import datetime as dt

import pytest

from pipeline_lib.freshness import Freshness, Sight, judge_freshness
from pipeline_lib.sources.market_hours import hours_at

OPEN = int(dt.datetime(2026, 1, 5, 14, 30, tzinfo=dt.UTC).timestamp() * 1_000)
CLOSE = int(dt.datetime(2026, 1, 5, 21, 0, tzinfo=dt.UTC).timestamp() * 1_000)
FRIDAYS_CLOSE = int(dt.datetime(2026, 1, 2, 21, 0, tzinfo=dt.UTC).timestamp() * 1_000)
NOON = OPEN + 2 * 3_600_000
HOUR = 3_600


def judged(
    instant: int, event: float, now: float, receipt: float | None = None, heard: float | None = None, every: float = 8.0
) -> Freshness:
    """Return the freshness at so many seconds after the instant, with the state's beginning in the same seconds."""
    receipt = event if receipt is None else receipt
    times = [instant + round(seconds * 1_000) for seconds in (event, receipt, receipt if heard is None else heard, now)]
    found = judge_freshness(Sight(*times[:3]), times[3], hours_at(times[3]), began=0, asked_every_ms=every * 1_000)
    return found._replace(since=(found.since - instant) / 1_000)


@pytest.mark.parametrize(
    ("instant", "event", "now", "expected"),
    [
        (NOON, -2, 0, ("LIVE", -2)),
        (NOON, -16, 0, ("LIVE", -16)),  # asked for every 8 s: two turns
        (NOON, -17, 0, ("DELAYED", -1)),
        (NOON, -121, 0, ("STALE", -1)),
        (OPEN, -3 * 86_400, 1, ("DELAYED", 0)),  # Friday's price, just after Monday's open
        (OPEN, -3 * 86_400, 121, ("STALE", 120)),
        (OPEN, 1, 2, ("LIVE", 1)),
        (CLOSE, -1, -0.001, ("LIVE", -1)),
        (CLOSE, -1, 0, ("CLOSED", 0)),  # the close belongs to the night
        (CLOSE, 0, 14 * HOUR, ("CLOSED", 0)),
        (CLOSE, -7 * HOUR, 1, ("STALE", 0)),  # a whole session has passed without it
        (FRIDAYS_CLOSE, -5, 2 * 86_400, ("CLOSED", 0)),
    ],
)
def test_a_state_and_since_when_follow_from_event_time_and_session(instant: int, event: float, now: float, expected: tuple) -> None:
    assert judged(instant, event, now) == expected


def test_a_price_that_stopped_long_before_the_close_is_stale_until_it_is_confirmed_after_it() -> None:
    assert judged(CLOSE, -HOUR, 60) == ("STALE", -HOUR + 120)
    assert judged(CLOSE, -HOUR, 60, heard=30) == ("CLOSED", 0)


def test_a_feed_that_is_fifteen_minutes_behind_is_delayed_while_it_moves_and_stale_when_it_stops() -> None:
    assert judged(NOON, -900, 0, receipt=-1).state == "DELAYED"
    assert judged(NOON, -900, 0, receipt=-121) == ("STALE", -1)


def test_a_quote_that_is_stale_from_the_first_is_not_taken_for_news() -> None:
    assert judged(NOON, -HOUR, 0, receipt=0).state == "STALE"


def test_a_symbol_in_a_long_round_is_live_for_two_turns() -> None:
    assert judged(NOON, -239, 0, every=120).state == "LIVE"
    assert judged(NOON, -361, 0, every=120).state == "STALE"


def test_nothing_seen_is_no_data_since_the_feed_began() -> None:
    assert judge_freshness(None, NOON, hours_at(NOON), began=NOON - 5) == ("NO DATA", NOON - 5)


def test_what_trades_at_all_hours_is_never_closed() -> None:
    sight = Sight(CLOSE + 60_000, CLOSE + 60_000, CLOSE + 60_000)
    assert judge_freshness(sight, CLOSE + 61_000, None, began=0).state == "LIVE"
    assert judge_freshness(sight, CLOSE + 7_200_000, None, began=0).state == "STALE"


def test_every_second_of_a_day_has_one_state_and_it_began_before_now() -> None:
    order = []
    for seconds in range(0, 86_400, 7):
        found = judged(OPEN, 3, seconds + 4)
        assert found.since <= seconds + 4
        order += [found.state] if not order or order[-1] != found.state else []
    assert order == ["LIVE", "DELAYED", "STALE"]  # one price at the open, and none after: the close does not make it a last price
