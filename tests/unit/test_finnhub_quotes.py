"""Finnhub's quotes, read by the real client from a server that answers as Finnhub does."""

from __future__ import annotations

import email.utils
import logging
import socket
import traceback
from collections.abc import Iterator
from itertools import pairwise
from threading import Event
from urllib.parse import urlsplit

import pytest
from fake_clock import FakeClock
from pydantic import SecretStr

from pipeline_lib.errors import FeedError
from pipeline_lib.finnhub_stand_in import UNKNOWN, Answer, FinnhubStandIn, quote
from pipeline_lib.records import Tick, check_tick
from pipeline_lib.sources import finnhub_faults
from pipeline_lib.sources.feed_health import FeedHealth
from pipeline_lib.sources.finnhub_quotes import SIGHTS_BEFORE_SEARCH, FinnhubQuotes

KEY = "sentinel0key0that0nobody0may0see"


@pytest.fixture
def server() -> Iterator[FinnhubStandIn]:
    with FinnhubStandIn(KEY, {"AAPL": quote(230.0), "MSFT": quote(430.0)}, clock=FakeClock()) as stand_in:
        yield stand_in


class Feed:
    """A source on the server and its clock, with what it reported."""

    def __init__(
        self,
        server: FinnhubStandIn,
        symbols: tuple[str, ...] = ("AAPL",),
        *,
        ticks: int | None,
        key: str = KEY,
        health: FeedHealth | None = None,
    ) -> None:
        self.reports: list[str] = []
        self.clock = server.clock
        assert isinstance(self.clock, FakeClock)
        self.source = FinnhubQuotes(
            SecretStr(key), symbols, base_url=server.rest_url, ticks=ticks, report=self.reports.append, clock=self.clock, health=health
        )

    def ticks(self) -> list[Tick]:
        return [check_tick(tick) for tick in self.source]


def paths_asked(server: FinnhubStandIn) -> list[str]:
    return [urlsplit(request.target).path.split("//")[-1].removeprefix("/api/v1/") for request in server.requests]


def test_quotes_come_in_turn_and_keep_the_contract(server: FinnhubStandIn) -> None:
    ticks = Feed(server, ("AAPL", "MSFT"), ticks=4).ticks()
    assert [(tick.symbol, tick.price) for tick in ticks] == [("AAPL", 230.0), ("MSFT", 430.0)] * 2
    assert {tick.kind for tick in ticks} == {"quote"} and {tick.source for tick in ticks} == {"finnhub-rest"}
    assert len({tick.id for tick in ticks}) == 4
    assert ticks[0].previous_close == 228.5


def test_eight_symbols_are_asked_for_every_eight_seconds(server: FinnhubStandIn) -> None:
    symbols = tuple(f"S{number}" for number in range(8))
    server.quotes.update({symbol: quote(10.0) for symbol in symbols})
    feed = Feed(server, symbols, ticks=24)
    times = [tick.receipt_time for tick in feed.ticks() if tick.symbol == "S0"]
    assert [later - earlier for earlier, later in pairwise(times)] == [8_000, 8_000]
    assert feed.source.name == "Finnhub quotes, 8 symbols: each every 8.0 s"


def test_a_quote_without_news_is_marked_unchanged(server: FinnhubStandIn) -> None:
    feed = Feed(server, ticks=4)
    iterator = iter(feed.source)
    repeats = [next(iterator).repeat, next(iterator).repeat]
    server.quotes["AAPL"] = quote(230.0, seconds=1_767_623_401)  # the same price, but traded again
    repeats += [next(iterator).repeat, next(iterator).repeat]
    assert repeats == [None, "unchanged", None, "unchanged"]


def test_a_quote_older_than_the_last_is_not_published_and_not_taken_for_news(server: FinnhubStandIn) -> None:
    health = FeedHealth(("AAPL",), clock=server.clock)
    server.faults.extend([None, None, "stale"])  # the first goes to the market's status
    ticks = Feed(server, ticks=2, health=health).ticks()
    assert [tick.repeat for tick in ticks] == [None, "unchanged"]
    assert len({tick.event_time for tick in ticks}) == 1 and len(server.requests) == 4
    assert health.status().marks == {"older": 1, "unchanged": 1}


def test_zeros_are_never_published_and_one_sight_does_not_make_a_symbol_unknown(server: FinnhubStandIn) -> None:
    server.faults.extend(["zeros"] * (SIGHTS_BEFORE_SEARCH - 1))
    feed = Feed(server, ticks=2)
    assert [tick.price for tick in feed.ticks()] == [230.0, 230.0]
    assert "search" not in paths_asked(server)
    assert len(feed.reports) == 2 and "no quote for AAPL" in feed.reports[0] and feed.reports[1] == "AAPL has a quote now"


def test_a_symbol_of_zeros_that_the_search_does_not_find_is_unknown_and_asked_for_no_more(server: FinnhubStandIn) -> None:
    feed = Feed(server, ("AAPL", "NONE"), ticks=20)
    assert {tick.symbol for tick in feed.ticks()} == {"AAPL"}
    assert paths_asked(server).count("search") == 1
    assert sum("NONE" in request.target for request in server.requests) == SIGHTS_BEFORE_SEARCH + 1
    assert "does not know NONE" in feed.reports[-1] and "SYMBOLS" in feed.reports[-1]
    assert feed.source.symbols == ("AAPL",) and "1 symbol: each every 1.0 s" in feed.source.name


def test_a_symbol_of_zeros_that_the_search_finds_is_asked_for_again(server: FinnhubStandIn) -> None:
    server.quotes["IDLE"] = UNKNOWN
    feed = Feed(server, ("AAPL", "IDLE"), ticks=20)
    feed.ticks()
    assert paths_asked(server).count("search") > 1 and feed.source.symbols == ("AAPL", "IDLE")
    assert len(feed.reports) == 1


def test_where_every_symbol_is_unknown_the_feed_stops_with_the_remedy(server: FinnhubStandIn) -> None:
    with pytest.raises(FeedError, match="knows none of NONE; correct SYMBOLS"):
        Feed(server, ("NONE",), ticks=1).ticks()


def test_a_symbol_that_was_zero_for_a_moment_is_published_again(server: FinnhubStandIn) -> None:
    server.faults.append(Answer(200, {"c": 0, "d": None, "dp": None, "h": 0, "l": 0, "o": 0, "pc": 0, "t": 0}))
    feed = Feed(server, ticks=1)
    assert feed.ticks()[0].price == 230.0
    assert feed.reports[-1] == "AAPL has a quote now"


@pytest.mark.parametrize("nonsense", ['{"c": NaN, "t": 1}', '{"c": 1e400, "t": 1e400}', '{"c": "7", "t": 1}', "{}", '{"c": 5, "t": 3}'])
def test_a_quote_of_nonsense_is_not_published(server: FinnhubStandIn, nonsense: str) -> None:
    server.faults.append(Answer(200, nonsense))
    assert [tick.price for tick in Feed(server, ticks=1).ticks()] == [230.0]
    assert len(server.requests) == 2


def test_a_limit_reached_is_waited_out_until_the_server_says(server: FinnhubStandIn) -> None:
    feed = Feed(server, ticks=1)
    reset = str(feed.clock.start_ms // 1_000 + 37)
    said = {"X-Ratelimit-Reset": reset, "X-Ratelimit-Remaining": "0"}
    server.faults.append(Answer(429, {"error": "API limit reached. Remaining Limit: 0"}, said))
    feed.ticks()
    assert 37 <= feed.clock.passed <= 39
    assert "limit of calls" in feed.reports[0] and "answers again" in feed.reports[1]


@pytest.mark.parametrize("header", [{}, {"X-Ratelimit-Reset": "soon"}, {"X-Ratelimit-Reset": "99999999999"}, {"Retry-After": "-1"}])
def test_a_limit_without_a_usable_time_is_backed_off_from_with_jitter(server: FinnhubStandIn, header: dict[str, str]) -> None:
    server.faults.extend(Answer(429, {"error": "API limit reached"}, header) for _ in range(8))
    feed = Feed(server, ticks=1)
    feed.ticks()
    for waited, least in zip(feed.clock.waited, [1, 2, 4, 8, 16, 32, 60, 60], strict=True):
        assert least - 0.01 <= waited - 1 <= min(least + 1, 60) + 0.01  # the turn of a second comes on top


@pytest.mark.parametrize(
    ("status", "body", "remedy"),
    [
        (401, {"error": "Invalid API key"}, "FINNHUB_API_KEY"),
        (429, {"error": "API limit reached. Please sign up for a free account"}, "FINNHUB_API_KEY"),
        (403, {"error": "You don't have access to this resource."}, "SYMBOLS"),
        (404, "nothing here", "FINNHUB_BASE_URL"),
    ],
)
def test_a_refusal_for_good_is_an_error_with_the_remedy(server: FinnhubStandIn, status: int, body: object, remedy: str) -> None:
    server.faults.append(Answer(status, body))
    with pytest.raises(FeedError, match=remedy) as refused:
        Feed(server, ticks=1).ticks()
    assert str(status) in str(refused.value) and refused.value.__context__ is None


@pytest.mark.parametrize(
    "fault",
    [
        Answer(500, {"error": "internal"}),
        Answer(503, "<html>down</html>", content_type="text/html"),
        Answer(502, "5"),
        Answer(200, "Service is warming up", content_type="text/plain"),
        Answer(200, "<html></html>", content_type="text/html"),
        Answer(200, "[1, 2]"),
        Answer(200, "{not json"),
        Answer(302, {}, {"Location": "http://127.0.0.1:1/elsewhere"}),
        Answer(hang_up=True),
        Answer(slow=True),
    ],
    ids=repr,
)
def test_trouble_is_waited_out_and_reported_once(server: FinnhubStandIn, fault: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finnhub_faults, "TIMEOUT_SECONDS", 0.2)
    server.faults.extend([fault, fault])
    feed = Feed(server, ticks=2)
    assert [tick.price for tick in feed.ticks()] == [230.0, 230.0]
    assert len(server.requests) == 4
    assert len(feed.reports) == 2 and KEY not in repr(feed.reports)


def test_a_symbol_can_be_set_and_taken_away_while_it_runs(server: FinnhubStandIn) -> None:
    feed = Feed(server, ("AAPL",), ticks=6)
    seen = []
    for number, tick in enumerate(feed.source):
        seen.append(tick.symbol)
        if number == 1:
            feed.source.set_symbols(("AAPL", "MSFT"))
        if number == 3:
            feed.source.set_symbols(("MSFT",))
    assert seen[:2] == ["AAPL"] * 2 and set(seen[2:4]) == {"AAPL", "MSFT"} and seen[4:] == ["MSFT"] * 2


def test_without_symbols_it_rests_until_there_are_some(server: FinnhubStandIn) -> None:
    source = Feed(server, (), ticks=1).source

    class SettingClock(FakeClock):
        def wait(self, closed: Event, seconds: float) -> bool:
            if self.passed > 100:
                source.set_symbols(("MSFT",))
            return super().wait(closed, seconds)

    source._clock = SettingClock()
    assert [tick.symbol for tick in source] == ["MSFT"] and len(server.requests) == 1


def test_a_name_that_is_not_resolved_is_waited_for_in_words_of_its_own(server: FinnhubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    address_of, asked = socket.getaddrinfo, []

    def no_name_twice(host: str, *rest: object, **named: object) -> object:
        asked.append(host)
        if len(asked) <= 2:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return address_of(host, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", no_name_twice)
    feed = Feed(server, ticks=1)
    assert [tick.price for tick in feed.ticks()] == [230.0]
    assert "its name is not resolved" in feed.reports[0] and "answers again" in feed.reports[1]


def test_a_clock_that_is_minutes_off_is_said_once_and_nothing_stops(server: FinnhubStandIn) -> None:
    feed = Feed(server, ticks=3)
    ahead = email.utils.formatdate(feed.clock.now_ms() / 1_000 + 240, usegmt=True)
    server.faults.extend(Answer(200, quote(231.0), {"Date": ahead}) for _ in range(3))
    assert len(feed.ticks()) == 3
    assert feed.reports == ["this machine's clock is 4 min behind Finnhub's: ages and freshness are wrong by that; set the clock"]


def test_the_exchange_is_asked_at_the_start_and_every_ten_minutes_and_believed(server: FinnhubStandIn) -> None:
    server.market_open = True  # the calendar has a night, 06:46 in New York
    health = FeedHealth(("AAPL",), clock=server.clock)
    assert not health.market_is_open()
    Feed(server, ticks=1_500, health=health).ticks()
    assert health.market_is_open()
    assert paths_asked(server).count("stock/market-status") == 3


def test_a_plan_that_may_not_ask_for_the_market_goes_by_the_calendar(server: FinnhubStandIn) -> None:
    server.faults.append("403")
    feed = Feed(server, ticks=1_000, health=FeedHealth(("AAPL",), clock=server.clock))
    assert len(feed.ticks()) == 1_000
    assert paths_asked(server).count("stock/market-status") == 1 and "calendar" in feed.reports[0]


def test_a_silence_is_a_gap_from_the_first_call_that_failed_to_the_next_good_answer(server: FinnhubStandIn) -> None:
    health = FeedHealth(("AAPL",), clock=server.clock)
    server.faults.extend([None, None, "500", "hang-up", None, "null"])
    feed = Feed(server, ticks=3, health=health)
    feed.ticks()
    first, second = health.status().gaps
    assert first.source == "finnhub-rest" and "500" in first.reason and "null" in second.reason
    assert 3_000 <= (first.ended_at or 0) - first.started_at <= 8_000


def test_a_redirect_does_not_carry_the_key_to_another_server(server: FinnhubStandIn) -> None:
    with FinnhubStandIn(KEY, {"AAPL": quote(1.0)}, clock=server.clock) as elsewhere:
        server.faults.append(Answer(302, {}, {"Location": f"{elsewhere.rest_url}/quote?symbol=AAPL"}))
        assert [tick.price for tick in Feed(server, ticks=1).ticks()] == [230.0]
        assert not elsewhere.requests


def test_a_server_that_is_down_is_waited_for() -> None:
    with FinnhubStandIn(KEY, {}, clock=FakeClock()) as gone:
        pass
    feed = Feed(gone, ticks=1)

    class ClosingClock(FakeClock):
        def wait(self, closed, seconds):  # type: ignore[no-untyped-def]
            if self.passed > 300:
                closed.set()
            return super().wait(closed, seconds)

    feed.source._clock = ClosingClock()
    assert feed.ticks() == []
    assert len(feed.reports) == 1 and "cannot be reached" in feed.reports[0]


def test_the_key_is_in_a_header_and_in_nothing_that_can_be_read(server: FinnhubStandIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.faults.extend([Answer(500, {"error": f"what is {KEY}?"}), Answer(hang_up=True), Answer(403, {"error": f"not with {KEY}"})])
    feed = Feed(server, ticks=3)
    with pytest.raises(FeedError) as refused:
        feed.ticks()
    assert all(request.headers["X-Finnhub-Token"] == KEY for request in server.requests)
    assert KEY not in repr([request.target for request in server.requests])
    shown = "".join(traceback.format_exception(refused.value)) + caplog.text + repr(feed.reports) + feed.source.name + repr(feed.source)
    assert KEY not in shown and "***" in shown


def test_a_key_that_cannot_be_one_is_refused_without_being_shown(server: FinnhubStandIn) -> None:
    for key in ("", f"{KEY}\n", f"two {KEY}", f"é{KEY}"):
        with pytest.raises(FeedError, match="FINNHUB_API_KEY") as refused:
            Feed(server, ticks=1, key=key)
        assert KEY not in str(refused.value)


def test_a_wrong_key_is_refused_by_the_server(server: FinnhubStandIn) -> None:
    with pytest.raises(FeedError, match="refuses the key"):
        Feed(server, ticks=1, key="another").ticks()


def test_close_ends_the_iteration(server: FinnhubStandIn) -> None:
    feed = Feed(server, ticks=100)
    received = 0
    for _ in feed.source:
        received += 1
        if received == 3:
            feed.source.close()
    assert received == 3


def test_the_exchange_is_asked_where_all_symbols_come_by_trades(server: FinnhubStandIn) -> None:
    server.market_open = True
    health = FeedHealth(("AAPL",), clock=server.clock)
    source = Feed(server, (), ticks=1, health=health).source

    class ClosingClock(FakeClock):
        def wait(self, closed: Event, seconds: float) -> bool:
            if self.passed > 1_000:
                source.close()
            return super().wait(closed, seconds)

    source._clock = ClosingClock()
    assert list(source) == [] and health.market_is_open()
    assert paths_asked(server) == ["stock/market-status"] * 2
