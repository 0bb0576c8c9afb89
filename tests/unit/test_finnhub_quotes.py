"""Finnhub's quotes, read by the real client from a server that answers as Finnhub does."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from itertools import pairwise

import pytest
from fake_clock import FakeClock
from finnhub_stand_in import Answer, FinnhubStandIn, quote
from pydantic import SecretStr

from pipeline_lib.errors import FeedError
from pipeline_lib.records import Tick, check_tick
from pipeline_lib.sources import finnhub_quotes
from pipeline_lib.sources.finnhub_quotes import FinnhubQuotes

KEY = "sentinel0key0that0nobody0may0see"


@pytest.fixture
def server() -> Iterator[FinnhubStandIn]:
    with FinnhubStandIn(KEY, {"AAPL": quote(230.0), "MSFT": quote(430.0)}) as stand_in:
        yield stand_in


class Feed:
    """A source on the server, with what it reported and its clock."""

    def __init__(self, server: FinnhubStandIn, symbols: tuple[str, ...] = ("AAPL",), *, ticks: int, key: str = KEY) -> None:
        self.reports: list[str] = []
        self.clock = FakeClock()
        self.source = FinnhubQuotes(
            SecretStr(key), symbols, base_url=server.base_url, ticks=ticks, report=self.reports.append, clock=self.clock
        )

    def ticks(self) -> list[Tick]:
        return [check_tick(tick) for tick in self.source]


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
    assert "every 8 s" in feed.source.name


def test_a_quote_without_news_is_marked_unchanged(server: FinnhubStandIn) -> None:
    feed = Feed(server, ticks=4)
    iterator = iter(feed.source)
    repeats = [next(iterator).repeat, next(iterator).repeat]
    server.quotes["AAPL"] = quote(230.0, seconds=1_767_623_401)  # the same price, but traded again
    repeats += [next(iterator).repeat, next(iterator).repeat]
    assert repeats == [None, "unchanged", None, "unchanged"]


def test_a_price_of_zero_is_never_published_and_is_reported_once(server: FinnhubStandIn) -> None:
    feed = Feed(server, ("AAPL", "NONE"), ticks=3)
    assert {tick.symbol for tick in feed.ticks()} == {"AAPL"}
    assert len(feed.reports) == 1 and "no quote for NONE" in feed.reports[0]


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
    server.faults.append(Answer(429, {"error": "API limit reached. Remaining Limit: 0"}, {"X-Ratelimit-Reset": reset}))
    feed.ticks()
    assert 37 <= feed.clock.passed <= 39
    assert "limit of calls" in feed.reports[0] and "answers again" in feed.reports[1]


@pytest.mark.parametrize("header", [{}, {"X-Ratelimit-Reset": "soon"}, {"X-Ratelimit-Reset": "99999999999"}, {"Retry-After": "-1"}])
def test_a_limit_without_a_usable_time_is_backed_off_from(server: FinnhubStandIn, header: dict[str, str]) -> None:
    server.faults.extend(Answer(429, {"error": "API limit reached"}, header) for _ in range(10))
    feed = Feed(server, ticks=1)
    feed.ticks()
    assert [round(seconds) for seconds in feed.clock.waited] == [2, 3, 5, 9, 17, 33, 61, 61, 61, 61]  # 1, 2, 4, … 60, and the pause


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
    monkeypatch.setattr(finnhub_quotes, "TIMEOUT_SECONDS", 0.2)
    server.faults.extend([fault, fault])
    feed = Feed(server, ticks=2)
    assert [tick.price for tick in feed.ticks()] == [230.0, 230.0]
    assert len(server.requests) == 4
    assert len(feed.reports) <= 2 and KEY not in repr(feed.reports)


def test_a_redirect_does_not_carry_the_key_to_another_server(server: FinnhubStandIn) -> None:
    with FinnhubStandIn(KEY, {"AAPL": quote(1.0)}) as elsewhere:
        server.faults.append(Answer(302, {}, {"Location": f"{elsewhere.base_url}/quote?symbol=AAPL"}))
        assert [tick.price for tick in Feed(server, ticks=1).ticks()] == [230.0]
        assert elsewhere.requests == []


def test_a_server_that_is_down_is_waited_for() -> None:
    with FinnhubStandIn(KEY, {}) as gone:
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
