"""How fresh a price is: LIVE, DELAYED, STALE, CLOSED or NO DATA, and since when.

One pure function of event time, receipt time and session: no clock, no calendar, no state. Called by the feed, which knows
these (`sources.feed_health`). It is meant for a live feed: of a simulated market or an old tape it says nothing true.

    LIVE       the market is open, and the price is of just now
    DELAYED    the market is open, and the price is a little old, or of before this session; or it comes behind time, as
               a delayed feed's does, and still comes
    STALE      the market is open, and the price is old; or it is closed, and this is not its last price
    CLOSED     the market is closed, and the price is its last
    NO DATA    no price has come yet
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline_lib.records import FreshnessState

if TYPE_CHECKING:
    from pipeline_lib.sources.market_hours import Hours

# Guesses. A symbol that is asked for every two minutes cannot be fresher than that, so both are at least twice its turn.
LIVE_MS = 15_000
STALE_MS = 120_000

# The delay of exchanges' free data is 15 minutes, and a price comes some time after that.
LONGEST_DELAY_MS = 20 * 60_000


class Sight(NamedTuple):
    """What was last seen of a symbol, in epoch milliseconds: the event, when it came, and when it was last confirmed.

    `receipt_time` is of the last news, `heard_time` of the last answer, which may have brought none.
    """

    event_time: int
    receipt_time: int
    heard_time: int


class Freshness(NamedTuple):
    """A state, and since when it holds, in epoch milliseconds. LIVE is dated by its event: it is so anew with every one."""

    state: FreshnessState
    since: int


def judge_freshness(sight: Sight | None, now: int, hours: Hours | None, *, began: int, asked_every_ms: float = 0) -> Freshness:
    """Return how fresh a symbol is `now`.

    `hours` are those around now, None for what trades at all hours; `began` is when the feed began; `asked_every_ms` is
    the time between two looks at the symbol, 0 where every trade comes by itself.
    """
    if sight is None:
        return Freshness("NO DATA", began)
    stale_ms = max(STALE_MS, 3 * round(asked_every_ms))
    if hours is not None and not hours.is_open:
        if sight.event_time < hours.opened_ms:
            return Freshness("STALE", hours.closed_ms)
        if sight.event_time + stale_ms < hours.closed_ms and sight.heard_time < hours.closed_ms:
            return Freshness("STALE", sight.event_time + stale_ms)
        return Freshness("CLOSED", hours.closed_ms)
    live_ms = max(LIVE_MS, 2 * round(asked_every_ms))
    opened = hours.opens_ms if hours is not None else sight.event_time
    is_of_session = sight.event_time >= opened
    # Before its first trade of the session a price is out of date since the open, not since its own time.
    known_since = max(sight.event_time, opened)
    stale_since = known_since + stale_ms
    if is_of_session and sight.receipt_time - sight.event_time <= LONGEST_DELAY_MS:
        stale_since = max(stale_since, sight.receipt_time + stale_ms)
    if now > stale_since:
        return Freshness("STALE", stale_since)
    if is_of_session and now - sight.event_time <= live_ms:
        return Freshness("LIVE", sight.event_time)
    return Freshness("DELAYED", sight.event_time + live_ms if is_of_session else opened)
