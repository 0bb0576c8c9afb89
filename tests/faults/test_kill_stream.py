"""kill -9 of the Spark driver, its Python or its JVM: before the transaction, inside it, after its commit, at random.

One topic and database for all, with a feed that goes on: the restart after one kill is the start before the next. Right
after each kill the tables are what the ledger says up to the offsets that they tell; in the end they tell all of it.
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import threading
from collections.abc import Iterator

import psycopg2
import pytest
from ledger import Ledger, LiveFeed
from runs import assert_equal, assert_eventually
from stages import KILLED_STREAM, catch_up, java_of, stage

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.pipeline import Place

VERIFY_EACH = 5


@pytest.fixture(scope="module")
def ledger(services: Settings) -> Iterator[Ledger]:
    """The ledger of a topic into which a feed goes on publishing."""
    with Place(services, "kill-stream") as place, Ledger(place.settings) as ledger:
        pipeline.open_store(place.settings).create_tables()
        with LiveFeed(ledger, seed=5):
            yield ledger
        catch_up(place.settings)
        ledger.assert_kept(all_of_it=True)
        assert_equal(place.settings)


def victim_of(repeat: int) -> str:
    """Return whom this run kills: each second one the JVM."""
    return "java" if repeat % 2 == 0 else "python"


def has_committed(settings: Settings, more_than: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many messages are accounted for; fail at once if the stream has ended."""
    assert_eventually(lambda: (process.poll(), consumed(settings)), lambda seen: seen[0] is not None or seen[1] > more_than, seconds=240)
    assert process.poll() is None, process.communicate()[0]


def consumed(settings: Settings) -> int:
    """Return how many messages the tables account for."""
    with contextlib.closing(pipeline.open_store(settings)) as store:
        return int(store.load_accounts()["next_offset"].sum())


def end(process: subprocess.Popen[str], repeat: int) -> None:
    """Kill the stream's Python, and wait until it has ended, or its JVM."""
    if victim_of(repeat) == "java":
        java_of(process).kill()
        return
    process.kill()
    assert process.wait(30) == -signal.SIGKILL


def ended(process: subprocess.Popen[str], repeat: int) -> None:
    """Assert that the stream has ended as it has to: one that has lost its JVM says so, and that another try may do."""
    said, _ = process.communicate(timeout=120)
    if victim_of(repeat) == "python":
        assert process.returncode == -signal.SIGKILL, said
    else:
        assert process.returncode == 75 and re.search("the Java of Spark|its Java has ended", said), (process.returncode, said)


def after(repeat: int, ledger: Ledger) -> None:
    """Compare the tables with the ledger, and now and then let verify do so too."""
    ledger.assert_kept()
    if repeat % VERIFY_EACH == 0:
        assert_equal(ledger.settings)


def kill_at(ledger: Ledger, point: str, repeat: int) -> None:
    """Let the stream kill itself before or after the commit of one of its first batches."""
    batch = random.Random(repeat).randint(1, 4)
    with stage(ledger.settings, point, victim_of(repeat), str(batch), program=KILLED_STREAM) as process:
        said, _ = process.communicate(timeout=300)
    if victim_of(repeat) == "python":
        assert process.returncode == -signal.SIGKILL, said
    else:
        assert "the Java of Spark has ended" in said, said
    after(repeat, ledger)


@pytest.mark.repeats("kill -9 of the Spark driver, before the transaction", short=0, full=20)
def test_a_stream_killed_before_its_transaction_loses_nothing(ledger: Ledger, repeat: int) -> None:
    kill_at(ledger, "before", repeat)


@pytest.mark.repeats("kill -9 of the Spark driver, after the commit", short=0, full=20)
def test_a_stream_killed_after_its_commit_adds_nothing_twice(ledger: Ledger, repeat: int) -> None:
    kill_at(ledger, "after", repeat)


@pytest.mark.repeats("kill -9 of the Spark driver, inside the transaction", full=20)
def test_a_stream_killed_inside_its_transaction_leaves_nothing_of_it(ledger: Ledger, repeat: int) -> None:
    settings = ledger.settings
    assert settings.database_url is not None
    with stage(settings, "stream") as process:
        has_committed(settings, consumed(settings), process)
        # Bars and offsets are written already when the transaction comes to its progress, and waits there.
        held = psycopg2.connect(settings.database_url.get_secret_value())
        try:
            with held.cursor() as cursor:
                cursor.execute("lock table query_progress in share row exclusive mode")
            assert_eventually(lambda: waiting(settings), bool)
            before = consumed(settings)
            end(process, repeat)
        finally:
            held.rollback()
            held.close()
        ended(process, repeat)  # where Python lives it may commit what it had begun: all of it
    after(repeat, ledger)
    assert victim_of(repeat) == "java" or consumed(settings) == before


def waiting(settings: Settings) -> int:
    """Return how many transactions of the stream wait for the lock on query_progress."""
    with contextlib.closing(pipeline.open_store(settings)) as store:
        return int(store.query("select count(*) from pg_locks where relation = 'query_progress'::regclass and not granted")["count"][0])


@pytest.mark.repeats("kill -9 of the Spark driver, at random", short=0, full=20)
def test_a_stream_killed_at_a_random_instant_loses_nothing_and_adds_nothing_twice(ledger: Ledger, repeat: int) -> None:
    with stage(ledger.settings, "stream") as process:
        if repeat % 4:  # each fourth is killed somewhere in its start
            has_committed(ledger.settings, consumed(ledger.settings), process)
        threading.Event().wait(random.Random(repeat).uniform(0, 3))
        end(process, repeat)
        ended(process, repeat)
    after(repeat, ledger)
