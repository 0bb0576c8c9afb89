"""Where the time goes: the stamps of every micro-batch, what is said of them, and that a page is told of each commit at once."""

from __future__ import annotations

import datetime as dt
import select
from itertools import pairwise

import pytest
from pyspark.sql import SparkSession
from runs import drain, execute, open_store, publish, random_ticks

from pipeline_lib import pipeline, topics
from pipeline_lib.errors import UnavailableError
from pipeline_lib.pipeline import Place
from pipeline_lib.records import Batch, decode_tick


def test_stamps_offsets_and_parts_of_every_batch_are_those_of_its_messages(place: Place, session: SparkSession) -> None:
    settings = place.settings.replaced(max_offsets_per_trigger=150)
    for seed in (1, 2):
        publish(settings, random_ticks(seed, 200))
        drain(settings, session)
    store = open_store(place)
    batches = store.query("select r.*, offsets from recent_batches r join query_progress using (run_id, batch_id) order by committed_at")
    assert len(batches) >= 4

    # What a person has who joins messages and commits by the offsets.
    delays: list[float] = []
    for part, number in store.load_offsets().items():
        spans = [offsets[str(part)] for offsets in batches["offsets"] if str(part) in offsets]
        assert [spans[0][0], spans[-1][1]] == [0, number]
        assert all(before[1] == after[0] for before, after in pairwise(spans))
    for row in batches.itertuples():
        ends = {int(part): span for part, span in row.offsets.items()}
        messages = topics.read_messages(
            pipeline.servers_of(settings),
            settings.kafka_topic,
            {part: span[0] for part, span in ends.items()},
            {part: span[1] for part, span in ends.items()},
        )
        seen = [decode_tick(message.value, message.key).receipt_time for message in messages]
        own = [row.visible_at.timestamp() * 1000 - receipt for receipt in seen]
        assert len(own) == row.ticks
        found = (row.shortest_delay_ms, row.mean_delay_ms, row.longest_delay_ms)
        assert found == pytest.approx((min(own), sum(own) / len(own), max(own)), abs=0.5)
        delays += own

    total, parts = store.load_delays().iloc[0], store.load_budget()
    assert (total["ticks"], total["batches"]) == (400, len(batches))
    assert (total["shortest_ms"], total["mean_ms"], total["longest_ms"]) == pytest.approx(
        (min(delays), sum(delays) / len(delays), max(delays)), abs=0.5
    )
    assert total["shortest_ms"] <= total["p50_ms"] <= total["p99_ms"] <= total["longest_ms"]
    on_way = parts[parts["is_on_way"]]
    assert on_way["mean_ms"].notna().all()
    assert on_way["mean_ms"].sum() == pytest.approx(total["mean_ms"], abs=0.5), "what is on the way adds up"
    assert parts.loc[parts["part"] == "exchange to receipt", "mean_ms"].isna().all(), "no live feed, no word on its delay"


def test_a_page_is_told_of_every_commit_and_of_a_connection_that_is_lost(place: Place) -> None:
    store = open_store(place)
    pipeline.bind(place.settings, store)
    watch = store.watch_commits()
    with pytest.raises(UnavailableError, match="connect again"):
        watch.hear()
    watch.connect()
    assert watch.hear() == []
    for number in (7, 8):
        store.commit_batch(Batch("r", number, dt.datetime.now(dt.UTC), store.load_offsets(), [], [], [], 0), 0)
    heard: list[int] = []
    while len(heard) < 2:
        assert select.select([watch], [], [], 10)[0], f"heard {heard}"
        heard += watch.hear()
    assert heard == [7, 8]
    assert [commit.batch_id for commit in watch.load_commits(None)] == [8]
    assert watch.load_commits(watch.load_commits(None)[0].committed_at) == []

    execute(place, "select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen%'")
    with pytest.raises(UnavailableError):  # the server's last words may come before the end of the connection
        while select.select([watch], [], [], 10)[0]:
            assert watch.hear() == []
    watch.connect()  # and it is of use again
    assert watch.hear() == []
    watch.close()
    store.close()
