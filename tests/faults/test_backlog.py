"""A million messages that wait: read in micro-batches of a bounded size, so that memory does not grow with them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from itertools import islice

import psutil
import pytest
from ledger import live_ticks
from runs import assert_equal, assert_eventually, open_store, publish
from stages import java_of, stage

from pipeline_lib.pipeline import Place

MESSAGES = 1_000_000


@pytest.mark.repeats("a backlog of a million messages", short=0)
def test_a_backlog_of_a_million_messages_is_read_in_bounded_memory(place: Place, record_property: Callable[[str, object], None]) -> None:
    settings = place.settings.replaced(max_offsets_per_trigger=100_000)
    publish(settings, islice(live_ticks(1), MESSAGES))
    store = open_store(place)
    store.create_tables()
    peak = {"python": 0, "java": 0}
    began = time.monotonic()
    with stage(settings, "stream", "--until-caught-up") as process:
        java, python = java_of(process), psutil.Process(process.pid)

        def measured() -> int | None:
            for name, each in (("python", python), ("java", java)):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    peak[name] = max(peak[name], each.memory_info().rss >> 20)
            return process.poll()

        assert_eventually(measured, lambda status: status is not None, 900)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert store.load_accounts()["good_count"].sum() == MESSAGES
    assert len(store.load_progress(1_000)) >= 10
    assert_equal(settings)
    print(f"backlog: {MESSAGES:,} messages in {time.monotonic() - began:.0f} s, RSS at most {peak} MB")
    record_property("rss_mb", peak)
    assert peak["java"] < 2_500  # a gigabyte of heap, and what a JVM has beside it
