"""The promise: whatever comes, in whatever order, the table is what the topic says, and every message is accounted for.

Kafka, Spark and PostgreSQL are real; each test has a topic and a database of its own. Event times are written as offsets
from T0, the start of a window of ten seconds.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from pyspark.sql import SparkSession
from runs import SYMBOLS, assert_equal, assert_eventually, drain, open_store, publish, random_ticks, tick

from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.errors import AlreadyRunningError, OffsetsMovedError, SchemaError, TopicError
from pipeline_lib.pipeline import Place
from pipeline_lib.records import Batch
from pipeline_lib.store import Store


def test_disorder_and_ties_give_the_bars_of_the_topic(place: Place, session: SparkSession) -> None:
    settings = place.settings.replaced(max_offsets_per_trigger=700)
    publish(settings, random_ticks(1, 5_000))
    drain(settings, session)
    assert_equal(settings)
    assert len(open_store(place).load_progress()) > 5  # it was cut into several micro-batches


def test_open_and_close_are_the_first_and_last_by_event_time_then_partition_and_offset(place: Place, session: SparkSession) -> None:
    publish(
        place.settings,
        [
            tick(1, price=102, at=4),
            tick(2, price=101, at=1),  # the open: earliest, though it came second
            tick(3, price=109, at=1),  # as early, but a later offset
            tick(4, price=108, at=9),
            tick(5, price=104, at=9),  # the close: as late, and a later offset
            tick(6, price=107, at=5),
            tick(7, price=120, at=10),  # +10 s: the next window
        ],
    )
    drain(place.settings, session)
    bar = open_store(place).load_bars("AAPL").iloc[0]
    assert (bar["open"], bar["high"], bar["low"], bar["close"], bar["volume"]) == (101, 109, 101, 104, 60)


def test_a_window_from_which_nothing_can_be_said_says_nothing(place: Place, session: SparkSession) -> None:
    publish(place.settings, [tick(1, volume=0.0), tick(2, at=1, volume=0.0, repeat="unchanged")])
    drain(place.settings, session)
    bar = open_store(place).query("select * from stock_aggregates").iloc[0]
    assert (bar["tick_count"], bar["trade_count"], bar["poll_count"]) == (1, 0, 1)
    assert bar[["vwap", "price_stddev"]].isna().all()


def test_a_stream_goes_on_where_the_last_one_stopped(place: Place, session: SparkSession) -> None:
    ticks = random_ticks(3, 2_000)
    for part in (ticks[:700], ticks[700:701], ticks[701:]):
        publish(place.settings, part)
        drain(place.settings, session)
    drain(place.settings, session)  # nothing new
    assert_equal(place.settings)
    assert open_store(place).query("select sum(tick_count + poll_count) as n from stock_aggregates")["n"][0] == len(ticks)


def test_event_time_that_jumps_back_by_hours_loses_nothing_and_counts_the_late(place: Place, session: SparkSession) -> None:
    settings = place.settings
    ticks = sorted(random_ticks(4, 2_000, seconds=7_200), key=lambda tick: (tick.symbol, tick.event_time))
    publish(settings, ticks[:1_000])
    drain(settings, session)
    publish(settings, ticks[1_000:])
    drain(settings, session)
    assert_equal(settings)
    late = open_store(place).query("select sum(late_tick_count) as late, max(revision) as revision from stock_aggregates")
    assert late["late"][0] > 0


def test_a_late_tick_amends_a_final_bar_with_a_new_revision(place: Place, session: SparkSession) -> None:
    publish(place.settings, [tick(1, price=100), tick(2, price=105, at=60)])  # +60 s: the first window is final
    drain(place.settings, session)
    before = open_store(place).load_bars("AAPL").iloc[0]
    publish(place.settings, [tick(3, price=99, at=5)])
    drain(place.settings, session)
    after = open_store(place).load_bars("AAPL").iloc[0]
    assert (before["is_final"], before["revision"], before["low"]) == (True, 0, 100)
    assert (after["revision"], after["low"], after["late_tick_count"], after["tick_count"]) == (1, 99, 1, 2)


def test_wider_bars_equal_those_computed_directly(place: Place, session: SparkSession, services: Settings) -> None:
    ticks = random_ticks(6, 3_000, seconds=3_600)
    publish(place.settings, ticks)
    drain(place.settings, session)
    with Place(services, "wide") as direct:
        minute = direct.settings.replaced(window="1 minute")
        publish(minute, ticks)
        drain(minute, session)
        prices = ["open", "high", "low", "close", "vwap", "mean_price", "price_stddev", "change_pct"]
        columns = [*prices, "volume", "notional", "tick_count", "trade_count", "poll_count"]
        for symbol in SYMBOLS:
            wide = open_store(place).load_bars(symbol, "1 minute")[columns].astype(float)
            same = open_store(direct).load_bars(symbol)[columns].astype(float)
            assert len(wide) == len(same) > 10
            assert ((wide - same).abs() <= 1e-9 * same.abs() + 1e-11).where(same.notna(), wide.isna()).all(axis=None)


def test_a_second_stream_on_the_same_tables_is_refused(place: Place) -> None:
    first, second = open_store(place), open_store(place)
    with first.only_stream(), pytest.raises(AlreadyRunningError, match="another stream writes to this database"), second.only_stream(0.5):
        pass
    with second.only_stream(0.5):
        pass


class Overtaken:
    """A sink before whose first commit something else happens: what slips past the lock."""

    def __init__(self, store: Store, overtake: Callable[[], None]) -> None:
        self.store, self.overtake = store, overtake
        self.load_offsets, self.finish_progress = store.load_offsets, store.finish_progress

    def commit_batch(self, batch: Batch, watermark_delay_ms: int) -> Any:
        overtake, self.overtake = self.overtake, lambda: None
        overtake()
        return self.store.commit_batch(batch, watermark_delay_ms)


def test_a_batch_that_another_stream_has_merged_meanwhile_is_read_again_and_adds_nothing(place: Place, session: SparkSession) -> None:
    settings, store, said = place.settings, open_store(place), []
    publish(settings, random_ticks(7, 500))
    stream = pipeline.open_stream(settings, session, store, report=said.append)
    stream.sink = Overtaken(store, lambda: drain(settings, session))
    stream.start(until_caught_up=True).wait()
    assert [line for line in said if "it is read again" in line]
    assert store.load_accounts()["good_count"].sum() == 500
    assert_equal(settings)


def test_a_batch_filtered_by_other_offsets_is_refused_whole(place: Place, session: SparkSession) -> None:
    settings, store = place.settings, open_store(place)
    publish(settings, random_ticks(10, 100))
    drain(settings, session)
    bars = store.query("select * from stock_aggregates order by symbol, window_start")
    with pytest.raises(OffsetsMovedError, match="it is read again"):
        store.commit_batch(Batch("r", 0, dt.datetime.now(dt.UTC), {0: 1}, [], [], [], 0), 0)
    assert store.query("select * from stock_aggregates order by symbol, window_start").equals(bars)


def test_a_database_belongs_to_one_topic_and_one_window(place: Place, session: SparkSession, services: Settings) -> None:
    settings, store = place.settings, open_store(place)
    publish(settings, [tick(1)])
    drain(settings, session)
    with pytest.raises(SchemaError, match=r"bars of 10 s, WINDOW is 60 s; set WINDOW back"):
        pipeline.open_stream(settings.replaced(window="1 minute"), session, store)
    topics.delete_topic(pipeline.servers_of(settings), settings.kafka_topic)
    assert_eventually(lambda: topics.list_topics(pipeline.servers_of(settings)), lambda names: settings.kafka_topic not in names)
    with pytest.raises(TopicError, match=r"it is gone, it had id .+; make the tables anew of a tape"):
        pipeline.open_stream(settings, session, store)


def test_an_altered_table_is_refused_with_the_difference(place: Place, session: SparkSession) -> None:
    store = open_store(place)
    store.create_tables()
    _execute(place, "alter table dead_letters drop column reason; alter table stock_aggregates alter high type real")
    with pytest.raises(SchemaError, match=r"stock_aggregates.high is real not null, should be double precision not null"):
        store.create_tables()


def _execute(place: Place, statement: str) -> None:
    import psycopg2

    connection = psycopg2.connect(pipeline.open_store(place.settings).url)
    with connection, connection.cursor() as cursor:
        cursor.execute("drop view if exists latest_prices, top_movers, volatility, session_vwap, moving_averages cascade;" + statement)
    connection.close()


def test_a_tape_recorded_from_the_topic_gives_the_same_ticks(place: Place) -> None:
    ticks = random_ticks(11, 1_000)
    publish(place.settings, ticks)
    recording = pipeline.read_topic(place.settings)
    assert sorted(recording.ticks, key=lambda tick: tick.receipt_time) == ticks
    assert recording.bad == []


def test_a_stage_is_in_its_state_since_it_came_into_it_or_came_back(place: Place) -> None:
    store = open_store(place)
    store.create_tables()
    store.beat("spark", "running", "first")
    since = store.load_stages().set_index("stage")["since"]["spark"]
    store.beat("spark", "running", "second")
    assert store.load_stages().set_index("stage")["since"]["spark"] == since
    with store._transaction() as cursor:  # nothing was heard for a minute
        cursor.execute("update stage_state set beat_at = beat_at - interval '1 minute'")
    store.beat("spark", "running", "third")
    assert store.load_stages().set_index("stage")["since"]["spark"] > since
