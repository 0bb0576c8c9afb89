"""A seeded storm: the stand-in for Finnhub fails in every way that passes, and the real client publishes into a real topic.

Afterwards every tick that was delivered, and no other, is in the topic once, and the gaps listed are the gaps made.
"""

from __future__ import annotations

import threading
from collections import Counter
from itertools import islice
from typing import Any

import pytest
from finnhub_feeds import KEY, QUICK, FeedBeside
from runs import SYMBOLS, assert_eventually

from pipeline_lib import pipeline, topics
from pipeline_lib.finnhub_stand_in import PASSING, FaultSchedule, FinnhubStandIn, Ledger, Plan
from pipeline_lib.pipeline import Feed, Place
from pipeline_lib.records import Tick, decode_tick
from pipeline_lib.sources import finnhub_faults
from pipeline_lib.sources.finnhub_trades import PART
from pipeline_lib.sources.simulated import SimulatedMarket

ON_THE_SOCKET = 6
PLENTY = Plan(per_minute=6_000, per_second=30)
FAULTS = 18


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


@pytest.mark.parametrize("seed", [1])
def test_after_a_storm_every_tick_delivered_is_in_the_topic_once_and_the_gaps_listed_are_those_made(
    place: Place, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finnhub_faults, "backoff_seconds", lambda _: 0.2)  # a storm passes in seconds here
    market = SimulatedMarket(SYMBOLS, seed=seed, rate=200)
    with FinnhubStandIn(KEY, market=market, plan=PLENTY) as stand_in:
        beside = FeedBeside(stand_in, SYMBOLS, ON_THE_SOCKET)
        with Feed(place.settings, beside.feed):
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
    listed = [gap for gap in beside.health.status().gaps if gap.source == PART and gap.ended_at is not None]
    assert len(listed) == len(made) > 0
    for there, here in zip(made, listed, strict=True):
        assert there.ended is not None and here.ended_at is not None
        assert abs(here.started_at - there.began) < 1_000 * QUICK.silent, (there, here)
        assert there.ended <= here.ended_at + 50 and here.ended_at - there.ended < 1_500, (there, here)
    assert KEY not in repr(ticks) + repr(listed)
