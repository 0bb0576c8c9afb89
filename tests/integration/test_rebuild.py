"""Rebuild makes everything in PostgreSQL again, equal to what it was, and leaves the old tables alone until then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from runs import assert_equal, assert_eventually, drain, execute, open_store, publish, publish_raw, random_ticks, tick

from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.errors import AlreadyRunningError, PipelineError, TopicError
from pipeline_lib.pipeline import Place
from pipeline_lib.rebuild import fill_topic, rebuild
from pipeline_lib.records import encode_tick
from pipeline_lib.run import stage_environment
from pipeline_lib.sources.tape import write_tape

BARS = (
    "select symbol, window_start, window_end, open, high, low, close, tick_count, trade_count, poll_count, first_event_time,"
    " open_partition, open_offset, last_event_time, close_partition, close_offset, last_receipt_time, previous_close,"
    " round(volume::numeric, 6) as volume, round(notional::numeric, 4) as notional from stock_aggregates order by 1, 2"
)


def quietly(settings: Settings, session: SparkSession, **how: bool) -> None:
    rebuild(settings, lambda: session, report=lambda line: None, **how)


def count_schemas(place: Place) -> int:
    return int(open_store(place).query("select count(*) as n from pg_namespace where nspname = 'stocks_rebuilt'")["n"][0])


def test_what_was_broken_is_made_again_and_what_the_topic_cannot_tell_is_kept(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(21, 2_000, seconds=200))
    publish_raw(place.settings, [(b"no tick", b"AAPL")])
    drain(place.settings, session)
    store = open_store(place)
    before = store.query(BARS)
    execute(
        place,
        "insert into feed_gaps values ('feed', now(), null, 'kept')",
        "grant select on stock_aggregates, latest_prices to pg_monitor",
        "update stock_aggregates set open = open + 1",
        "alter table query_progress drop column bars",
        "delete from dead_letters",
        "update stream_offsets set good_count = good_count - 1 where good_count > 0",
    )
    assert not pipeline.verify(place.settings).equal
    quietly(place.settings, session)
    assert store.query(BARS).equals(before)
    assert_equal(place.settings)
    assert list(store.load_gaps()["reason"]) == ["kept"]
    assert len(store.load_dead_letters()) == 1
    for relation in ("stock_aggregates", "latest_prices"):
        assert store.query("select has_table_privilege('pg_monitor', %s, 'select') as held", (relation,))["held"][0]
    publish(place.settings, [tick(1, at=500)])
    drain(place.settings, session)  # the stream goes on from the rebuilt offsets, and finds the schema as it should be
    assert_equal(place.settings)
    assert count_schemas(place) == 0


def test_another_window_is_a_rebuild_away(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(22, 500, seconds=200))
    drain(place.settings, session)
    wider = place.settings.replaced(window="20 seconds")
    with pytest.raises(PipelineError, match="holds bars of 10 s, WINDOW is 20 s"):
        drain(wider, session)
    store = open_store(place)
    expected = store.query("select symbol, window_start, open, close, tick_count from wider_bars('20 seconds') order by 1, 2")
    quietly(wider, session)
    found = store.query("select symbol, window_start, open, close, tick_count from stock_aggregates order by 1, 2")
    assert found.equals(expected)
    assert_equal(wider)


def test_a_topic_that_is_gone_is_made_again_from_its_tape_and_no_other_is_touched(
    place: Place, session: SparkSession, tmp_path: Path
) -> None:
    settings, ticks = place.settings, random_ticks(23, 1_000, seconds=100)
    publish(settings, ticks)
    drain(settings, session)
    before = open_store(place).query(BARS)
    tape, shorter = tmp_path / "tape.jsonl", tmp_path / "shorter.jsonl"
    write_tape(pipeline.read_topic(settings).ticks, tape)
    write_tape(list(pipeline.read_topic(settings).ticks)[:900], shorter)
    with pytest.raises(TopicError, match="holds more than the tape"):
        fill_topic(settings, shorter)
    topics.delete_topic(pipeline.servers_of(settings), settings.kafka_topic)
    # As if it had been interrupted: the beginning of the tape is there.
    assert fill_topic(settings, shorter, lambda line: None) == 900
    with pytest.raises(PipelineError, match="made of 1,000 ticks, the topic holds 900"):
        quietly(settings, session)
    assert open_store(place).query(BARS).equals(before)
    assert fill_topic(settings, tape, lambda line: None) == 100
    quietly(settings, session)
    assert open_store(place).query(BARS).equals(before)
    assert_equal(settings)
    publish_raw(settings, [(encode_tick(ticks[0]), b"AAPL")])
    with pytest.raises(TopicError, match="holds more than the tape"):
        fill_topic(settings, tape)


def test_while_it_runs_readers_see_the_old_tables_and_no_stream_writes(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(24, 500))
    drain(place.settings, session)
    store = open_store(place)
    before = store.query(BARS)
    seen = []

    def look(line: str) -> None:
        seen.append(store.query(BARS).equals(before) and store.load_prices()["symbol"].nunique() > 1)
        with pytest.raises(AlreadyRunningError), open_store(place).only_stream(0.1):
            pass

    rebuild(place.settings, lambda: session, report=look)
    assert seen == [True, True]
    assert store.query(BARS).equals(before)


def test_a_killed_rebuild_leaves_the_old_tables_and_the_next_one_clears_up(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(25, 500))
    drain(place.settings, session)
    before = open_store(place).query(BARS)
    killed = subprocess.Popen(
        [sys.executable, "-m", "pipeline_lib.cli", "rebuild"],
        env=stage_environment(place.settings),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert_eventually(lambda: count_schemas(place), lambda count: count == 1)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert open_store(place).query(BARS).equals(before)
    assert_equal(place.settings)
    quietly(place.settings, session)
    assert open_store(place).query(BARS).equals(before)
    assert count_schemas(place) == 0
