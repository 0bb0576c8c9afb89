"""Spark's checkpoint deleted or cut to pieces, under a running query and between two: nothing depends on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ledger import Ledger, live_ticks
from pyspark.sql import SparkSession
from runs import assert_equal, assert_eventually, open_store
from stages import catch_up, stage

from pipeline_lib import pipeline
from pipeline_lib.pipeline import Place
from pipeline_lib.stream import remove_checkpoints

RUNNING = "checkpoint deleted or cut to pieces, while running"


def files_of(folder: Path) -> list[Path]:
    """Return the files below a folder, in order; those that go away meanwhile are left out."""
    return sorted(Path(parent) / name for parent, _, names in os.walk(folder) for name in names)


def delete(checkpoints: Path) -> None:
    """Take the folder away, at one instant."""
    remove_checkpoints(checkpoints)


def truncate(checkpoints: Path) -> None:
    """Cut every file in half."""
    for file in files_of(checkpoints):
        os.truncate(file, file.stat().st_size // 2)


def garble(checkpoints: Path) -> None:
    """Write something else into every file."""
    for file in files_of(checkpoints):
        file.write_bytes(b"\0garbage\xff" * 20)


def pick(checkpoints: Path) -> None:
    """Remove every second file."""
    for file in files_of(checkpoints)[::2]:
        file.unlink(missing_ok=True)


def empty(checkpoints: Path) -> None:
    """Remove the folder of offsets and that of commits from each query's."""
    for part in (*checkpoints.glob("query-*/offsets"), *checkpoints.glob("query-*/commits")):
        shutil.rmtree(part, ignore_errors=True)


WAYS = (delete, truncate, garble, pick, empty)


def marked(way: Callable[[Path], None]) -> Any:
    """Return the way with its mark: one of them is for `make test`."""
    return pytest.param(way, id=way.__name__, marks=pytest.mark.repeats(RUNNING, short=int(way is delete)))


@pytest.mark.parametrize("way", [marked(way) for way in WAYS])
def test_a_checkpoint_that_goes_to_pieces_under_the_query_costs_nothing(
    place: Place, session: SparkSession, way: Callable[[Path], None]
) -> None:
    settings, ticks = place.settings, live_ticks(5)
    with Ledger(settings) as ledger, pipeline.running_stream(settings, session) as stream:
        for count in (100, 200, 300):
            ledger.send(next(ticks) for _ in range(100))
            assert_eventually(lambda: stream.committed_rows, lambda rows, count=count: rows >= count)
            way(settings.checkpoint_folder)
        ledger.send(next(ticks) for _ in range(100))
        assert_eventually(lambda: stream.committed_rows, lambda rows: rows >= 400)
        ledger.assert_kept(all_of_it=True)
        if way is delete:  # what is deleted, a query misses when it next writes: it fails, and another takes over

            def count_runs() -> int:
                ledger.send([next(ticks)])
                return int(open_store(place).query("select count(distinct run_id) as n from query_progress")["n"][0])

            assert_eventually(count_runs, lambda runs: runs > 1)
            assert_eventually(lambda: stream.committed_rows, lambda rows: rows >= len(ledger.entries))
            ledger.assert_kept(all_of_it=True)
    assert_equal(settings)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.repeats("checkpoint deleted or cut to pieces, while stopped", short=0)
def test_a_checkpoint_that_a_killed_stream_left_is_not_needed(place: Place, way: Callable[[Path], None]) -> None:
    settings, ticks = place.settings, live_ticks(6)
    with Ledger(settings) as ledger:
        ledger.send(next(ticks) for _ in range(500))
        store = open_store(place)
        store.create_tables()
        with stage(settings, "stream") as process:
            assert_eventually(lambda: (process.poll(), store.load_accounts()["good_count"].sum()), lambda seen: seen != (None, 0), 240)
            process.kill()
        assert files_of(settings.checkpoint_folder)
        way(settings.checkpoint_folder)
        ledger.send(next(ticks) for _ in range(500))
        catch_up(settings)
        ledger.assert_kept(all_of_it=True)
    assert_equal(settings)
    assert not files_of(settings.checkpoint_folder)  # what the killed one left is cleared
