"""The whole line in one command: bars move, whatever is killed comes back, Ctrl-C leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from runs import assert_equal, assert_eventually
from whole_run import Run

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.services import find_services, service_status, start_services
from pipeline_lib.services.locks import hold_lock
from pipeline_lib.supervise import stage_environment


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started = Run(tmp_path)
    try:
        yield started
    finally:
        started.close()


def test_run_shows_live_bars_rides_out_kills_and_stops_in_order(run: Run) -> None:
    run.goes_on()
    assert b"Stock pipeline" in assert_eventually(run.page, bool)
    store = pipeline.open_store(find_services(run.settings))
    assert_eventually(lambda: set(store.load_stages()["state"]), lambda states: states == {"running"})
    store.close()

    # The stream as a whole, the broker and the feed are killed by notebook 06, under the same supervisor.
    run.child("org.apache.spark.deploy.SparkSubmit").kill()  # the Java of the stream alone
    run.goes_on()
    run.child("pipeline_lib.web").kill()
    assert b"Stock pipeline" in assert_eventually(run.page, bool)
    run.service("postgres").kill()
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
