"""The whole in one terminal: services, feed, stream and dashboard, each a process, one readable line a stage.

A stage that is killed is started again; one that ends with a fault of its own ends the run, with its last line. Every
process is told to stop by the end of its standard input, so none outlives this one, however it dies. Called by the
command line.
"""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError, UnavailableError
from pipeline_lib.services import service_status, start_services, stop_services
from pipeline_lib.sources import open_source, plan_words
from pipeline_lib.web.serve import check_port, serve_dashboard

STOP_SECONDS = 20.0
# The exit status of a stage that may succeed when it is started again: see cli.py.
TRY_AGAIN = 75
# How often in a row a stage may die before it is left dead.
MAX_DEATHS = 5
# Without a terminal a line is printed when something changes, and at least this often.
PLAIN_SECONDS = 30.0


class Stage:
    """One stage as a child process, its output in a log."""

    def __init__(self, name: str, arguments: list[str], settings: Settings) -> None:
        self.name, self._arguments, self._settings = name, arguments, settings
        self.log = pipeline.log_folder(settings) / f"{name}.log"
        self.deaths = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; it ends when its standard input does."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline_lib.cli", *self._arguments, "--until-eof"],
                env=stage_environment(self._settings),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the one who started us, who stops the stages in order
            )

    @property
    def exit_status(self) -> int | None:
        """None while the process lives."""
        return None if self._process is None else self._process.poll()

    @property
    def last_line(self) -> str:
        """The last thing it said."""
        lines = self.log.read_text("utf-8", errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1].strip() if lines else "it said nothing"

    def keep_alive(self) -> None:
        """Start the process again if it was killed or may succeed now. Raises PipelineError for any other fault of its own."""
        status = self.exit_status
        if status is None or status == 0:
            return
        self.deaths += 1
        if (status > 0 and status != TRY_AGAIN) or self.deaths > MAX_DEATHS:
            raise PipelineError(f"the {self.name} has ended: {self.last_line.removeprefix('error: ')} (log: {_relative(self.log)})")
        self.start()

    def stop(self) -> None:
        """Let the stage finish what it has in hand, and end it if it does not."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def stage_environment(settings: Settings) -> dict[str, str]:
    """Return the environment that gives a child process these very settings, with the running services' addresses."""
    environment = dict(os.environ)
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is None:
            environment.pop(name.upper(), None)
        elif isinstance(value, tuple):
            environment[name.upper()] = ",".join(value)
        else:
            environment[name.upper()] = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
    environment["PIPELINE_HOME"] = str(settings.pipeline_home.absolute())
    return environment


def run_pipeline(settings: Settings, stopping: threading.Event, out: Console) -> None:
    """Run the whole until `stopping` is set, then stop what was started, in order: feed, stream, dashboard, services.

    Raises PipelineError if a stage cannot be started or ends by itself.
    """
    before = {found.name for found in service_status(settings) if found.state == "running"}
    # A taken port, a wrong tape or a missing key is told before anything is started.
    check_port(settings.dashboard_port)
    source = open_source(settings)
    source.close()
    out.print(f"feed       {source.name}; {source.reason}")
    if settings.chosen_source == "finnhub":
        out.print(f"plan       {plan_words(settings)}")
    running = start_services(settings, lambda line: out.print(f"services   {line}"))
    store = pipeline.open_store(running)
    stages: list[Stage] = []
    server = None
    try:
        store.create_tables()
        pipeline.topics.create_topic(pipeline.servers_of(running), running.kafka_topic)
        for stage in (Stage("stream", ["stream"], running), Stage("feed", ["produce"], running)):
            stage.start()
            stages.append(stage)
        server = serve_dashboard(running)
        out.print(f"dashboard  {server.url}")
        _watch(stages, store, stopping, out, server.url)
    finally:
        for stage in reversed(stages):
            out.print(f"stopping   {stage.name}")
            stage.stop()
        if server is not None:
            out.print("stopping   dashboard")
            server.stop()
        store.close()
        if started := {found.name for found in service_status(settings) if found.state == "running"} - before:
            out.print(f"stopping   {' and '.join(sorted(started))}")
            _stop_started(settings, started)


def _stop_started(settings: Settings, started: set[str]) -> None:
    """Stop the services that this run has started, and leave alone those that ran before."""
    given = {"kafka": "kafka_bootstrap_servers", "postgres": "database_url"}
    # A service whose address is given is left alone, which is what those that ran before are to be.
    kept = {field: "127.0.0.1:0" if name == "kafka" else "postgresql://127.0.0.1" for name, field in given.items() if name not in started}
    stop_services(settings.replaced(**kept))


def _watch(stages: list[Stage], store: pipeline.Store, stopping: threading.Event, out: Console, url: str) -> None:
    said, said_at = "", 0.0
    with Live(console=out, refresh_per_second=2, transient=True) if out.is_terminal else _Quiet() as live:
        while not stopping.wait(0.5):
            for stage in stages:
                stage.keep_alive()
            try:
                words = _words(store.load_stages(), store.load_progress(1))
            except UnavailableError as error:
                words = {"postgres": ("down", str(error))}
            if isinstance(live, Live):
                live.update(_table(words, url))
                continue
            states = "; ".join(f"{name} {state}" for name, (state, _) in words.items())
            if states != said or time.monotonic() - said_at > PLAIN_SECONDS:
                said, said_at = states, time.monotonic()
                line = "; ".join(f"{name} {state}: {detail}" for name, (state, detail) in words.items())
                out.print(f"{dt.datetime.now(dt.UTC):%H:%M:%S}   {line}")


class _Quiet:
    """Stands where a live display would: without a terminal there is none."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def _words(stages: pd.DataFrame, progress: pd.DataFrame) -> dict[str, tuple[str, str]]:
    words = {row["stage"]: (row["state"], row["detail"]) for row in stages.to_dict("records")}
    for row in progress.to_dict("records"):
        age = (pd.Timestamp.now("UTC") - row["committed_at"]).total_seconds()
        state, detail = words["postgres"]
        words["postgres"] = state, f"{detail}; last commit {age:.1f} s ago, {row['input_rows']:,} messages, {row['bars']:,} bars"
    return words


def _table(words: dict[str, tuple[str, str]], url: str) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, (state, detail) in words.items():
        colour = {"running": "green", "waiting": "yellow", "silent": "yellow", "stopped": "dim"}.get(state, "red")
        table.add_row(name, f"[{colour}]{state}[/]", detail)
    table.add_row("page", "", f"{url}   (Ctrl-C stops all)")
    return table


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
