"""Verify finds what is wrong, whatever it is and however it is asked, and tells it from what retention has taken away."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from pyspark.sql import SparkSession
from runs import T0, assert_equal, drain, execute, open_store, publish, publish_raw, random_ticks, tick

from pipeline_lib import audit, pipeline, topics
from pipeline_lib.errors import SchemaError
from pipeline_lib.pipeline import Place, Scope
from pipeline_lib.records import FUTURE_TOLERANCE_MS, encode_tick
from pipeline_lib.run import stage_environment

DAY = 24 * 3_600_000

# What a value becomes that somebody has corrupted, by the type of its column.
CORRUPTIONS = {
    "double precision": ["{0} + 0.001", "{0} * (1 + 1e-6) + 1e-4", "{0} - 1"],
    "bigint": ["{0} + 1"],
    "integer": ["{0} + 1"],
    "timestamp with time zone": ["{0} + interval '1 millisecond'", "{0} - interval '1 hour'"],
    "text": ["{0} || 'X'"],
}
# They depend on when ticks came, and the table is not asked about them.
BOOKKEEPING = {"is_final", "revision", "late_tick_count", "updated_at"}


def columns_of(place: Place, table: str) -> list[tuple[str, str]]:
    found = open_store(place).query(
        "select column_name, data_type from information_schema.columns where table_name = %s and table_schema = 'public'"
        " and is_generated = 'NEVER' order by 1",
        (table,),
    )
    return [(name, kind) for name, kind in found.itertuples(index=False) if name not in BOOKKEEPING]


def written_columns(place: Place) -> str:
    """Return the columns of stock_aggregates that a row is written with, the generated ones left out."""
    return ", ".join(
        open_store(place).query(
            "select column_name from information_schema.columns where table_name = 'stock_aggregates' and is_generated = 'NEVER'"
        )["column_name"]
    )


def test_any_one_wrong_value_in_the_table_is_found(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(1, 400, seconds=60))
    drain(place.settings, session)
    report = pipeline.verify(place.settings)
    assert report.equal and report.bars > 30
    dice = random.Random(1)
    columns = columns_of(place, "stock_aggregates")
    execute(place, "create table kept as select * from stock_aggregates")
    names = written_columns(place)
    for column, kind in columns:
        change = dice.choice(CORRUPTIONS[kind]).format(column)
        one = f"select ctid from stock_aggregates where {column} is not null order by symbol, window_start"
        one += f" offset {dice.randrange(20)} limit 1"
        if not open_store(place).query(f"select count({column}) as n from stock_aggregates")["n"][0]:
            continue  # no quote has told a previous close
        execute(place, f"update stock_aggregates set {column} = {change} where ctid in ({one})")
        wrong = pipeline.verify(place.settings)
        assert wrong.differing_bars in (1, 2), (column, change)  # another key makes two: one absent, one too many
        execute(place, "delete from stock_aggregates", f"insert into stock_aggregates ({names}) select {names} from kept")
    execute(place, "delete from stock_aggregates where ctid in (select ctid from stock_aggregates order by random() limit 1)")
    assert pipeline.verify(place.settings).differing_bars == 1


def test_a_message_that_is_not_accounted_for_is_found(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(2, 100))
    publish_raw(place.settings, [(b"no tick", b"AAPL")])
    drain(place.settings, session)
    one = "partition = (select min(partition) from stream_offsets where good_count > 1 and dead_letter_count > 0)"
    execute(place, "create table kept as select * from stream_offsets")
    for change in (
        "good_count = good_count - 1",
        "dead_letter_count = 0",
        "first_offset = first_offset + 1, good_count = good_count - 1",
        "next_offset = next_offset - 1, good_count = good_count - 1",
    ):
        execute(place, f"update stream_offsets set {change} where {one}")
        report = pipeline.verify(place.settings)
        assert report.account_faults or report.differing_bars, change
        execute(place, "delete from stream_offsets", "insert into stream_offsets select * from kept")
    assert_equal(place.settings)
    execute(place, "delete from dead_letters")
    assert "0 dead letters are kept" in pipeline.verify(place.settings).account_faults[0]


def test_a_topic_that_is_another_one_or_shorter_is_no_witness(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(3, 100))
    drain(place.settings, session)
    execute(place, "update stream_offsets set next_offset = next_offset + 1 where partition = 0")
    with pytest.raises(SchemaError, match=r"partition 0 of topic .* the stored offset is"):
        pipeline.verify(place.settings)
    execute(place, "update pipeline_identity set topic_id = 'another'")
    with pytest.raises(SchemaError, match="the stored offsets belong to id another"):
        pipeline.verify(place.settings)


def test_many_processes_find_what_one_finds(place: Place, session: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(place.settings, [*random_ticks(4, 2_000), *random_ticks(4, 50)])
    publish_raw(place.settings, [(b"no tick", b"AAPL")] * 3)
    drain(place.settings, session)
    execute(place, "update stock_aggregates set open = open + 1 where symbol = 'AAPL'")
    alone = pipeline.verify(place.settings, processes=1)
    monkeypatch.setattr(audit, "MESSAGES_A_PROCESS", 100)
    assert pipeline.verify(place.settings, processes=3) == alone
    assert (alone.messages, alone.dead_letters, alone.ids_twice) == (2_053, 3, 50)
    assert alone.differing_bars and not alone.account_faults


def test_a_range_is_compared_and_nothing_beside_it(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(5, 1_000, seconds=100))
    drain(place.settings, session)
    scope = Scope(T0 + 20_000, T0 + 45_000, frozenset({"AAPL", "MSFT"}))
    report = pipeline.verify(place.settings, scope)
    assert (report.equal, report.bars, report.accounts) == (True, 4, [])  # of 45 s, the window from 40 on is not whole
    by_time = pipeline.verify(place.settings, Scope(since=T0 + 20_000))
    assert (by_time.equal, by_time.messages, by_time.bars) == (True, 1_000, 64)
    assert by_time.accounts == sorted(by_time.offsets)
    inside = f"symbol = 'AAPL' and window_start = to_timestamp({T0 / 1000 + 30})"
    beside = f"symbol = 'AAPL' and window_start <> to_timestamp({T0 / 1000 + 30}) or symbol = 'TSLA'"
    execute(place, f"update stock_aggregates set low = low - 1 where {beside}")
    # The other window of the range is among those beside it.
    assert [each.window_start[-5:] for each in pipeline.verify(place.settings, scope).differences] == [
        f"{(T0 // 1000 + 20) // 60 % 60:02}:{(T0 // 1000 + 20) % 60:02}"
    ]
    execute(place, f"delete from stock_aggregates where {inside}")
    assert pipeline.verify(place.settings, scope).differing_bars == 2


def test_a_range_begins_at_the_first_message_that_may_matter(place: Place, session: SparkSession) -> None:
    """The broker's times are those of the messages here, a day apart, so that the past need not be waited for."""
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    topics.create_topic(servers, topic)
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"message.timestamp.type": "CreateTime"})])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=servers)
    for day in range(5):
        # One that came in time, and one as far ahead of the broker's clock as may be.
        for number, ahead in ((2 * day, 0), (2 * day + 1, FUTURE_TOLERANCE_MS)):
            one = tick(number, at=(day * DAY + ahead) / 1000, price=100.0 + number)
            producer.send(topic, key=b"AAPL", value=encode_tick(one), timestamp_ms=T0 + day * DAY).get(10)
    producer.close()
    drain(place.settings, session)
    report = pipeline.verify(place.settings, Scope(since=T0 + 3 * DAY))
    part = topics.partition_of(b"AAPL", len(report.offsets))
    # The tick of day 2 that is a day ahead lies in the first window.
    assert (report.equal, report.bars, report.read_from[part], report.messages) == (True, 3, 4, 6)
    assert report.accounts == sorted({*report.offsets} - {part})


def test_a_bar_that_retention_cut_is_left_out_and_a_wrong_one_is_not(place: Place, session: SparkSession) -> None:
    # The middle ticks of the first bar came first, and go first: its open and close are still there.
    ticks = [tick(1, at=5, price=150.0), tick(2, at=6, price=90.0), tick(3, at=1), tick(4, at=9), tick(5, at=11), tick(6, at=12)]
    publish(place.settings, [*ticks, *(tick(10 + number, symbol="MSFT", at=number) for number in range(30))])
    drain(place.settings, session)
    servers, topic = pipeline.servers_of(place.settings), place.settings.kafka_topic
    ranges = topics.read_offsets(servers, topic)
    part = topics.partition_of(b"AAPL", len(ranges))
    (msft, aapl) = (topics.partition_of(key, len(ranges)) for key in (b"MSFT", b"AAPL"))
    assert msft != aapl
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.delete_records({TopicPartition(topic, part): 2})
    admin.close()
    report = pipeline.verify(place.settings)
    assert (report.equal, report.bars) == (True, 4), report
    assert [name.split()[0] for name in report.left_out] == ["AAPL"]
    first = "symbol = 'AAPL' and window_start = (select min(window_start) from stock_aggregates)"
    for change, where in (
        ("open = open + 1", first),
        ("close_offset = close_offset + 1", first),
        ("high = 99", first),
        ("volume = 1", first),
        ("first_event_time = last_event_time", first),
        ("tick_count = tick_count + 1", first),  # more than the partition has lost
        ("tick_count = tick_count + 1", "symbol = 'MSFT' and window_start = (select min(window_start) from stock_aggregates)"),
        ("high = high + 1", "symbol = 'AAPL' and window_start = (select max(window_start) from stock_aggregates where symbol = 'AAPL')"),
    ):
        execute(place, "create table kept as select * from stock_aggregates")
        execute(place, f"update stock_aggregates set {change} where {where}")
        wrong = pipeline.verify(place.settings)
        assert not wrong.equal, change
        assert wrong.bars + len(wrong.left_out) == 5
        names = written_columns(place)
        execute(
            place, "delete from stock_aggregates", f"insert into stock_aggregates ({names}) select {names} from kept", "drop table kept"
        )


def test_an_id_that_came_twice_is_told_and_is_no_difference(place: Place, session: SparkSession) -> None:
    publish(place.settings, [tick(number, at=number) for number in (1, 2, 3, 2, 2)])
    drain(place.settings, session)
    report = pipeline.verify(place.settings)
    part = topics.partition_of(b"AAPL", len(report.offsets))
    assert (report.equal, report.ids_twice) == (True, 2)
    assert report.ids_shown == [(part, 3, "sim-2"), (part, 4, "sim-2")]


def test_a_watch_reads_what_is_new_and_sees_what_is_changed(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(6, 500, seconds=100))
    drain(place.settings, session)
    watch = audit.Watch(pipeline.servers_of(place.settings), open_store(place))

    def seen() -> tuple[Any, ...]:
        report = watch.next_report()
        return report.messages, report.bars, report.differing_bars, len(report.account_faults), report.ids_twice

    bars = pipeline.verify(place.settings).bars
    assert seen() == (500, bars, 0, 0, 0)
    assert seen() == (0, 0, 0, 0, 0)
    # Late ticks amend a bar, a new one comes, and an id is one of an earlier pass.
    publish(place.settings, [tick(900, at=5), tick(901, at=6, symbol="AAPL"), tick(902, at=205), random_ticks(6, 1)[0]])
    assert watch.next_report().unread == 4
    drain(place.settings, session)
    messages, touched, *rest = seen()
    assert (messages, rest) == (4, [0, 0, 1])
    assert touched >= 2
    execute(place, "update stock_aggregates set close = close + 1 where window_start = (select min(window_start) from stock_aggregates)")
    changed = watch.next_report()
    assert changed.messages == 0 and changed.bars == changed.differing_bars > 1
    execute(place, "update stock_aggregates set close = close - 1 where window_start = (select min(window_start) from stock_aggregates)")
    assert watch.next_report().equal
    execute(place, "delete from stock_aggregates where window_start = (select max(window_start) from stock_aggregates)")
    gone = watch.next_report()
    assert (gone.differing_bars, gone.differences[0].found) == (1, "absent")


def test_the_command_watches_until_it_is_interrupted(place: Place, session: SparkSession) -> None:
    publish(place.settings, random_ticks(7, 100))
    drain(place.settings, session)
    for expected in (0, 1):
        command = [sys.executable, "-m", "pipeline_lib.cli", "verify", "--watch", "--every", "0.1"]
        with subprocess.Popen(command, env=stage_environment(place.settings), stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert "100 new messages" in watching.stdout.readline()
            if expected:
                execute(place, "delete from stock_aggregates where window_start = (select max(window_start) from stock_aggregates)")
                while "absent" not in watching.stdout.readline():
                    pass
            watching.send_signal(signal.SIGINT)
            watching.stdout.read()
        assert watching.returncode == expected
    with pytest.raises(AssertionError):
        assert_equal(place.settings)
