"""One stream a database: the right to write lives and dies with the connection that commits, and is taken again with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from runs import assert_eventually, open_store

from pipeline_lib.config import Settings
from pipeline_lib.errors import AlreadyRunningError, UnavailableError
from pipeline_lib.pipeline import Place
from pipeline_lib.services import remove_services, start_services, stop_services
from pipeline_lib.store import Store


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of an empty PIPELINE_HOME, whose PostgreSQL the test may restart; Kafka plays no part."""
    monkeypatch.chdir(tmp_path)
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "PIPELINE_HOME"):
        monkeypatch.delenv(name, raising=False)
    made = Settings.load(pipeline_home=tmp_path / "home", kafka_bootstrap_servers="unused:9092")
    yield made
    remove_services(made)


def offsets_once_it_answers(store: Store) -> dict[int, int]:
    """Return the offsets, however often the connection has to be made anew."""

    def load() -> dict[int, int] | None:
        try:
            return store.load_offsets()
        except UnavailableError:
            return None

    return assert_eventually(load, lambda found: found is not None, 30)


def test_the_right_to_write_is_taken_again_after_a_restart_of_postgresql_or_refused(settings: Settings) -> None:
    url = start_services(settings).database_url
    assert url is not None
    first, second = (Store(url.get_secret_value(), "topic") for _ in range(2))
    with first.only_stream():
        first.create_tables()
        stop_services(settings)
        start_services(settings)
        assert offsets_once_it_answers(first) == {}
        with pytest.raises(AlreadyRunningError, match="another stream writes to this database, connected since"), second.only_stream(0.5):
            pass
    with first.only_stream(0.5):
        stop_services(settings)
        start_services(settings)
        # The second was faster.
        with second.only_stream(), pytest.raises(AlreadyRunningError, match="another stream writes to this database, connected since"):
            offsets_once_it_answers(first)
        assert offsets_once_it_answers(first) == {}


def end_connection_of(store: Store, by: Store) -> None:
    pid = store._connection.info.backend_pid
    connection = psycopg2.connect(by.url)
    with connection, connection.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(%s)", (pid,))
    connection.close()


def test_who_has_lost_the_connection_has_lost_the_right_to_write(place: Place) -> None:
    first, second = open_store(place), open_store(place)
    first.create_tables()
    with first.only_stream(0.5):
        end_connection_of(first, second)
        with second.only_stream(), pytest.raises(AlreadyRunningError, match="another stream writes"):
            offsets_once_it_answers(first)
    with second.only_stream(0.5):
        pass


def test_a_holder_that_ends_is_waited_for(place: Place) -> None:
    first, second = open_store(place), open_store(place)
    with first.only_stream():
        end = threading.Timer(1, end_connection_of, (first, second))
        end.start()
        with second.only_stream(10):
            pass
        end.join()
