"""PostgreSQL stopped at once, killed, away, or cutting the stream's connection: the stream rides it out, and is not restarted.

The server is the test's own. It is started again as `stocks up` or `stocks run` would; the stream is never touched.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import psutil
import psycopg2
import pytest
from ledger import Ledger, LiveFeed
from pyspark.sql import SparkSession
from runs import assert_equal, assert_eventually

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.pipeline import Place
from pipeline_lib.services import remove_services, service_status, start_services
from pipeline_lib.stream import Stream

AWAY_SECONDS = 60.0


class Line:
    """A stream from a topic with a feed that goes on into a PostgreSQL of its own, and what can be done to that."""

    def __init__(self, own: Settings, stream: Stream, ledger: Ledger, said: list[str]) -> None:
        self.own, self.stream, self.ledger, self.said = own, stream, ledger, said

    def server(self) -> psutil.Process:
        """Return PostgreSQL's first process."""
        (found,) = [status for status in service_status(self.own) if status.name == "postgres"]
        assert found.pid is not None
        return psutil.Process(found.pid)

    def goes_on(self) -> None:
        """Wait until the stream, the same as ever, has committed what is sent from now on; compare."""
        assert self.stream.error is None
        aim = len(self.ledger.entries) + 1
        assert_eventually(lambda: (self.consumed(), self.stream.error), lambda seen: seen[0] >= aim or seen[1] is not None)
        assert self.stream.error is None and self.stream.state == "running"
        self.ledger.assert_kept()

    def consumed(self) -> int:
        """Return how many messages the tables account for; 0 while nobody answers."""
        with contextlib.closing(pipeline.open_store(self.ledger.settings)) as store, contextlib.suppress(pipeline.UnavailableError):
            return int(store.load_accounts()["next_offset"].sum())
        return 0


@pytest.fixture(scope="module")
def line(services: Settings, session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line that runs from the first test to the last; in the end its tables tell all that was acknowledged."""
    own = services.model_copy(update={"pipeline_home": tmp_path_factory.mktemp("postgres"), "database_url": None})
    said: list[str] = []
    try:
        with (
            Place(own, "postgres-faults") as place,
            Ledger(place.settings) as ledger,
            pipeline.running_stream(place.settings, session, said.append) as stream,
        ):
            line = Line(own, stream, ledger, said)
            with LiveFeed(ledger, seed=6, rate=200):
                line.goes_on()
                yield line
            assert_eventually(line.consumed, lambda count: count == len(ledger.entries))
            ledger.assert_kept(all_of_it=True)
            assert_equal(place.settings)
    finally:
        remove_services(own)


@pytest.mark.repeats("PostgreSQL stopped at once (SIGQUIT)", full=5)
def test_a_stream_rides_out_an_immediate_stop(line: Line, repeat: int) -> None:
    server = line.server()
    server.send_signal(signal.SIGQUIT)
    server.wait(30)
    assert_eventually(lambda: line.stream.state, lambda state: state == "waiting")
    start_services(line.own)
    line.goes_on()


@pytest.mark.repeats("PostgreSQL killed with -9", full=5)
def test_a_stream_rides_out_a_kill_of_the_server(line: Line, repeat: int) -> None:
    server = line.server()
    server.kill()
    server.wait(30)
    start_services(line.own)
    line.goes_on()


@pytest.mark.repeats("connection cut inside the transaction", short=0, full=5)
def test_a_stream_whose_connection_is_cut_inside_its_transaction_does_it_again(line: Line, repeat: int) -> None:
    url, before = line.ledger.settings.database_url, len(line.said)
    assert url is not None
    held, other = psycopg2.connect(url.get_secret_value()), psycopg2.connect(url.get_secret_value())
    other.autocommit = True
    with contextlib.closing(held), contextlib.closing(other), held.cursor() as lock, other.cursor() as cursor:
        lock.execute("lock table query_progress in share row exclusive mode")

        def waiting() -> list[int]:
            cursor.execute("select pid from pg_locks where relation = 'query_progress'::regclass and not granted")
            return [pid for (pid,) in cursor.fetchall()]

        for pid in assert_eventually(waiting, bool):
            cursor.execute("select pg_terminate_backend(%s)", (pid,))
            assert cursor.fetchone() == (True,)
        held.rollback()
    assert_eventually(lambda: [each for each in line.said[before:] if "terminating connection" in each or "closed" in each], bool)
    line.goes_on()


@pytest.mark.repeats("PostgreSQL away for 60 s", short=0, full=5)
def test_a_stream_rides_out_a_minute_without_the_server(line: Line, repeat: int) -> None:
    server = line.server()
    server.send_signal(signal.SIGINT)
    server.wait(30)
    threading.Event().wait(AWAY_SECONDS)
    assert line.stream.state == "waiting"
    start_services(line.own)
    line.goes_on()
