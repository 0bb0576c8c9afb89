"""What only people read is kept within limits, and the accounts stay exact."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from runs import assert_equal, drain, open_store, publish, publish_raw, random_ticks

from pipeline_lib import pipeline, retention
from pipeline_lib.pipeline import Place
from pipeline_lib.records import Gap


def test_what_is_over_its_number_or_its_age_is_pruned_and_kept_and_pruned_letters_add_up(
    place: Place, session: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"DEAD_LETTERS": 100, "PROGRESS_ROWS": 2, "FEED_GAPS": 5, "ROWS_A_PIECE": 40, "PRUNE_SECONDS": 0.0}.items():
        monkeypatch.setattr(retention, name, value)
    settings, store = place.settings.replaced(max_offsets_per_trigger=200), open_store(place)
    publish_raw(settings, [(f"bad {number}".encode(), f"K{number % 7}".encode()) for number in range(600)])
    drain(settings, session)
    for number in range(20):
        store.keep_gap(Gap("feed", number * 10, number * 10 + 5, "silent"))
    publish(settings, random_ticks(1, 1))
    drain(settings, session)  # one more batch, in front of which it is pruned

    accounts, letters = store.load_accounts(), store.load_dead_letters(1_000)
    assert accounts["dead_letter_count"].sum() == 600
    assert accounts["pruned_letter_count"].sum() == 500
    kept = letters.groupby("partition").size().reindex(accounts["partition"], fill_value=0).to_numpy()
    assert (kept + accounts["pruned_letter_count"] == accounts["dead_letter_count"]).all()
    assert letters["recorded_at"].min() > store.query("select min(started_at) as began from query_progress")["began"][0]
    assert len(store.load_progress()) == 2 + 1
    assert store.load_gaps()["started_at"].min().timestamp() == 0.15

    with store._transaction() as cursor:  # what is older than its age goes, however little it is
        cursor.execute("update dead_letters set recorded_at = recorded_at - interval '31 days' where mod(\"offset\", 2) = 0")
        old = cursor.rowcount
        cursor.execute("update query_progress set committed_at = committed_at - interval '31 days'")
    publish(settings, random_ticks(2, 1))
    drain(settings, session)
    assert len(store.load_dead_letters(1_000)) == 100 - old < 100
    assert store.load_accounts()["pruned_letter_count"].sum() == 500 + old
    assert len(store.load_progress()) == 1
    assert_equal(settings)


def test_pruning_a_full_table_takes_no_longer_than_a_batch_can_wait(place: Place) -> None:
    store = open_store(place)
    pipeline.bind(place.settings, store)
    with store._transaction() as cursor:
        cursor.execute(
            "insert into query_progress select 'r', n, now(), now() - n * interval '1 second', 1, 0, 1, 0, null, null, null, 1, 1, null"
            " from generate_series(1, %s) n",
            (retention.PROGRESS_ROWS + 20_000,),
        )
        cursor.execute(
            "insert into dead_letters select 't', 0, n, now(), 'reason', null, null, null, null, now() - n * interval '1 second'"
            " from generate_series(1, %s) n",
            (retention.DEAD_LETTERS,),
        )
        cursor.execute("analyze")
    with store._transaction() as cursor:
        assert retention.prune(cursor)  # there is more than a piece
        cursor.execute("select clock_timestamp() - now()")
        assert cursor.fetchone()[0].total_seconds() < 2  # 50 ms on a machine that does nothing else
