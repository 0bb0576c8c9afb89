"""What a live feed says of itself, on a clock that stands still until it is moved."""

from __future__ import annotations

import datetime as dt

from fake_clock import FakeClock

from pipeline_lib.records import FeedStatus, Gap, Tick, decode_status, encode_status
from pipeline_lib.sources.feed_health import KEPT_GAPS, SYMBOLS_A_STATUS, FeedHealth

NOON = int(dt.datetime(2026, 1, 5, 17, 0, tzinfo=dt.UTC).timestamp() * 1_000)
NIGHT = NOON + 9 * 3_600_000


def tick(symbol: str, clock: FakeClock, *, age_ms: int = 500, repeat: str | None = None) -> Tick:
    now = clock.now_ms()
    return Tick(
        schema=1, id=f"t-{now}", kind="quote", symbol=symbol, price=5.0, event_time=now - age_ms, receipt_time=now, source="finnhub-rest",
        repeat=repeat,  # type: ignore[arg-type]
    )  # fmt: skip


def states(health: FeedHealth) -> dict[str, str]:
    return {found.symbol: found.state for found in health.status().symbols}


def test_a_symbol_goes_from_no_data_over_live_and_delayed_to_stale() -> None:
    clock = FakeClock(NOON)
    health = FeedHealth(("AAPL", "MSFT"), clock=clock)
    assert states(health) == {"AAPL": "NO DATA", "MSFT": "NO DATA"}
    health.saw_tick(tick("AAPL", clock))
    assert states(health) == {"AAPL": "LIVE", "MSFT": "NO DATA"}
    seen = []
    for _ in range(150):
        clock.passed += 1
        seen += [state] if (state := states(health)["AAPL"]) not in seen else []
    assert seen == ["LIVE", "DELAYED", "STALE"]


def test_live_is_dated_from_when_it_began_and_not_from_the_last_tick() -> None:
    clock = FakeClock(NOON)
    health = FeedHealth(("AAPL",), clock=clock)
    health.saw_tick(tick("AAPL", clock))
    (first,) = health.status().symbols
    clock.passed += 5
    health.saw_tick(tick("AAPL", clock))
    (later,) = health.status().symbols
    assert later.since == first.since and later.event_time == first.event_time + 5_000


def test_an_unchanged_poll_is_no_news() -> None:
    clock = FakeClock(NOON)
    health = FeedHealth(("AAPL",), clock=clock)
    health.saw_tick(tick("AAPL", clock))
    for _ in range(30):
        clock.passed += 8
        health.saw_tick(tick("AAPL", clock, age_ms=round(clock.passed * 1_000) + 500, repeat="unchanged"))
    (found,) = health.status().symbols
    assert found.state == "STALE" and found.receipt_time == NOON
    assert health.status().marks == {"unchanged": 30}


def test_at_night_a_stock_is_closed_and_says_when_it_opens_and_a_coin_is_not() -> None:
    clock = FakeClock(NIGHT)
    health = FeedHealth(("AAPL", "BINANCE:BTCUSDT"), clock=clock)
    health.saw_tick(tick("AAPL", clock, age_ms=5 * 3_600_000 + 30_000))
    health.saw_tick(tick("BINANCE:BTCUSDT", clock))
    stock, coin = health.status().symbols
    assert (stock.state, coin.state) == ("CLOSED", "LIVE")
    assert stock.since == NOON + 4 * 3_600_000 and stock.opens_at == NOON - 9_000_000 + 86_400_000
    assert coin.opens_at is None


def test_the_exchange_is_believed_over_the_calendar_until_the_next_planned_edge() -> None:
    clock, said = FakeClock(NOON), []
    health = FeedHealth(("AAPL",), clock=clock, report=said.append)
    health.saw_tick(tick("AAPL", clock))
    health.saw_market(False)
    health.saw_market(False)
    assert states(health) == {"AAPL": "CLOSED"} and not health.market_is_open()
    assert len(said) == 1 and "Finnhub is believed" in said[0]
    clock.passed = 4 * 3_600 - 60
    health.saw_market(False)
    assert not health.market_is_open()
    clock.passed = 4 * 3_600 + 17.5 * 3_600 + 1
    assert health.market_is_open()


def test_a_gap_is_an_interval_with_its_reason_and_each_part_of_the_feed_has_its_own() -> None:
    clock = FakeClock(NOON)
    health = FeedHealth(("AAPL",), clock=clock)
    health.gap_began("no answer", "finnhub-rest")
    clock.passed += 3
    health.gap_began("another reason", "finnhub-rest")
    health.gap_began("the socket is silent", "finnhub-ws", at=NOON - 30_000)
    assert health.status().waiting_for == "no answer"
    health.gap_ended("finnhub-ws")
    assert health.status().waiting_for is None
    health.gap_ended("finnhub-rest")
    health.gap_ended("finnhub-rest")
    assert set(health.status().gaps) == {
        Gap("finnhub-rest", NOON, NOON + 3_000, "no answer"),
        Gap("finnhub-ws", NOON - 30_000, NOON + 3_000, "the socket is silent"),
    }


def test_a_status_is_bounded_and_the_next_ones_carry_the_rest() -> None:
    names = [f"S{number}" for number in range(1_000)]
    health = FeedHealth(names, clock=FakeClock(NOON))
    for number in range(3 * KEPT_GAPS):
        health.gap_began("x" * 1_000, at=NOON + number)
        health.gap_ended(at=NOON + number)
    heard: set[str] = set()
    for _ in range(3):
        found = health.status()
        status = FeedStatus(state="running", source="finnhub", detail="", since=0, at=0, symbols=found.symbols, gaps=found.gaps)
        value = encode_status(status)
        assert decode_status(value) == status
        assert len(found.symbols) <= SYMBOLS_A_STATUS and len(found.gaps) == KEPT_GAPS and len(value) < 100_000
        heard |= {each.symbol for each in found.symbols}
    assert heard == set(names)
