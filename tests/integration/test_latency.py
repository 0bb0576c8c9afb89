"""Where the time goes: the stamps of every micro-batch, what is said of them, and that a page is told of each commit at once."""

from __future__ import annotations

import datetime as dt
import select

import pytest
from runs import execute, open_store

from pipeline_lib import pipeline
from pipeline_lib.errors import UnavailableError
from pipeline_lib.pipeline import Place
from pipeline_lib.records import Batch


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
