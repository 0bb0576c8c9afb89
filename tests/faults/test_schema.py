"""Somebody alters the tables, or takes a right away: the stage stops at once, skips nothing, and goes on after the undo."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from typing import NamedTuple

import psycopg2
import pytest
from pyspark.sql import SparkSession
from runs import T0, assert_equal, assert_eventually, open_store, publish, random_ticks
from test_kill import stage

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError, SchemaError
from pipeline_lib.pipeline import Place
from pipeline_lib.records import Batch, PartialBar, PartitionCount
from pipeline_lib.store import Store


class Alteration(NamedTuple):
    """What somebody does to the tables, what is said of it, and how it is undone."""

    change: str
    words: str
    undo: str


ALTERATIONS = {
    "column dropped": Alteration(
        "alter table query_progress drop column watermark",
        "watermark",
        "alter table query_progress add column watermark timestamptz",
    ),
    "type changed": Alteration(  # nothing fails: what is written is rounded
        "drop view top_movers, latest_prices, session_vwap, volatility, moving_averages, bars_1m, bars_5m, bars_15m, bars_1h cascade;"
        "alter table stock_aggregates alter previous_close type real",
        "stock_aggregates.previous_close is real, should be double precision",
        "alter table stock_aggregates alter previous_close type double precision",
    ),
    "right revoked": Alteration(
        "revoke update on stock_aggregates from current_user",
        "permission denied for table stock_aggregates",
        "grant update on stock_aggregates to current_user",
    ),
    "table renamed": Alteration(
        "alter table dead_letters rename to dead_letters_old",
        "dead_letters",
        "alter table dead_letters_old rename to dead_letters",
    ),
}


def execute(store: Store, statements: str) -> None:
    connection = psycopg2.connect(store.url)
    with connection, connection.cursor() as cursor:
        cursor.execute(statements)
    connection.close()


def a_batch(store: Store) -> Batch:
    """Return a batch of one tick, and of nothing else, that goes on where the store is."""
    filtered_by = store.load_offsets()
    offset = filtered_by[0]
    bar = PartialBar(
        symbol="AAPL",
        window_start=T0,
        window_end=T0 + 10_000,
        **dict.fromkeys(("open", "high", "low", "close"), 0.1),
        volume=1.0,
        notional=0.1,
        tick_count=1,
        trade_count=1,
        poll_count=0,
        mean_price=0.1,
        square_deviation=0.0,
        first_event_time=T0,
        open_partition=0,
        open_offset=offset,
        last_event_time=T0,
        close_partition=0,
        close_offset=offset,
        last_receipt_time=T0,
        previous_close=0.1,
    )
    return Batch("r", offset, dt.datetime.now(dt.UTC), filtered_by, [bar], [PartitionCount(0, offset, offset + 1, 1, 0)], [], 0)


@pytest.fixture
def bound(place: Place) -> Iterator[Store]:
    """A store with one bar, tied to a topic."""
    store = open_store(place)
    pipeline.bind(place.settings, store)
    store.commit_batch(a_batch(store), 0)
    yield store
    store.close()


@pytest.mark.parametrize("name", ALTERATIONS)
def test_nothing_is_written_to_tables_that_were_altered_since(bound: Store, name: str) -> None:
    change, words, undo = ALTERATIONS[name]
    batch = a_batch(bound)
    execute(bound, change)
    with pytest.raises(PipelineError, match=words) as caught:
        bound.commit_batch(batch, 0)
    assert not caught.value.retriable
    assert bound.load_offsets() == batch.filtered_by
    assert bound.query("select sum(tick_count) as n from stock_aggregates")["n"][0] == 1
    execute(bound, undo)
    bound.create_tables()
    bound.commit_batch(batch, 0)
    assert bound.query("select sum(tick_count) as n from stock_aggregates")["n"][0] == 2


def test_what_changes_nothing_of_the_tables_stops_nothing(bound: Store) -> None:
    execute(
        bound,
        "create index of_my_own on stock_aggregates (close); create view mine as select symbol, close from stock_aggregates;"
        "comment on table stock_aggregates is 'bars'; alter table dead_letters alter reason set statistics 500; analyze",
    )
    bound.commit_batch(a_batch(bound), 0)
    bound.create_tables()


HIDDEN = {
    "drop index stock_aggregates_open": r"stock_aggregates lacks index USING btree \(window_end\) WHERE \(NOT is_final\)",
    "alter table stock_aggregates alter late_tick_count set default 1": "stock_aggregates.late_tick_count is bigint not null default 1",
    "alter table stock_aggregates alter updated_at drop default": "updated_at is timestamp with time zone not null, should",
    "alter table stock_aggregates alter change_pct set expression as (close - open)": r"change_pct is .+ generated as \(close",
    "alter table stream_offsets drop constraint stream_offsets_check": "stream_offsets lacks CHECK",
    "create unique index one on stock_aggregates (symbol)": r"stock_aggregates has a unique index USING btree \(symbol\) too many",
    "alter table dead_letters set unlogged": "dead_letters has a unlogged too many",
    "create function f() returns trigger language plpgsql as 'begin return null; end';"
    "create trigger t before insert on dead_letters for each row execute function f()": "dead_letters has a trigger t too many",
}


def test_alterations_that_no_statement_would_meet_are_refused_too_each_with_its_difference(bound: Store) -> None:
    for change in HIDDEN:
        execute(bound, change)
    with pytest.raises(SchemaError) as caught:
        bound.create_tables()
    assert [words for words in HIDDEN.values() if not re.search(words, str(caught.value))] == []


def test_views_of_somebody_else_are_kept_and_named_where_they_are_in_the_way(bound: Store) -> None:
    execute(bound, "create schema theirs; create view theirs.movers as select * from top_movers; create view plain as select 1 as one")
    bound.create_tables()
    assert bound.query("select count(*) from theirs.movers") is not None
    execute(bound, "create or replace view symbols as select 'none' as symbol")
    with pytest.raises(SchemaError, match=r"cannot renew the views: theirs.movers of somebody else stand on them"):
        bound.create_tables()
    execute(bound, "drop view theirs.movers")
    bound.create_tables()
    assert bound.query("select symbol from symbols")["symbol"].tolist() == ["AAPL"]
    assert bound.query("select one from plain")["one"].tolist() == [1]


@pytest.mark.repeats("schema altered or right revoked while running", short=1, full=4)
def test_a_running_stream_stops_at_once_skips_nothing_and_goes_on_after_the_undo(place: Place, session: SparkSession, repeat: int) -> None:
    settings, store = place.settings, open_store(place)
    # The short run takes the one at which no statement fails.
    change, words, undo = ALTERATIONS[("type changed", "column dropped", "right revoked", "table renamed")[repeat - 1]]
    publish(settings, random_ticks(repeat, 300))
    said: list[str] = []
    with pipeline.running_stream(settings, session, said.append) as running:
        assert_eventually(lambda: running.committed_rows, lambda rows: rows == 300)
        execute(store, change)
        publish(settings, random_ticks(repeat + 100, 300))
        with pytest.raises(PipelineError, match=words):
            assert_eventually(lambda: running.wait(0.1), lambda has_ended: has_ended)
        assert said == []  # no other try
    assert store.load_accounts()["good_count"].sum() == 300
    execute(store, undo)
    pipeline.stream_until_caught_up(settings, session)
    assert store.load_accounts()["good_count"].sum() == 600
    assert_equal(settings)


@pytest.mark.repeats("schema altered while `stocks stream` runs", short=0, full=4)
def test_the_command_ends_with_one_line_and_status_2(place: Place, repeat: int) -> None:
    settings: Settings = place.settings
    store = open_store(place)
    change, words, undo = list(ALTERATIONS.values())[repeat - 1]
    publish(settings, random_ticks(repeat, 300))
    with stage(settings, "stream") as process:
        assert_eventually(
            lambda: (store.create_tables(), store.load_accounts()["good_count"].sum(), process.poll())[1:],
            lambda seen: seen[0] == 300 or seen[1] is not None,
        )
        execute(store, change)
        publish(settings, random_ticks(repeat + 100, 300))
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    errors = [line for line in said.splitlines() if "error:" in line]
    assert len(errors) == 1 and words in errors[0], said
    assert "Traceback" not in said
    execute(store, undo)
    with stage(settings, "stream", "--until-caught-up") as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert_equal(settings)
