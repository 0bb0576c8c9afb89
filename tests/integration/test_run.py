"""The whole line in one command: bars move, a killed stage comes back, Ctrl-C leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
from runs import assert_equal, assert_eventually, open_store

from pipeline_lib.pipeline import Place
from pipeline_lib.run import stage_environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_run_shows_live_bars_rides_out_a_kill_and_stops_in_order(place: Place, tmp_path: Path) -> None:
    settings = place.settings.replaced(dashboard_port=free_port(), source="simulated")
    log = tmp_path / "run.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline_lib.cli", "run"],
            env=stage_environment(settings),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        store = open_store(place)
        store.create_tables()

        def committed() -> int:
            assert process.poll() is None, log.read_text()
            return int(store.load_accounts()["good_count"].sum())

        first = assert_eventually(committed, lambda good: good > 0)
        later = assert_eventually(committed, lambda good: good > first)
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.dashboard_port}/", timeout=60) as page:
            assert b"Stock pipeline" in page.read()
        stages = {row["stage"]: row["state"] for row in store.load_stages().to_dict("records")}
        assert stages == {"feed": "running", "kafka": "running", "spark": "running", "postgres": "running"}

        children = psutil.Process(process.pid).children()
        (stream,) = [child for child in children if "stream" in child.cmdline()]
        stream.kill()
        assert_eventually(committed, lambda good: good > later + 50)

        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 0, log.read_text()
        assert [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert [line.split()[1] for line in log.read_text().splitlines() if line.startswith("stopping")] == ["feed", "stream", "dashboard"]
    assert_equal(settings)
