"""A seeded storm: the stand-in for Finnhub fails in every way that passes, and the real client publishes into a real topic.

Afterwards every tick that was delivered, and no other, is in the topic once, and the gaps listed are the gaps made.
"""

from __future__ import annotations

import threading
from collections import Counter
from itertools import islice
from typing import Any

import pytest
from pydantic import SecretStr
from runs import assert_eventually

from pipeline_lib import pipeline, topics
from pipeline_lib.finnhub_stand_in import PASSING, FaultSchedule, FinnhubStandIn, Ledger, Plan
from pipeline_lib.pipeline import Feed, Place
from pipeline_lib.records import Tick, decode_tick
from pipeline_lib.sources.feed_health import FeedHealth
from pipeline_lib.sources.finnhub import FinnhubFeed
from pipeline_lib.sources.finnhub_quotes import FinnhubQuotes
from pipeline_lib.sources.finnhub_trades import PART, FinnhubTrades, Patience
from pipeline_lib.sources.market_hours import Hours
from pipeline_lib.sources.rate_limit import RateLimit
from pipeline_lib.sources.simulated import SimulatedMarket

KEY = "sentinel0key0that0nobody0may0see"
SYMBOLS = ("AAPL", "MSFT", "GOOGL", "TSLA", "AMZN", "META", "NVDA", "NFLX")
ON_THE_SOCKET = SYMBOLS[:6]
SILENT_SECONDS = 1.0
QUICK = Patience(silent=SILENT_SECONDS, first_wait=0.1, longest_wait=0.5, held_wait=0.2, at_once=0.3, look=0.05)
PLENTY = Plan(per_minute=6_000, per_second=30)
FAULTS = 18


def always_open(ms: int) -> Hours:
    """Return hours in which it is always the middle of a session."""
    day = 86_400_000
    return Hours(True, ms - 2 * day, ms - day, ms - day // 2, ms + day // 2, ms + day)


def open_feed(stand_in: FinnhubStandIn) -> tuple[FinnhubFeed, FeedHealth]:
    """Return the feed, and its health."""
    health, key = FeedHealth(SYMBOLS, hours=always_open), SecretStr(KEY)
    limit = RateLimit(PLENTY.per_minute, PLENTY.per_second)
    quotes = FinnhubQuotes(key, SYMBOLS, base_url=stand_in.rest_url, limit=limit, health=health)
    trades = FinnhubTrades(key, ON_THE_SOCKET, url=stand_in.websocket_url, health=health, patience=QUICK)
    return FinnhubFeed(quotes, trades, health=health), health


def trades_of(ledger: Ledger) -> Counter[Any]:
    """Return the trades that the stand-in delivered; one that it delivered twice counts as two."""
    return Counter((one.symbol, one.event_time, one.price, one.volume, one.conditions) for one in ledger.deliveries)


def quotes_of(ledger: Ledger) -> Counter[Any]:
    """Return the quotes that it answered with, without zeros and those that are older than one before."""
    found: Counter[Any] = Counter()
    latest: dict[str | None, int] = {}
    for poll in ledger.polls:
        body = poll.body
        is_quote = poll.path == "quote" and poll.delivered and poll.status == 200 and isinstance(body, dict)
        if is_quote and body["c"] > 0 and body["t"] >= latest.get(poll.symbol, 0):
            latest[poll.symbol] = body["t"]
            found[(poll.symbol, body["t"] * 1_000, body["c"])] += 1
    return found


def read_ticks(place: Place) -> list[Tick]:
    """Return all ticks of the topic."""
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    ranges = topics.read_offsets(servers, topic)
    ends = {number: found.latest for number, found in ranges.items()}
    return [decode_tick(message.value, message.key) for message in topics.read_messages(servers, topic, dict.fromkeys(ranges, 0), ends)]


def is_calm(stand_in: FinnhubStandIn) -> bool:
    """Return whether the socket is there and has brought trades since the last gap."""
    gaps, deliveries = stand_in.ledger.gaps, stand_in.ledger.deliveries
    since = (gaps[-1].ended if gaps else 0) or 0
    return not (gaps and gaps[-1].ended is None) and bool(deliveries) and deliveries[-1].at > since + 200


def make_storm(stand_in: FinnhubStandIn, seed: int) -> None:
    """Have the faults of the seed, and wait until all is well again. A gap begins only after the last one has ended."""
    for planned in islice(FaultSchedule(seed, 0.3, (*PASSING, "held", "error")), FAULTS):
        threading.Event().wait(planned.after_seconds)
        if planned.name in ("drop", "silent"):
            assert_eventually(lambda: is_calm(stand_in), bool, seconds=20)
        stand_in.fault(planned.name)
    assert_eventually(lambda: is_calm(stand_in) and not stand_in.faults, bool, seconds=30)


@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_storm_every_tick_delivered_is_in_the_topic_once_and_the_gaps_listed_are_those_made(place: Place, seed: int) -> None:
    market = SimulatedMarket(SYMBOLS, seed=seed, rate=200)
    with FinnhubStandIn(KEY, market=market, plan=PLENTY) as stand_in:
        feed, health = open_feed(stand_in)
        with Feed(place.settings, feed):
            assert_eventually(lambda: is_calm(stand_in), bool, seconds=20)
            make_storm(stand_in, seed)
            assert stand_in.hold()
            trades, quotes = trades_of(stand_in.ledger), quotes_of(stand_in.ledger)
            expected = trades.total() + quotes.total()
            assert_eventually(lambda: len(read_ticks(place)), lambda found: found >= expected, seconds=10)
        ticks, made = read_ticks(place), [gap for gap in stand_in.ledger.gaps if gap.ended is not None]
    came = [tick for tick in ticks if tick.kind == "trade"]
    assert Counter((t.symbol, t.event_time, t.price, t.volume, t.conditions and tuple(t.conditions)) for t in came) == trades
    assert Counter((tick.symbol, tick.event_time, tick.price) for tick in ticks if tick.kind == "quote") == quotes
    assert len({tick.id for tick in ticks}) == len(ticks)
    listed = [gap for gap in health.status().gaps if gap.source == PART and gap.ended_at is not None]
    assert len(listed) == len(made) > 0
    for there, here in zip(made, listed, strict=True):
        assert there.ended is not None and here.ended_at is not None
        assert abs(here.started_at - there.began) < 1_000 * SILENT_SECONDS, (there, here)
        assert there.ended <= here.ended_at + 50 and here.ended_at - there.ended < 1_500, (there, here)
    assert KEY not in repr(ticks) + repr(listed)
