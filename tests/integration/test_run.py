"""The whole line in one command: bars move, whatever is killed comes back, Ctrl-C leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from runs import assert_equal, assert_eventually

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError
from pipeline_lib.services import find_services, remove_services, service_status, start_services
from pipeline_lib.services.locks import hold_lock
from pipeline_lib.services.process import choose_ports
from pipeline_lib.supervise import stage_environment


class Run:
    """`stocks run` in a PIPELINE_HOME of its own, and what can be asked of it."""

    def __init__(self, home: Path) -> None:
        port = choose_ports(("page",), {}, print)["page"]
        self.settings = Settings.load(pipeline_home=home, dashboard_port=port, source="simulated").replaced(finnhub_api_key=None)
        self.log = home / "run.log"
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline_lib.cli", "run"],
                env=stage_environment(self.settings),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def committed(self) -> int:
        """Return how many messages the table accounts for; -1 while nobody answers."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            store = pipeline.open_store(find_services(self.settings))
            try:
                return int(store.load_accounts()["good_count"].sum())
            finally:
                store.close()
        except PipelineError:
            return -1

    def goes_on(self) -> None:
        """Wait until more has been committed than now."""
        before = assert_eventually(self.committed, lambda good: good >= 0)
        assert_eventually(self.committed, lambda good: good > before + 50)

    def child(self, *words: str) -> psutil.Process:
        """Return the process below the run whose command line has all these words."""
        family = {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}
        # process_iter passes over processes that end while it looks, as connections of PostgreSQL do.
        commands = {each: each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"]) if each.pid in family}
        (found,) = [each for each, command in commands.items() if all(any(word in part for part in command) for word in words)]
        return found

    def service(self, name: str) -> psutil.Process:
        """Return the process of a service."""
        (status,) = [found for found in service_status(self.settings) if found.name == name]
        assert status.pid is not None
        return psutil.Process(status.pid)

    def page(self) -> bytes:
        """Return what the page's address answers; nothing while nobody does."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.dashboard_port}/", timeout=60) as answer:
                return bytes(answer.read())
        except OSError:
            return b""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started = Run(tmp_path)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            os.killpg(started.process.pid, signal.SIGKILL)
            started.process.wait()
        remove_services(started.settings)


def test_run_shows_live_bars_rides_out_every_kill_and_stops_in_order(run: Run) -> None:
    run.goes_on()
    assert b"Stock pipeline" in assert_eventually(run.page, bool)
    store = pipeline.open_store(find_services(run.settings))
    assert_eventually(lambda: set(store.load_stages()["state"]), lambda states: states == {"running"})
    store.close()

    run.child("pipeline_lib.cli", "stream").kill()
    run.goes_on()
    run.child("org.apache.spark.deploy.SparkSubmit").kill()  # the Java beside it
    run.goes_on()
    run.child("pipeline_lib.web").kill()
    assert b"Stock pipeline" in assert_eventually(run.page, bool)
    run.service("postgres").kill()
    run.goes_on()
    run.service("kafka").kill()
    run.goes_on()

    family = psutil.Process(run.process.pid).children(recursive=True)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(90) == 0, run.log.read_text()
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert {found.state for found in service_status(run.settings)} == {"stopped"}
    stopped = [line.split(maxsplit=1)[1] for line in run.log.read_text().splitlines() if line.startswith("stopping")]
    assert stopped == ["feed", "stream", "dashboard", "kafka and postgres"]
    assert_equal(start_services(run.settings))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    settings = Settings.load(pipeline_home=tmp_path)
    with hold_lock(tmp_path / "run.lock", 0):  # as a first one does
        second = subprocess.run(
            [sys.executable, "-m", "pipeline_lib.cli", "run"], env=stage_environment(settings), capture_output=True, text=True, timeout=60
        )
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert "another `stocks run` runs in" in second.stderr
