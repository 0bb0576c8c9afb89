"""The stand-in behaves as Finnhub does, and says afterwards what it did: what the tests of the client rest on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import requests
from fake_clock import FakeClock
from runs import assert_eventually, tick
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pipeline_lib.errors import ServiceError, SettingsError
from pipeline_lib.finnhub_stand_in import FAULTS, FaultSchedule, FinnhubStandIn, Plan, quote

KEY = "a0key"


@pytest.fixture
def server() -> Iterator[FinnhubStandIn]:
    with FinnhubStandIn(KEY, {"AAPL": quote(230.0)}) as stand_in:
        yield stand_in


def ask(server: FinnhubStandIn, path: str = "quote?symbol=AAPL", key: str = KEY) -> requests.Response:
    return requests.get(f"{server.rest_url}/{path}", headers={"X-Finnhub-Token": key} if key else {}, timeout=5)


def subscribe(server: FinnhubStandIn, socket: ClientConnection, *symbols: str) -> None:
    for symbol in symbols:
        socket.send(json.dumps({"type": "subscribe", "symbol": symbol}))
    assert_eventually(lambda: server.ledger.subscribed, lambda found: set(symbols) <= set(found), seconds=5)


def received(socket: ClientConnection, number: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    while len(rows) < number:
        message = json.loads(socket.recv(timeout=5))
        rows += message["data"] if message["type"] == "trade" else []
    return rows


@pytest.mark.parametrize("path", ["quote?symbol=AAPL", "/quote?symbol=AAPL"])
def test_a_quote_has_finnhubs_fields_and_the_headers_of_the_limit(server: FinnhubStandIn, path: str) -> None:
    answer = ask(server, path)
    assert set(answer.json()) == {"c", "d", "dp", "h", "l", "o", "pc", "t"} and answer.json()["c"] == 230.0
    assert (answer.headers["X-Ratelimit-Limit"], answer.headers["X-Ratelimit-Remaining"]) == ("60", "59")
    assert ask(server, "quote?symbol=NONE").json()["c"] == 0
    assert [poll.symbol for poll in server.ledger.polls] == ["AAPL", "NONE"]


def test_a_search_finds_a_symbol_and_the_market_has_a_status(server: FinnhubStandIn) -> None:
    assert ask(server, "search?q=AAPL").json()["result"][0]["symbol"] == "AAPL"
    server.market_open = True
    assert ask(server, "stock/market-status?exchange=US").json()["isOpen"] is True


def test_a_wrong_key_a_missing_one_and_a_paid_resource_are_refused(server: FinnhubStandIn) -> None:
    assert [ask(server, key=key).status_code for key in ("another", "")] == [401, 429]
    assert "sign up" in ask(server, key="").text
    assert ask(server, "stock/candle?symbol=AAPL").status_code == 403


def test_the_sixty_first_call_of_a_minute_is_refused_until_the_minute_has_ended() -> None:
    clock = FakeClock()
    with FinnhubStandIn(KEY, {"AAPL": quote(230.0)}, clock=clock) as server:
        statuses = []
        for _ in range(62):
            statuses.append(ask(server).status_code)
            clock.passed += 0.1
        assert statuses == [200] * 60 + [429] * 2
        clock.passed = 60.0
        assert ask(server).status_code == 200


def test_the_thirty_first_call_of_a_second_is_refused() -> None:
    with FinnhubStandIn(KEY, {"AAPL": quote(230.0)}, clock=FakeClock()) as server:
        assert [ask(server).status_code for _ in range(31)] == [200] * 30 + [429]


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [("429", 429, "limit"), ("401", 401, "key"), ("500", 500, "error"), ("text", 200, "warming"), ("null", 200, "null")],
)
def test_a_fault_comes_once_and_then_no_more(server: FinnhubStandIn, fault: str, status: int, text: str) -> None:
    server.fault(fault)
    answer = ask(server)
    assert answer.status_code == status and text in answer.text
    assert ask(server).json()["c"] == 230.0


def test_a_stale_quote_is_a_day_old(server: FinnhubStandIn) -> None:
    server.fault("stale")
    assert ask(server).json()["t"] == quote(230.0)["t"] - 86_400


def test_trades_go_to_who_has_subscribed_and_renew_the_quote(server: FinnhubStandIn) -> None:
    with connect(f"{server.websocket_url}/?token={KEY}") as socket:
        subscribe(server, socket, "AAPL")
        server.send(tick(1, price=231.5, conditions=["1", "12"]), tick(2, symbol="MSFT"), tick(3, price=231.0))
        first, second = received(socket, 2)
        assert first == {"c": ["1", "12"], "p": 231.5, "s": "AAPL", "t": tick(1).event_time, "v": 10.0} and second["p"] == 231.0
        assert server.confirm() and [found.price for found in server.ledger.deliveries] == [231.5, 231.0]
    assert ask(server).json()["c"] == 231.0


def test_a_key_has_one_socket_and_a_wrong_key_none(server: FinnhubStandIn) -> None:
    with connect(f"{server.websocket_url}/?token={KEY}") as socket:
        subscribe(server, socket, "AAPL")
        for key, status in ((KEY, 429), ("another", 401)):
            with pytest.raises(InvalidStatus) as refused, connect(f"{server.websocket_url}/?token={key}"):
                pass
            assert refused.value.response.status_code == status


def test_more_symbols_than_the_plan_has_are_refused_by_a_message_and_bring_nothing() -> None:
    with FinnhubStandIn(KEY, plan=Plan(symbols=1)) as server, connect(f"{server.websocket_url}/?token={KEY}") as socket:
        subscribe(server, socket, "AAPL")
        socket.send(json.dumps({"type": "subscribe", "symbol": "MSFT"}))
        assert json.loads(socket.recv(timeout=5)) == {"msg": "Subscribing to too many symbols", "type": "error"}
        assert server.subscribed == {"AAPL"}
        socket.send(json.dumps({"type": "unsubscribe", "symbol": "AAPL"}))
        subscribe(server, socket, "MSFT")


def test_a_drop_comes_after_all_that_was_delivered_and_is_a_gap_until_the_next_socket(server: FinnhubStandIn) -> None:
    with connect(f"{server.websocket_url}/?token={KEY}") as socket:
        subscribe(server, socket, "AAPL")
        server.send(tick(1))
        assert_eventually(lambda: len(server.ledger.deliveries), lambda number: number == 1, seconds=5)
        server.fault("drop")
        assert len(received(socket, 1)) == 1
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)
    assert [gap.ended for gap in server.ledger.gaps] == [None]
    with connect(f"{server.websocket_url}/?token={KEY}"):
        assert_eventually(lambda: server.ledger.gaps[0].ended, bool, seconds=5)


def test_a_silent_socket_stays_open_and_brings_pings_alone() -> None:
    stand_in = FinnhubStandIn(KEY)
    stand_in.ping_seconds = 0.05
    with stand_in as server, connect(f"{server.websocket_url}/?token={KEY}") as socket:
        subscribe(server, socket, "AAPL")
        server.fault("silent")
        server.send(tick(1))
        assert [json.loads(socket.recv(timeout=5)) for _ in range(3)] == [{"type": "ping"}] * 3
        assert not server.ledger.deliveries and server.ledger.gaps[0].cause == "silent"


def test_duplicates_and_disorder_are_in_the_account_as_they_went_out(server: FinnhubStandIn) -> None:
    with connect(f"{server.websocket_url}/?token={KEY}") as socket:
        subscribe(server, socket, "AAPL")
        server.fault("disorder")
        server.send(*(tick(number, price=100 + number) for number in range(4)))
        assert [row["p"] for row in received(socket, 4)] == [103, 102, 101, 100]
        server.fault("duplicate")
        assert [row["p"] for row in received(socket, 3)] == [102, 101, 100]
        assert [found.price for found in server.ledger.deliveries] == [103, 102, 101, 100, 102, 101, 100]


def test_faults_are_asked_for_by_hand_too(server: FinnhubStandIn) -> None:
    assert requests.post(f"{server.control_url}/fault?name=500", timeout=5).json() == {"fault": "500"}
    assert ask(server).status_code == 500
    assert requests.post(f"{server.control_url}/fault?name=rain", timeout=5).status_code == 400
    assert requests.get(f"{server.control_url}/ledger", timeout=5).json()["ledger"]["polls"] == 1


def test_a_fault_that_there_is_not_is_an_error_that_names_those_there_are(server: FinnhubStandIn) -> None:
    with pytest.raises(SettingsError, match="drop"):
        server.fault("rain")
    with pytest.raises(SettingsError, match="rain"):
        FaultSchedule(1, 1.0, ("rain",))


def test_a_schedule_is_the_same_for_the_same_seed_and_has_every_fault() -> None:
    names = tuple(FAULTS)
    one, again, other = (list(islice(FaultSchedule(seed, 2.0, names), 300)) for seed in (1, 1, 2))
    assert one == again != other and {planned.name for planned in one} == set(names)
    assert 1.5 < sum(planned.after_seconds for planned in one) / 300 < 2.5


def test_a_port_that_is_taken_is_an_error_with_the_way_out(server: FinnhubStandIn) -> None:
    port = int(server.rest_url.split(":")[2].split("/")[0])
    with pytest.raises(ServiceError, match="another port"), FinnhubStandIn(KEY, port=port):
        pass


def test_the_command_serves_what_it_says_until_it_is_told_to_stop(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "stocks"), "finnhub-stand-in", "--port", "0", "--rate", "100", "--key", KEY]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(3)]
            found = dict(re.findall(r"(FINNHUB_[A-Z_]+)=(\S+)", lines[1]))
            with connect(f"{found['FINNHUB_WEBSOCKET_URL']}/?token={found['FINNHUB_API_KEY']}") as socket:
                socket.send(json.dumps({"type": "subscribe", "symbol": "AAPL"}))
                assert received(socket, 1)[0]["s"] == "AAPL"
            quote_url, key = f"{found['FINNHUB_BASE_URL']}/quote?symbol=AAPL", {"X-Finnhub-Token": KEY}
            assert requests.get(quote_url, headers=key, timeout=5).json()["c"] > 0
        finally:
            process.terminate()
        said = process.stdout.read()
    assert process.returncode == 0 and "1 polls" in said and "1 connections" in said
