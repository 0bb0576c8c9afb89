"""The simulated market: the same on every run, at the rate that was asked for, and like a market, not noise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event, Thread

import numpy as np
import pytest
from fake_clock import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.config import DEFAULT_SYMBOLS
from pipeline_lib.records import Tick, check_tick
from pipeline_lib.sources.clock import BURST_SECONDS
from pipeline_lib.sources.market_hours import session_at
from pipeline_lib.sources.market_model import LATE_SHARE, MAX_LATE_MS, MarketModel, Trades, activity_at
from pipeline_lib.sources.simulated import DEFAULT_START_MS, SimulatedMarket

SUNDAY_MS = DEFAULT_START_MS - 24 * 3_600_000  # no session: the rate does not change with the hour
HOUR = 3_600


@pytest.fixture(scope="module")
def trades() -> Trades:
    """Two hours of the eight symbols at 50 trades a second."""
    return MarketModel(DEFAULT_SYMBOLS, 7, SUNDAY_MS, 50).advance(2 * HOUR)


def returns(trades: Trades, symbol: int, seconds: int) -> np.ndarray:
    """Return the changes of the logarithm of a symbol's last price, from window to window of so many seconds."""
    own = trades.where(trades.symbol == symbol)
    own = own.where(np.argsort(own.event_time, kind="stable"))
    ends = SUNDAY_MS + 1_000 * np.arange(60, 2 * HOUR, seconds)
    return np.diff(np.log(own.price[np.searchsorted(own.event_time, ends) - 1]))


def autocorrelation(series: np.ndarray, lag: int) -> float:
    return float(np.corrcoef(series[:-lag], series[lag:])[0, 1])


def bounded(seed: int = 7, ticks: int = 5_000, start_ms: int = SUNDAY_MS, rate: float = 50) -> list[Tick]:
    return list(SimulatedMarket(DEFAULT_SYMBOLS, seed=seed, rate=rate, ticks=ticks, start_ms=start_ms))


def test_one_seed_and_start_give_the_same_ticks() -> None:
    assert bounded() == bounded()


@pytest.mark.parametrize("other", [{"seed": 8}, {"start_ms": SUNDAY_MS + 1}])
def test_another_seed_or_start_gives_other_ticks_and_ids(other: dict[str, int]) -> None:
    assert not {tick.id for tick in bounded()} & {tick.id for tick in bounded(**other)}
    assert [tick.price for tick in bounded()] != [tick.price for tick in bounded(**other)]


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    assert bounded(ticks=9_000)[:5_000] == bounded()


def test_a_symbol_is_the_same_whatever_symbols_are_beside_it() -> None:
    alone = MarketModel(("ZZZ",), 7, SUNDAY_MS, 50).advance(10)
    among = MarketModel(("ZZZ", "AAPL"), 7, SUNDAY_MS, 50).advance(10)
    assert np.isclose(alone.price[0], among.price[among.symbol == 0][0], rtol=0.01)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    rate=st.sampled_from([0.1, 1.0, 50.0, 100_000.0]),
    start=st.integers(946_684_800_000, 4_102_000_000_000),
    symbols=st.lists(st.sampled_from([*DEFAULT_SYMBOLS, "BRK.B", "BINANCE:BTCUSDT", "ZZZ"]), min_size=1, unique=True),
)
def test_every_tick_keeps_the_contract(seed: int, rate: float, start: int, symbols: list[str]) -> None:
    market = list(SimulatedMarket(tuple(symbols), seed=seed, rate=rate, ticks=200, start_ms=start))
    for tick in market:
        check_tick(tick)
    assert len(market) == 200 == len({tick.id for tick in market})


def test_the_mean_rate_is_the_one_asked_for(trades: Trades) -> None:
    assert len(trades.price) / (2 * HOUR) == pytest.approx(50, rel=0.03)


def test_the_mean_rate_of_a_session_is_the_one_asked_for() -> None:
    model = MarketModel(DEFAULT_SYMBOLS, 7, DEFAULT_START_MS, 5)
    per_minute = np.array([len(model.advance(60).price) for _ in range(390)])
    assert per_minute.mean() / 60 == pytest.approx(5, rel=0.05)
    opening, midday, closing = (per_minute[part].mean() for part in (slice(30), slice(180, 210), slice(-30, None)))
    assert opening > 2 * midday and closing > 2 * midday


def test_trades_come_in_clusters(trades: Trades) -> None:
    gaps = np.diff(np.sort(trades.event_time[trades.symbol == 0]))
    assert gaps.std() / gaps.mean() > 1.3  # 1 if they came independently
    counts = np.bincount((trades.event_time - SUNDAY_MS) // 10_000)[1:-1]
    assert counts.var() / counts.mean() > 3  # 1 if they came independently


def test_returns_of_two_symbols_go_together(trades: Trades) -> None:
    series = [returns(trades, symbol, 30) for symbol in range(8)]
    correlations = np.corrcoef(series)[np.triu_indices(8, 1)]
    assert 0.15 < correlations.mean() < 0.6


def test_volatility_clusters_and_returns_do_not() -> None:
    model = MarketModel(("AAPL",), 7, SUNDAY_MS, 20)
    trades = model.advance(12 * HOUR)
    series = np.diff(np.log(trades.price[np.searchsorted(trades.delivery_time, SUNDAY_MS + 10_000 * np.arange(1, 12 * 360)) - 1]))
    assert autocorrelation(series**2, 1) > 0.1 and autocorrelation(series**2, 3) > 0.05
    assert abs(autocorrelation(series, 3)) < 0.05
    kurtosis = ((series - series.mean()) ** 4).mean() / series.var() ** 2
    assert kurtosis > 3.3  # 3 of a normal distribution


def test_prices_bounce_between_bid_and_ask_on_a_grid_of_cents(trades: Trades) -> None:
    own = trades.where(trades.symbol == 2)
    assert autocorrelation(np.diff(own.price), 1) < -0.2
    cents = 100 * trades.price
    assert np.abs(cents - np.round(cents)).max() < 1e-6


def test_about_half_of_the_trades_are_odd_lots_and_the_others_round(trades: Trades) -> None:
    odd = trades.volume < 100
    assert 0.4 < odd.mean() < 0.5
    assert (trades.volume >= 1).all() and (trades.volume % 1 == 0).all() and (trades.volume[~odd] % 100 == 0).all()
    assert (trades.volume == 100).mean() > 0.25 and trades.volume.max() >= 5_000


def test_the_stated_share_of_trades_is_late_by_no_more_than_stated(trades: Trades) -> None:
    late = trades.delivery_time - trades.event_time
    assert (late > 0).mean() == pytest.approx(LATE_SHARE, rel=0.1) and late.max() <= MAX_LATE_MS and late.min() == 0
    assert (np.diff(trades.delivery_time) >= 0).all() and (np.diff(trades.event_time) < 0).mean() > LATE_SHARE / 2


def test_a_late_trade_is_delivered_in_whichever_second_it_falls() -> None:
    model = MarketModel(DEFAULT_SYMBOLS, 7, SUNDAY_MS, 200)
    late = np.concatenate([np.subtract(second.delivery_time, second.event_time) for second in (model.advance(1) for _ in range(600))])
    assert (late > 0).mean() == pytest.approx(LATE_SHARE, rel=0.1)


def test_a_known_symbol_starts_at_about_its_price(trades: Trades) -> None:
    assert trades.price[trades.symbol == 0][0] == pytest.approx(230, rel=0.01)


def test_activity_is_one_on_average_over_a_session() -> None:
    session = session_at(DEFAULT_START_MS)
    assert session.is_open and session.open_ms == DEFAULT_START_MS
    times = np.linspace(session.open_ms, session.close_ms - 1, 1_001).astype(int)
    assert np.mean([activity_at(int(ms)) for ms in times]) == pytest.approx(1, abs=0.01)
    assert activity_at(session.close_ms) == 1.0


def live(clock: FakeClock, rate: float = 200) -> tuple[SimulatedMarket, list[str]]:
    reports: list[str] = []
    return SimulatedMarket(DEFAULT_SYMBOLS, seed=7, rate=rate, report=reports.append, clock=clock), reports


def test_live_ticks_go_out_when_they_are_delivered() -> None:
    clock = FakeClock(SUNDAY_MS)
    market, reports = live(clock)
    received = 0
    for tick in market:
        assert tick.event_time <= tick.receipt_time <= clock.now_ms() <= tick.receipt_time + 1_000 * BURST_SECONDS + 1
        received += 1
        if clock.passed > 60:
            break
    assert received / 60 == pytest.approx(200, rel=0.15) and reports == []


def test_a_market_that_slept_goes_on_at_now_and_says_so() -> None:
    clock = FakeClock(SUNDAY_MS)
    market, reports = live(clock)
    ticks: Iterator[Tick] = iter(market)
    before = next(ticks)
    clock.passed += HOUR
    after = [next(ticks) for _ in range(2_000)]
    assert len(reports) == 1 and "skips" in reports[0]
    hour = [tick for tick in after if before.event_time + 5_000 < tick.event_time < clock.start_ms + HOUR * 1_000]
    assert hour == []
    assert len({tick.id for tick in after}) == 2_000


def test_close_ends_a_live_market_at_once() -> None:
    market = SimulatedMarket(DEFAULT_SYMBOLS, seed=7, rate=0.01)
    begun, ended = Event(), Event()

    def run() -> None:
        begun.set()
        for _ in market:
            pass
        ended.set()

    thread = Thread(target=run)
    thread.start()
    begun.wait(5)
    closed = time.monotonic()
    market.close()
    thread.join(timeout=10)
    assert ended.is_set() and time.monotonic() - closed < 5


def test_close_ends_a_bounded_market() -> None:
    market = SimulatedMarket(DEFAULT_SYMBOLS, seed=7, rate=50, ticks=1_000)
    received = 0
    for _ in market:
        received += 1
        if received == 10:
            market.close()
    assert received == 10
