"""Finnhub's trades, read by the real client from a server that behaves as Finnhub does."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator

import pytest
from finnhub_feeds import KEY, QUICK, TradesBeside, always_closed
from runs import assert_eventually, tick

from pipeline_lib.errors import FeedError
from pipeline_lib.finnhub_stand_in import FinnhubStandIn, Plan
from pipeline_lib.records import Tick
from pipeline_lib.sources.finnhub_trades import PART, NoTradesError
from pipeline_lib.sources.repeats import SeenTrades


@pytest.fixture
def server() -> Iterator[FinnhubStandIn]:
    with FinnhubStandIn(KEY) as stand_in:
        yield stand_in


def eventually(get: object, expected: object = bool) -> object:
    return assert_eventually(get, expected, seconds=10)  # type: ignore[arg-type]


def connected(server: FinnhubStandIn, *symbols: str) -> None:
    eventually(lambda: server.subscribed, lambda found: found >= set(symbols or ("AAPL", "MSFT")))


def delivered(server: FinnhubStandIn, beside: TradesBeside, *trades: Tick) -> list[Tick]:
    """Return the ticks of these trades, sent and received."""
    before = len(beside.ticks)
    server.send(*trades)
    eventually(lambda: len(beside.ticks), lambda number: number >= before + len(trades))
    return beside.ticks[before:]


def test_a_trade_becomes_a_tick_with_finnhubs_time_and_an_id_of_its_own(server: FinnhubStandIn) -> None:
    with TradesBeside(server) as beside:
        connected(server)
        rows = [tick(1, price=230.5, conditions=["1", "12"]), tick(2, symbol="MSFT", volume=0.0, conditions=None), tick(3, volume=0.25)]
        first, second, third = delivered(server, beside, *rows)
        assert (first.kind, first.source, first.symbol, first.price, first.conditions) == (
            "trade",
            "finnhub-ws",
            "AAPL",
            230.5,
            ["1", "12"],
        )
        assert first.event_time == rows[0].event_time and first.receipt_time > first.event_time
        assert (second.volume, second.conditions, third.volume) == (0.0, None, 0.25)
        assert len({first.id, second.id, third.id}) == 3 and beside.trades.traded == {"AAPL", "MSFT"}


def test_after_a_drop_it_subscribes_again_and_goes_on_under_new_ids(server: FinnhubStandIn) -> None:
    with TradesBeside(server) as beside:
        for number in range(3):
            connected(server)
            delivered(server, beside, tick(number))
            server.fault("drop")
            eventually(lambda seen=number: server.ledger.connections == seen + 2)
        connected(server)
        delivered(server, beside, tick(9))
        assert len({found.id for found in beside.ticks}) == 4
        gaps = [gap for gap in beside.health.status().gaps if gap.source == PART]
        assert len(gaps) == len(server.ledger.gaps) == 3 and all(gap.ended_at for gap in gaps)
        assert sum("closed the socket" in report for report in beside.reports) == 3


def test_a_socket_that_is_open_but_silent_is_replaced_while_the_market_is_open() -> None:
    stand_in = FinnhubStandIn(KEY)
    stand_in.ping_seconds = 0.1  # pings are no data
    with stand_in as server, TradesBeside(server) as beside:
        connected(server)
        delivered(server, beside, tick(1))
        server.fault("silent")
        eventually(lambda: server.ledger.connections, lambda number: number == 2)
        connected(server)
        assert beside.health.status().gaps[-1].ended_at is None  # an open socket is no proof
        delivered(server, beside, tick(2))
        (gap,) = beside.health.status().gaps
        assert gap.ended_at is not None and gap.ended_at - gap.started_at >= 900 and "sends no trades" in gap.reason


def test_a_feed_that_stays_silent_is_reconnected_less_and_less_often(server: FinnhubStandIn) -> None:
    with TradesBeside(server, patience=QUICK._replace(silent=0.1, longest_silent=100)) as beside:
        eventually(lambda: server.ledger.connections, lambda number: number == 4)  # after 0.1, 0.2 and 0.4 s
        (gap,) = beside.health.status().gaps
        assert gap.ended_at is None
        assert len(beside.reports) == 1 and "sends no trades" in beside.reports[0]


def test_silence_while_the_market_is_closed_is_no_fault(server: FinnhubStandIn) -> None:
    with TradesBeside(server, hours=always_closed, patience=QUICK._replace(silent=0.1)) as beside:
        connected(server)
        server.fault("drop")
        eventually(lambda: server.ledger.connections, lambda number: number == 2)
        # A lost socket is a gap all the same, and ends with the next one, since no trade is due.
        eventually(lambda: beside.health.status().gaps and beside.health.status().gaps[-1].ended_at)
        assert server.ledger.connections == 2


def test_what_trades_at_all_hours_is_watched_at_all_hours(server: FinnhubStandIn) -> None:
    with TradesBeside(server, ("BINANCE:BTCUSDT",), hours=always_closed, patience=QUICK._replace(silent=0.1)):
        eventually(lambda: server.ledger.connections, lambda number: number > 1)


@pytest.mark.parametrize(("fault", "words"), [("refused", "refuses the socket"), ("held", "as soon as it is open")])
def test_a_socket_refused_because_another_holds_the_key_is_waited_for(server: FinnhubStandIn, fault: str, words: str) -> None:
    server.fault(fault, times=3)
    with TradesBeside(server) as beside:
        connected(server)
        delivered(server, beside, tick(1))
        assert sum(words in report and "another program" in report for report in beside.reports) == 1
        eventually(lambda: "open again" in beside.reports[-1])
        assert len(beside.health.status().gaps) == 1


def test_a_wrong_key_is_refused_for_good(server: FinnhubStandIn) -> None:
    with TradesBeside(server, key="another") as beside:
        beside.thread.join(10)
    assert isinstance(beside.error, FeedError) and "FINNHUB_API_KEY" in str(beside.error) and beside.error.__context__ is None


def test_a_plan_without_trades_is_an_error_of_its_own() -> None:
    with FinnhubStandIn(KEY, plan=Plan(trades=False)) as server, TradesBeside(server) as beside:
        beside.thread.join(10)
    assert isinstance(beside.error, NoTradesError)


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_an_address_that_has_no_socket_is_refused_for_good(server: FinnhubStandIn, scheme: str) -> None:
    with TradesBeside(server, url=server.rest_url.replace("http", scheme)) as beside:
        beside.thread.join(10)
    assert isinstance(beside.error, FeedError) and "FINNHUB_WEBSOCKET_URL" in str(beside.error)


@pytest.mark.parametrize(
    ("url", "words"), [("ws://127.0.0.1:1", "cannot be reached"), ("ws://nowhere.invalid", "name nowhere.invalid is not resolved")]
)
def test_a_server_that_is_not_there_is_waited_for(server: FinnhubStandIn, url: str, words: str) -> None:
    with TradesBeside(server, url=url) as beside:
        eventually(lambda: beside.reports)
        assert words in beside.reports[0] and beside.health.status().waiting_for
    assert beside.error is None


def test_more_symbols_than_the_plan_has_is_told_once_and_the_others_have_no_trades() -> None:
    with FinnhubStandIn(KEY, plan=Plan(symbols=1)) as server, TradesBeside(server, ("AAPL", "MSFT", "TSLA")) as beside:
        eventually(lambda: beside.reports)
        delivered(server, beside, tick(1))
        assert beside.reports == ["Finnhub says on the socket: Subscribing to too many symbols"]
        assert beside.trades.traded == {"AAPL"}


def test_a_repeat_is_published_and_marked_or_left_out_if_so_set(server: FinnhubStandIn) -> None:
    for number, drop in enumerate((False, True)):
        with TradesBeside(server, drop_repeats=drop) as beside:
            connected(server)
            delivered(server, beside, tick(1, price=100), tick(2, price=101))
            server.fault("drop")
            eventually(lambda seen=number: server.ledger.connections == 2 * seen + 2)
            connected(server)
            server.send(tick(3, price=101), tick(4, price=102))  # the first is what came before the drop
            eventually(lambda found=beside: found.ticks[-1].price, lambda price: price == 102)
            assert [found.repeat for found in beside.ticks] == ([None] * 3 if drop else [None, None, "suspected", None])
            assert len({found.id for found in beside.ticks}) == len(beside.ticks)
            marks = beside.health.status().marks
            assert (marks.get("suspected", 0), marks.get("dropped repeats", 0)) == ((0, 1) if drop else (1, 0))
        eventually(lambda: not server.subscribed)


def test_what_is_no_trade_is_left_out_and_counted(server: FinnhubStandIn) -> None:
    with TradesBeside(server) as beside:
        connected(server)
        server.fault("nonsense")
        server.fault("error")
        delivered(server, beside, tick(1))
        server.send(tick(2, price=0.0), tick(3, volume=-1.0))
        delivered(server, beside, tick(4))
        assert [found.repeat for found in beside.ticks] == [None, "suspected"]
        assert beside.health.status().marks == {"nonsense": 1, "refused trades": 2, "suspected": 1}
        assert len(beside.reports) == 4 and "something went wrong" in beside.reports[1]


def test_closing_ends_it_soon_with_all_that_has_come(server: FinnhubStandIn) -> None:
    with TradesBeside(server) as beside:
        connected(server)
        server.send(*(tick(number, price=100 + number) for number in range(500)))
        eventually(lambda: len(server.ledger.deliveries), lambda number: number == 500)
    assert len(beside.ticks) == 500 and beside.error is None


def test_the_key_is_seen_nowhere(server: FinnhubStandIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown = []
    with FinnhubStandIn("another", plan=Plan(trades=False)) as refusing:
        urls = [server.websocket_url, refusing.websocket_url, server.rest_url, server.rest_url.replace("http", "ws"), "ws://127.0.0.1:1"]
        for url in urls:
            with TradesBeside(server, url=url) as beside:
                eventually(lambda found=beside: found.error or found.reports or server.subscribed)
                for fault in ("drop", "refused", "held", "nonsense", "error") if url == server.websocket_url else ():
                    connected(server)
                    server.fault(fault)
            shown += [*beside.reports, repr(beside.trades), repr(vars(beside.trades)), repr(beside.health.status())]
            shown += traceback.format_exception(beside.error) if beside.error else []
            eventually(lambda: not server.subscribed)
    assert "Finnhub" in "".join(shown) and KEY not in "".join(shown) + caplog.text


def test_a_repeat_is_suspected_within_the_span_and_memory_is_bounded() -> None:
    seen = SeenTrades(span_seconds=10, max_remembered=100)
    assert not seen.suspect(tick(0)) and seen.suspect(tick(5_000)) and not seen.suspect(tick(15_001))
    assert not any(
        seen.suspect(tick(15_002, **other)) for other in ({"price": 1.0}, {"volume": 1.0}, {"symbol": "MSFT"}, {"conditions": ["1"]})
    )
    for number in range(1_000):
        seen.suspect(tick(20_000, price=200.0 + number))
    assert len(seen) == 100
