"""The services as a whole: found again, never doubled, never lost, and nothing touched that is not ours.

Each test has a PIPELINE_HOME of its own, and leaves no process.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from pipeline_lib import topics
from pipeline_lib.config import Settings
from pipeline_lib.errors import ServiceError, TopicError
from pipeline_lib.services import find_services, kafka, postgres, process, remove_services, service_status, start_services, stop_services
from pipeline_lib.services.process import Born, State

ADDRESSES = ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "PIPELINE_HOME")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of an empty PIPELINE_HOME; whatever was started in it is gone afterwards."""
    monkeypatch.chdir(tmp_path)  # away from the project's .env
    for name in ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    made = Settings.load(pipeline_home=tmp_path / "home with a space, and ümlaut")
    yield made
    remove_services(made)


def run_sql(settings: Settings, statement: str) -> list[tuple[object, ...]]:
    """Return the rows of a statement, committed."""
    assert settings.database_url is not None
    connection = psycopg2.connect(settings.database_url.get_secret_value())
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def kill(settings: Settings, name: str) -> int:
    """Kill the service with -9, return its number when it is gone."""
    (status,) = [status for status in service_status(settings) if status.name == name]
    assert status.pid is not None
    victim = psutil.Process(status.pid)
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    return status.pid


def test_killed_services_come_up_again_with_their_data_and_their_addresses(settings: Settings) -> None:
    running = start_services(settings)
    assert running.kafka_bootstrap_servers is not None
    run_sql(running, "CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)")
    topics.create_topic(running.kafka_bootstrap_servers, "kept")

    kill(settings, "kafka")
    kill(settings, "postgres")
    assert [status.state for status in service_status(settings)] == ["died", "died"]
    again = start_services(settings)

    assert again == running
    assert again.kafka_bootstrap_servers is not None
    assert run_sql(again, "SELECT x FROM kept") == [(7,)]
    assert "kept" in topics.list_topics(again.kafka_bootstrap_servers)


def test_down_leaves_no_process_and_a_second_up_finds_the_data(settings: Settings) -> None:
    running = start_services(settings)
    run_sql(running, "CREATE TABLE kept (x int)")
    pids = [status.pid for status in service_status(settings)]
    family = [child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)]

    assert stop_services(settings) == ["kafka", "postgres"]

    assert not [pid for pid in (*pids, *family) if pid is not None and psutil.pid_exists(pid)]
    assert [status.state for status in service_status(settings)] == ["stopped", "stopped"]
    assert stop_services(settings) == []
    with pytest.raises(ServiceError, match=r"not running.*stocks up"):
        find_services(settings)
    assert run_sql(start_services(settings), "SELECT count(*) FROM kept") == [(0,)]


def test_two_commands_at_once_start_one_service_and_a_third_finds_it(settings: Settings) -> None:
    command = (
        "import sys; from pathlib import Path; from pipeline_lib.config import Settings; from pipeline_lib.services import *;"
        "print(start_services(Settings.load(pipeline_home=Path(sys.argv[1]))).kafka_bootstrap_servers, *[s.pid for s in service_status("
        "Settings.load(pipeline_home=Path(sys.argv[1])))])"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", command, str(settings.pipeline_home)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [each.communicate(timeout=120)[0] for each in both]

    assert said[0] == said[1]
    address, *pids = said[0].split()
    assert find_services(settings).kafka_bootstrap_servers == address
    assert [status.pid for status in service_status(settings)] == [int(pid) for pid in pids]


def test_given_addresses_are_used_and_nothing_is_started_or_stopped(settings: Settings) -> None:
    url = "postgresql://reader:secret@db.example:5432/stocks"
    given = settings.replaced(kafka_bootstrap_servers="broker.example:9092", database_url=url)

    assert start_services(given) == given
    assert find_services(given) == given
    assert stop_services(given) == []
    assert [status.state for status in service_status(given)] == ["external", "external"]
    assert "secret" not in repr(service_status(given))
    assert not (settings.pipeline_home / "kafka").exists()
    assert not (settings.pipeline_home / "postgres").exists()


def test_the_given_one_is_left_alone_when_the_other_is_stopped(settings: Settings) -> None:
    running = start_services(settings)
    assert stop_services(settings.replaced(kafka_bootstrap_servers=running.kafka_bootstrap_servers)) == ["postgres"]
    assert [status.state for status in service_status(settings)] == ["running", "stopped"]


def test_a_recycled_number_is_neither_taken_for_ours_nor_killed(settings: Settings) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        created = psutil.Process(stranger.pid).create_time()
        folder = settings.pipeline_home / "kafka"
        folder.mkdir(parents=True)
        process.write_state(folder, State(born=Born(stranger.pid, created - 3600), ports={"client": 1}, version="", data=""))

        assert service_status(settings)[0].state == "died"
        assert stop_services(settings) == []
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")


@pytest.mark.parametrize("service", [kafka, postgres])
def test_a_service_that_cannot_start_says_why_and_leaves_no_process(settings: Settings, service: object) -> None:
    name = "kafka" if service is kafka else "postgres"
    start_services(settings)
    stop_services(settings)
    state = process.read_state(settings.pipeline_home / name)
    assert state is not None
    for broken in ("meta.properties", "PG_VERSION"):
        if (Path(state.data) / broken).exists():
            (Path(state.data) / broken).write_text("nonsense=true\n")

    with pytest.raises(ServiceError, match=rf"cannot start (Kafka|PostgreSQL): .+; see .+/{name}/{name}\.log") as caught:
        start_services(settings)

    assert "\n" not in str(caught.value)
    assert [status.state for status in service_status(settings) if status.name == name] == ["stopped"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root cannot run PostgreSQL itself")
def test_as_root_a_closed_environment_and_project_are_not_opened(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = postgres.find_binaries()
    package = original.folder.parent.parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.with_name(name), closed / name, ignore=shutil.ignore_patterns("pginstall", "include", "*.a"))
    inside = closed / original.folder.relative_to(package.parent)
    monkeypatch.setattr(postgres, "find_binaries", lambda: original._replace(folder=inside))

    running = start_services(settings.replaced(kafka_bootstrap_servers="unused:9092"))

    assert run_sql(running, "SELECT 1") == [(1,)]
    (pid,) = [status.pid for status in service_status(settings) if status.name == "postgres"]
    assert psutil.Process(pid).uids().real != 0
    assert closed.stat().st_mode & 0o077 == 0
    assert tmp_path.stat().st_mode & 0o077 == 0


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The settings of services that several tests look at, and none changes; started with a key in the environment."""
    folder = tmp_path_factory.mktemp("settled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FINNHUB_API_KEY", "a-secret-key")
        for name in ADDRESSES:
            patch.delenv(name, raising=False)
        running = start_services(Settings.load(pipeline_home=folder / "home"))
        yield running
        remove_services(Settings.load(pipeline_home=folder / "home"))


def pids(settings: Settings) -> list[int]:
    own = settings.model_copy(update={"kafka_bootstrap_servers": None, "database_url": None})
    return [status.pid for status in service_status(own) if status.pid is not None]


def test_the_services_listen_on_the_loopback_only(settled: Settings) -> None:
    for pid in pids(settled):
        listening = [each for each in psutil.Process(pid).net_connections("all") if each.status == "LISTEN"]
        assert {each.laddr.ip.removeprefix("::ffff:") for each in listening} == {"127.0.0.1"}


def test_the_database_asks_for_the_password_which_only_its_owner_can_read(settled: Settings) -> None:
    assert settled.database_url is not None
    wrong = settled.database_url.get_secret_value().replace("stocks:", "stocks:x", 1)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(wrong)
    assert (settled.pipeline_home / "postgres" / "password").stat().st_mode & 0o077 == 0


def test_the_database_is_durable_utf8_and_utc(settled: Settings) -> None:
    names = ("fsync", "full_page_writes", "server_encoding", "TimeZone", "data_checksums")
    rows = run_sql(settled, "SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
    assert rows == [("on", "on", "UTF8", "UTC", "on")]


def test_an_interrupt_of_the_terminal_does_not_reach_the_services(settled: Settings) -> None:
    assert len(pids(settled)) == 2
    assert os.getsid(0) not in {os.getsid(pid) for pid in pids(settled)}


def test_the_key_is_not_given_to_the_services(settled: Settings) -> None:
    for pid in pids(settled):
        assert "a-secret-key" not in str(psutil.Process(pid).environ())


def test_topics_are_not_made_by_a_misspelt_name(settled: Settings) -> None:
    assert settled.kafka_bootstrap_servers is not None
    with pytest.raises(TopicError):
        topics.describe_topic(settled.kafka_bootstrap_servers, "no-such-topic")
    assert "no-such-topic" not in topics.list_topics(settled.kafka_bootstrap_servers)
