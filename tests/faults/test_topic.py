"""The topic changes behind our back: what it was is refused with the difference and the remedy, and nothing is merged.

Only growing is ridden out: new partitions are accounted for from their first message.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from pyspark.sql import SparkSession
from runs import assert_equal, assert_eventually, drain, open_store, publish, random_ticks

from pipeline_lib import pipeline, topics
from pipeline_lib.binding import CLOCK_TOLERANCE, check_clock
from pipeline_lib.config import Settings
from pipeline_lib.database import create_database, drop_database
from pipeline_lib.errors import ClockError, TopicError
from pipeline_lib.pipeline import Place
from pipeline_lib.store import Store
from pipeline_lib.stream import Stream


@contextmanager
def admin(settings: Settings) -> Iterator[KafkaAdminClient]:
    """Kafka's own administration, for what only somebody else does to a topic."""
    with closing(KafkaAdminClient(bootstrap_servers=pipeline.servers_of(settings).split(","))) as found:
        yield found


def delete(settings: Settings) -> None:
    servers, topic = pipeline.servers_of(settings), settings.kafka_topic
    topics.delete_topic(servers, topic)
    assert_eventually(lambda: topics.list_topics(servers), lambda names: topic not in names)


def make_again(settings: Settings, count: int) -> None:
    """Delete the topic, and make one of the same name that is longer than what was consumed."""
    delete(settings)
    publish(settings, random_ticks(99, count))


def remove_messages(settings: Settings, keep_from: dict[int, int]) -> None:
    """Do what retention does: remove each partition's messages up to, not including, an offset."""
    with admin(settings) as found:
        found.delete_records({TopicPartition(settings.kafka_topic, part): offset for part, offset in keep_from.items()})


def content(store: Store) -> list[str]:
    """Return all that a commit changes, as text."""
    queries = (
        "select * from stock_aggregates order by symbol, window_start",
        "select * from stream_offsets order by partition",
        'select * from dead_letters order by partition, "offset"',
    )
    return [store.query(query).to_csv() for query in queries]


def assert_refused(running: Stream, words: str) -> None:
    with pytest.raises(TopicError, match=words):
        assert_eventually(lambda: running.wait(0.1), lambda has_ended: has_ended)
    assert running.state == "failed"


REMEDY = r"`stocks rebuild --tape FILE`\), or name an empty database"


def consume_all(settings: Settings) -> Store:
    """Return the store of a database whose offsets say that all of the topic was read: all that is looked at before a start."""
    store = pipeline.open_store(settings)
    pipeline.bind(settings, store)
    with store._transaction() as cursor:
        for part, found in topics.read_offsets(pipeline.servers_of(settings), settings.kafka_topic).items():
            cursor.execute(
                "update stream_offsets set (next_offset, good_count) = (%(n)s, %(n)s) where partition = %(part)s",
                {"n": found.latest, "part": part},
            )
    return store


def test_a_topic_that_is_gone_is_refused_and_not_made_again(place: Place) -> None:
    settings = place.settings
    publish(settings, random_ticks(1, 100))
    store = consume_all(settings)
    before = content(store)
    delete(settings)
    with pytest.raises(TopicError, match=rf"it is gone, it had id .+{REMEDY}"):
        pipeline.bind(settings, store)
    assert settings.kafka_topic not in topics.list_topics(pipeline.servers_of(settings))
    assert content(store) == before


def test_a_topic_made_again_longer_while_the_stream_stands_still_is_refused(place: Place) -> None:
    settings = place.settings
    publish(settings, random_ticks(2, 100))
    store = consume_all(settings)
    before = content(store)
    make_again(settings, 2_000)
    with pytest.raises(TopicError, match=rf"it has id .+, the stored offsets belong to id .+made again; .+{REMEDY}"):
        pipeline.bind(settings, store)
    assert content(store) == before


def test_a_topic_that_is_shorter_than_what_was_consumed_is_refused(place: Place) -> None:
    settings = place.settings
    publish(settings, random_ticks(8, 100))
    store = consume_all(settings)
    part, offset = max(store.load_offsets().items(), key=lambda item: item[1])
    with store._transaction() as cursor:  # as after a broker that has lost its last messages
        cursor.execute("update stream_offsets set next_offset = next_offset + 10 where partition = %s", (part,))
    with pytest.raises(TopicError, match=rf"shorter than .+: partition {part} ends at {offset}, {offset + 10} are stored; .+{REMEDY}"):
        pipeline.bind(settings, store)


@pytest.mark.repeats("topic recreated longer while running", short=0, full=3)
def test_a_topic_made_again_longer_while_the_stream_runs_ends_it_and_nothing_of_it_is_merged(
    place: Place, session: SparkSession, repeat: int
) -> None:
    settings, store = place.settings, open_store(place)
    publish(settings, random_ticks(repeat, 200))
    with pipeline.running_stream(settings, session) as running:
        assert_eventually(lambda: running.committed_rows, lambda rows: rows == 200)
        before = content(store)
        make_again(settings, 2_000)
        assert_refused(running, rf"made again; .+{REMEDY}" if repeat < 3 else REMEDY)
    assert content(store) == before


@pytest.mark.repeats("topic recreated between reading and committing", short=1, full=3)
def test_what_was_read_of_a_topic_that_is_another_one_by_then_is_not_merged(place: Place, session: SparkSession, repeat: int) -> None:
    settings, store = place.settings, open_store(place)
    publish(settings, random_ticks(repeat, 200))
    running = pipeline.open_stream(settings, session, store)
    before, ask = content(store), running.plan.list_partitions

    def ask_too_late() -> set[int]:
        make_again(settings, 2_000)
        return ask()

    running.plan = running.plan._replace(list_partitions=ask_too_late)
    with running.start():
        assert_refused(running, "made again")
    assert content(store) == before


def add_partitions(settings: Settings, total: int) -> None:
    with admin(settings) as found:
        found.create_partitions({settings.kafka_topic: total})
    assert_eventually(
        lambda: topics.describe_topic(pipeline.servers_of(settings), settings.kafka_topic).partitions, lambda parts: len(parts) == total
    )


@pytest.mark.repeats("partitions added", full=3)
def test_added_partitions_are_accounted_for_from_their_first_message(place: Place, session: SparkSession, repeat: int) -> None:
    settings, store = place.settings, open_store(place)
    publish(settings, random_ticks(repeat, 200))
    with pipeline.running_stream(settings, session) as running:
        assert_eventually(lambda: running.committed_rows, lambda rows: rows == 200)
        add_partitions(settings, 6)  # while it runs
        publish(settings, random_ticks(repeat + 100, 400))
        assert_eventually(lambda: (running.wait(0), running.committed_rows)[1], lambda rows: rows == 600)
    add_partitions(settings, 9)  # while it stands still
    publish(settings, random_ticks(repeat + 200, 800))
    drain(settings, session)
    accounts = store.load_accounts().set_index("partition")
    assert list(accounts.index) == list(range(9))
    assert set(accounts["first_offset"]) == {0}
    assert (accounts["good_count"] == accounts["next_offset"]).all()
    assert accounts["good_count"].sum() == 1_400
    assert accounts["good_count"].loc[4:].sum() > 0
    assert_equal(settings)


def test_what_retention_removed_unread_is_named_and_going_on_is_recorded(place: Place, session: SparkSession) -> None:
    settings, store = place.settings, open_store(place)
    publish(settings, random_ticks(5, 400))
    drain(settings, session)
    read = store.load_offsets()
    publish(settings, random_ticks(6, 400))
    part = max(read, key=lambda number: read[number])
    remove_messages(settings, {part: read[part] + 30})
    before = content(store)
    with pytest.raises(TopicError, match=rf"not read: 30 of partition {part} \(from offset {read[part]}\); .+--accept-gap.+{REMEDY}"):
        pipeline.bind(settings, store)
    assert content(store) == before

    pipeline.bind(settings, store, accept_gap=True)
    drain(settings, session)

    gaps = store.query("select partition, from_offset, to_offset, accepted_at > now() - interval '1 minute' as just_now from accepted_gaps")
    assert gaps.values.tolist() == [[part, read[part], read[part] + 30, True]]
    accounts = store.load_accounts()
    consumed = (accounts["next_offset"] - accounts["first_offset"]).sum()
    assert (accounts["good_count"] + accounts["dead_letter_count"] + accounts["gap_count"]).sum() == consumed == 800
    assert accounts["gap_count"].sum() == 30
    assert_equal(settings)


@pytest.mark.repeats("retention passed while running", full=3)
def test_retention_that_passes_the_stream_while_it_runs_ends_it_naming_the_gap(place: Place, session: SparkSession, repeat: int) -> None:
    settings, store = place.settings, open_store(place)
    publish(settings, random_ticks(repeat, 400))
    running = pipeline.open_stream(settings, session, store)
    before, ask = content(store), running.plan.start_offsets

    def overtaken() -> dict[int, int]:
        found = ask()
        part = max(topics.read_offsets(pipeline.servers_of(settings), settings.kafka_topic).items(), key=lambda item: item[1].latest)[0]
        remove_messages(settings, {part: 50})
        return found

    running.plan = running.plan._replace(start_offsets=overtaken)
    with running.start():
        assert_refused(running, r"not read: 50 of partition \d \(from offset 0\); .+--accept-gap")
    assert content(store) == before


def test_a_database_restored_from_a_backup_goes_on_from_the_backups_offsets(
    place: Place, session: SparkSession, services: Settings
) -> None:
    settings, base = place.settings, pipeline.open_store(services).url
    publish(settings, random_ticks(9, 300))
    drain(settings, session)
    backup = f"{place.name}-backup"
    url = create_database(base, backup, template=place.name)
    try:
        publish(settings, random_ticks(10, 300))
        drain(settings, session)  # the original goes on, and is lost
        restored = settings.replaced(database_url=url)
        assert pipeline.open_store(restored).load_accounts()["good_count"].sum() == 300
        drain(restored, session)
        assert pipeline.open_store(restored).load_accounts()["good_count"].sum() == 600
        assert_equal(restored)
    finally:
        drop_database(base, backup)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.mark.parametrize(
    ("read", "word"), [(lambda: now() + dt.timedelta(hours=1), "ahead of"), (lambda: now() - dt.timedelta(hours=1), "behind")]
)
def test_clocks_apart_are_refused_with_the_difference(read: Callable[[], dt.datetime], word: str) -> None:
    with pytest.raises(ClockError, match=rf"PostgreSQL's clock is 3,(600|599) s {word} this machine's"):
        check_clock("PostgreSQL's clock", read)


def test_clocks_that_differ_by_less_than_the_answer_took_are_not_apart() -> None:
    check_clock("PostgreSQL's clock", lambda: now() + CLOCK_TOLERANCE / 2)
    check_clock("PostgreSQL's clock", lambda: now() - CLOCK_TOLERANCE / 2)


def test_messages_stamped_in_our_future_are_refused(place: Place) -> None:
    settings = place.settings
    servers, topic = pipeline.servers_of(settings), settings.kafka_topic
    with admin(settings) as found:  # a topic that takes the producer's word for the time: the broker's clock cannot be moved
        found.create_topics({topic: {"num_partitions": 2, "replication_factor": -1, "configs": {"message.timestamp.type": "CreateTime"}}})
    with closing(KafkaProducer(bootstrap_servers=servers)) as producer:
        producer.send(topic, b"{}", timestamp_ms=round((now() + dt.timedelta(minutes=10)).timestamp() * 1000)).get(30)
    with pytest.raises(ClockError, match=r"was stamped (600|599) s ahead of this machine's clock"):
        pipeline.bind(settings, open_store(place))
