"""Verify finds what is wrong: a table that differs by one value in one row is told, with both values."""

from __future__ import annotations

import psycopg2
import pytest
from pyspark.sql import SparkSession
from runs import assert_equal, drain, open_store, publish, random_ticks

from pipeline_lib import pipeline
from pipeline_lib.errors import SchemaError
from pipeline_lib.pipeline import Place

CHANGES = {
    "open": "update stock_aggregates set open = open + 0.01 where {one}",
    "volume": "update stock_aggregates set volume = volume * (1 + 3e-9) where {one}",
    "tick_count": "update stock_aggregates set tick_count = tick_count + 1 where {one}",
    "close_offset": "update stock_aggregates set close_offset = close_offset + 1 where {one}",
    "first_event_time": "update stock_aggregates set first_event_time = first_event_time + interval '1 millisecond' where {one}",
    "price_stddev": "update stock_aggregates set square_deviation = square_deviation * (1 + 1e-6) where {one}",
    "bar": "delete from stock_aggregates where {one}",
}
ONE = (
    "(symbol, window_start) = (select symbol, window_start from stock_aggregates where volume > 0 and tick_count > 2 order by 1, 2 limit 1)"
)


def execute(place: Place, statement: str) -> None:
    with psycopg2.connect(open_store(place).url) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def test_one_wrong_value_is_found_whatever_it_is(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(1, 2_000, seconds=100))
    drain(place.settings, session)
    assert_equal(place.settings)
    execute(place, "create table kept as select * from stock_aggregates")
    columns = open_store(place).query(
        "select string_agg(quote_ident(column_name), ', ') as names from information_schema.columns"
        " where table_name = 'stock_aggregates' and is_generated = 'NEVER'"
    )["names"][0]
    for column, change in CHANGES.items():
        execute(place, change.format(one=ONE))
        report = pipeline.verify(place.settings)
        assert report.differing_bars == 1, column
        assert column in {difference.column for difference in report.differences}
        execute(place, f"truncate stock_aggregates; insert into stock_aggregates ({columns}) select {columns} from kept")
    assert_equal(place.settings)


def test_a_message_that_is_not_accounted_for_is_found(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(2, 500))
    drain(place.settings, session)
    execute(place, "update stream_offsets set good_count = good_count - 1 where partition = (select min(partition) from stream_offsets)")
    report = pipeline.verify(place.settings)
    assert (report.equal, report.differing_bars) == (False, 0)
    assert "are stored, the topic has" in report.account_faults[0]


def test_a_topic_made_again_is_no_witness(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(3, 100))
    drain(place.settings, session)
    execute(place, "update pipeline_identity set topic_id = 'another'")
    with pytest.raises(SchemaError, match="the stored offsets belong to id another"):
        pipeline.verify(place.settings)
