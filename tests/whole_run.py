"""`stocks run` as a person starts it, for tests that kill parts of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from runs import assert_eventually

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError
from pipeline_lib.services import find_services, remove_services, service_status
from pipeline_lib.services.process import choose_ports
from pipeline_lib.supervise import stage_environment


class Run:
    """`stocks run` in a PIPELINE_HOME of its own, and what can be asked of it."""

    def __init__(self, home: Path, **settings: Any) -> None:
        port = choose_ports(("page",), {}, print)["page"]
        given = Settings.load(pipeline_home=home, dashboard_port=port, source="simulated", **settings)
        self.settings = given.replaced(finnhub_api_key=None)
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

    def goes_on(self, seconds: float = 120) -> None:
        """Wait until more has been committed than now."""
        before = assert_eventually(self.committed, lambda good: good >= 0, seconds)
        assert_eventually(self.committed, lambda good: good > before + 50, seconds)

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

    def close(self) -> None:
        """End what is left of it, and remove its services with their data."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        remove_services(self.settings)
