"""What the feed says of its symbols and gaps, on its way into PostgreSQL and out to readers."""

from __future__ import annotations

import math
import time

import msgspec
import pytest

from pipeline_lib import pipeline
from pipeline_lib.records import FeedStatus, Gap, SymbolFreshness, from_ms
from pipeline_lib.store import Store

# An hour ahead, so that it is not long ago when the test comes to its turn; what has to be old by then is hours older.
NOW = time.time_ns() // 1_000_000 + 3_600_000
OLD = NOW - 3 * 3_600_000


@pytest.fixture
def store(place: pipeline.Place) -> Store:
    found = pipeline.open_store(place.settings)
    found.create_tables()
    return found


def status(at: int = NOW, *, symbols: tuple[SymbolFreshness, ...] | None = (), gaps: tuple[Gap, ...] = ()) -> FeedStatus:
    return FeedStatus(state="running", source="finnhub", detail="Finnhub", since=at, at=at, symbols=symbols, gaps=gaps)


LIVE = SymbolFreshness("AAPL", "LIVE", NOW - 5_000, NOW - 1_000, NOW - 500)
CLOSED = SymbolFreshness("MSFT", "CLOSED", NOW - 9_000_000, NOW - 9_000_000, NOW - 8_000_000, NOW + 9_000_000)


def states(store: Store) -> dict[str, str]:
    return {row["symbol"]: row["state"] for row in store.load_freshness().to_dict("records")}


def test_freshness_is_stored_and_shown_beside_the_price_or_without_one(store: Store) -> None:
    store.keep_feed_status(status(symbols=(LIVE, CLOSED)))
    assert states(store) == {"AAPL": "LIVE", "MSFT": "CLOSED"}
    first, second = store.load_prices().to_dict("records")
    assert (first["symbol"], first["freshness"], first["fresh_since"]) == ("AAPL", "LIVE", from_ms(LIVE.since))
    assert second["opens_at"] == from_ms(NOW + 9_000_000) and math.isnan(first["price"])


def test_a_word_that_is_old_is_taken_for_no_data_since_then(store: Store) -> None:
    store.keep_feed_status(status(OLD, symbols=(LIVE, CLOSED)))
    found = store.load_freshness()
    assert set(found["state"]) == {"NO DATA"} and set(found["since"]) == {from_ms(OLD)}
    assert found["opens_at"].isna().all()


def test_an_older_word_that_comes_again_changes_nothing(store: Store) -> None:
    store.keep_feed_status(status(symbols=(LIVE,)))
    store.keep_feed_status(status(NOW - 5_000, symbols=(msgspec.structs.replace(LIVE, state="STALE"),)))
    assert states(store) == {"AAPL": "LIVE"}


def test_a_simulated_market_after_a_live_feed_leaves_no_freshness(store: Store) -> None:
    store.keep_feed_status(status(symbols=(LIVE,)))
    store.keep_feed_status(status(symbols=None))
    assert states(store) == {}


def test_a_symbol_that_the_feed_has_not_named_for_long_is_forgotten(store: Store) -> None:
    store.keep_feed_status(status(OLD - 700_000, symbols=(LIVE, CLOSED)))
    store.keep_feed_status(status(symbols=(LIVE,)))
    assert states(store) == {"AAPL": "LIVE"}


def test_gaps_are_intervals_and_one_that_is_not_named_any_more_has_ended(store: Store) -> None:
    ended, lasting = Gap("finnhub-rest", NOW - 9_000, NOW - 6_000, "no answer"), Gap("finnhub-ws", NOW - 5_000, None, "dropped")
    store.keep_feed_status(status(NOW - 2_000, gaps=(lasting,)))
    store.keep_feed_status(status(NOW - 1_000, gaps=(ended, lasting)))
    first, second = store.load_gaps().to_dict("records")
    assert (first["source"], first["started_at"], first["ended_at"]) == ("finnhub-rest", from_ms(NOW - 9_000), from_ms(NOW - 6_000))
    assert second["reason"] == "dropped" and str(second["ended_at"]) == "NaT"
    store.keep_feed_status(status(gaps=(ended,)))  # another run of the feed, which knows nothing of it
    assert store.load_gaps()["ended_at"].tolist()[1] == from_ms(NOW)
