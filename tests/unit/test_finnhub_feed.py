"""Finnhub as one feed: a symbol's price comes by trades where there are any, else by quotes; which, is said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from finnhub_feeds import KEY, FeedBeside
from runs import assert_eventually, tick

from pipeline_lib.errors import FeedError
from pipeline_lib.finnhub_stand_in import FinnhubStandIn, Plan, quote
from pipeline_lib.sources import finnhub

SYMBOLS = ("AAPL", "MSFT", "TSLA")
PLENTY = Plan(per_minute=6_000)


@pytest.fixture(autouse=True)
def settles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finnhub, "SETTLED_SECONDS", 0.2)


@pytest.fixture
def server() -> Iterator[FinnhubStandIn]:
    with FinnhubStandIn(KEY, {symbol: quote(100.0) for symbol in SYMBOLS}, plan=PLENTY) as stand_in:
        yield stand_in


def asked_next(server: FinnhubStandIn, number: int = 8) -> set[str | None]:
    """Return the symbols of the next polls."""
    before = len(server.ledger.polls) + 1  # one may be under way
    assert_eventually(lambda: len(server.ledger.polls), lambda found: found >= before + number, seconds=10)
    return {poll.symbol for poll in server.ledger.polls[before:] if poll.path == "quote"}


def test_a_symbol_is_asked_for_until_it_has_traded_and_again_while_the_socket_is_away(server: FinnhubStandIn) -> None:
    with FeedBeside(server, SYMBOLS, 2) as beside:
        assert asked_next(server) == set(SYMBOLS)
        assert_eventually(lambda: server.subscribed, lambda found: found == {"AAPL", "MSFT"}, seconds=10)
        server.send(tick(1))
        assert_eventually(
            lambda: [found.kind for found in beside.ticks if found.symbol == "AAPL"][-1], lambda kind: kind == "trade", seconds=10
        )
        assert asked_next(server) == {"MSFT", "TSLA"}
        assert_eventually(lambda: beside.reports, bool, seconds=10)
        assert "trades by WebSocket for 1 symbol; quotes by REST for 2" in beside.reports[-1]
        assert "(1 are more than one socket may have)" in beside.feed.name
        server.fault("refused", times=1_000)
        server.fault("drop")
        assert_eventually(lambda: beside.feed.name, lambda name: "quotes by REST for 3" in name, seconds=10)
        assert asked_next(server, 12) == set(SYMBOLS)


def test_when_all_symbols_trade_nobody_is_asked(server: FinnhubStandIn) -> None:
    with FeedBeside(server, SYMBOLS, 3) as beside:
        assert_eventually(lambda: server.subscribed, lambda found: found == set(SYMBOLS), seconds=10)
        server.send(*(tick(number, symbol=symbol) for number, symbol in enumerate(SYMBOLS)))
        assert_eventually(lambda: beside.feed.name, lambda name: "quotes by REST for none" in name, seconds=10)
        assert_eventually(lambda: beside.health.detail, bool, seconds=10)
        asked = len(server.ledger.polls)
        server.send(tick(9, price=50.0))
        assert_eventually(lambda: beside.ticks[-1].price, lambda price: price == 50.0, seconds=10)
        assert len(server.ledger.polls) <= asked + 1


def test_a_plan_without_trades_means_quotes_alone_and_it_says_so() -> None:
    plan = PLENTY._replace(trades=False)
    with FinnhubStandIn(KEY, {"AAPL": quote(1.0)}, plan=plan) as server, FeedBeside(server, ("AAPL",), 1) as beside:
        assert_eventually(lambda: beside.reports, bool, seconds=10)
        assert "quotes by REST for 1, each every 0.0 s; no trades by WebSocket" in beside.reports[-1]
        assert asked_next(server) == {"AAPL"} and beside.error is None


def test_without_a_socket_no_socket_is_opened(server: FinnhubStandIn) -> None:
    with FeedBeside(server, SYMBOLS, 0) as beside:
        assert asked_next(server) == set(SYMBOLS)
        assert "no trades by WebSocket" in beside.feed.name
    assert server.ledger.connections == server.ledger.refusals == 0


def test_a_refusal_for_good_ends_the_feed(server: FinnhubStandIn) -> None:
    server.key = "another"
    with FeedBeside(server, SYMBOLS, 2) as beside:
        beside.thread.join(10)
    assert isinstance(beside.error, FeedError) and "FINNHUB_API_KEY" in str(beside.error)


def test_it_ends_after_so_many_ticks(server: FinnhubStandIn) -> None:
    with FeedBeside(server, SYMBOLS, 2, ticks=5) as beside:
        beside.thread.join(10)
        assert len(beside.ticks) == 5 and beside.feed.finite and beside.feed.total == 5


def test_closing_gives_what_has_been_received(server: FinnhubStandIn) -> None:
    with FeedBeside(server, SYMBOLS, 3) as beside:
        assert_eventually(lambda: server.subscribed, lambda found: found == set(SYMBOLS), seconds=10)
        server.send(*(tick(number, price=100.0 + number) for number in range(2_000)))
        assert_eventually(lambda: len(server.ledger.deliveries), lambda number: number == 2_000, seconds=10)
    assert sum(found.kind == "trade" for found in beside.ticks) == 2_000 and beside.error is None
