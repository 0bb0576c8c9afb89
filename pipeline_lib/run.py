"""The whole in one terminal: services, feed, stream and dashboard, each a process, one readable line a stage.

A stage that is killed is started again; one that ends with a fault of its own ends the run, with its last line. Every
process is told to stop by the end of its standard input, so none outlives this one, however it dies. Called by the
command line.
"""

from __future__ import annotations

import contextlib
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
from rich.text import Text

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.errors import EXIT_TRY_AGAIN, AlreadyRunningError, PipelineError, ServiceError, UnavailableError
from pipeline_lib.services import service_status, start_services, stop_services
from pipeline_lib.services.locks import hold_lock
from pipeline_lib.sources import open_source, plan_words
from pipeline_lib.web.serve import check_port, serve_dashboard

STOP_SECONDS = 20.0
# How often in a row a stage may die before it is left dead.
MAX_DEATHS = 5
# Whatever lives this long has not died "in a row".
LONG_LIFE_SECONDS = 60.0
# What a stage said longer ago than this is not repeated.
OLD_BEAT_SECONDS = 6.0
SERVICES_SECONDS = 2.0
# Without a terminal a line is printed when something changes, and at least this often.
PLAIN_SECONDS = 30.0


class Stage:
    """One stage as a child process, its output in a log. ``may_end`` is for a stage that has an end of its own."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: Path, *, may_end: bool = False) -> None:
        self.name, self.log = name, log
        self._arguments, self._environment, self._may_end = arguments, environment, may_end
        self._lives = Lives(name)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; it ends when its standard input does."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline_lib.cli", *self._arguments, "--until-eof"],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the one who started us, who stops the stages in order
            )
        self._lives.begin()

    @property
    def last_line(self) -> str:
        """The last thing it said."""
        lines = self.log.read_text("utf-8", errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1].strip() if lines else "it said nothing"

    def keep_alive(self) -> None:
        """Start the process again if it was killed or may succeed now. Raises PipelineError for any other fault of its own."""
        status = None if self._process is None else self._process.poll()
        if status is None or (status == 0 and self._may_end):
            return
        if status > 0 and status != EXIT_TRY_AGAIN:
            raise PipelineError(f"the {self.name} has ended: {self.last_line.removeprefix('error: ')} (log: {_relative(self.log)})")
        if self._lives.may_begin_again():
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


class Lives:
    """How often in a row something has died, and when it may be started again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._deaths, self._began_at, self._again_at = 0, 0.0, 0.0

    def begin(self) -> None:
        """Note that it was started."""
        self._began_at, self._again_at = time.monotonic(), 0.0

    def failed(self) -> None:
        """Note that a start has failed: the next one comes later."""
        self._again_at = 0.0

    def may_begin_again(self) -> bool:
        """Return whether the time for another start has come. Raises PipelineError if it has died too often in a row."""
        now = time.monotonic()
        if not self._again_at:
            self._deaths = 1 if now - self._began_at > LONG_LIFE_SECONDS else self._deaths + 1
            if self._deaths > MAX_DEATHS:
                raise PipelineError(f"the {self.name} has died {self._deaths} times in a row: see the logs, and start anew")
            self._again_at = now + 0.5 * 2 ** (self._deaths - 1)
        return now >= self._again_at


def stage_environment(settings: Settings, *, with_key: bool = True) -> dict[str, str]:
    """Return the environment that gives a child process these very settings, with the running services' addresses.

    Only a feed needs the key.
    """
    environment = dict(os.environ)
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is None or (name == "finnhub_api_key" and not with_key):
            environment.pop(name.upper(), None)
        elif isinstance(value, tuple):
            environment[name.upper()] = ",".join(value)
        else:
            environment[name.upper()] = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
    environment["PIPELINE_HOME"] = str(settings.pipeline_home.absolute())
    return environment


def run_pipeline(settings: Settings, stopping: threading.Event, out: Console) -> None:
    """Run the whole until `stopping` is set, then stop what was started, in order: feed, stream, dashboard, services.

    Raises PipelineError if a stage cannot be started or ends by itself, AlreadyRunningError if another run has this PIPELINE_HOME.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold_lock(settings.pipeline_home / "run.lock", 0))
        except AlreadyRunningError:
            raise AlreadyRunningError(
                f"cannot run: another `stocks run` runs in {settings.pipeline_home}; stop it, or set PIPELINE_HOME to another folder"
            ) from None
        _run(settings, stopping, out)


def _run(settings: Settings, stopping: threading.Event, out: Console) -> None:
    before = {found.name for found in service_status(settings) if found.state == "running"}
    # A taken port, a wrong tape or a missing key is told before anything is started.
    check_port(settings.dashboard_port)
    source = open_source(settings)
    source.close()
    out.print(f"feed       {source.name}; {source.reason}")
    if settings.chosen_source == "finnhub":
        out.print(f"plan       {plan_words(settings)}")
    stages: list[Stage] = []
    page: Page | None = None
    try:
        running = start_services(settings, lambda line: out.print(f"services   {line}"))
        store = pipeline.open_store(running)
        store.create_tables()
        pipeline.topics.create_topic(pipeline.servers_of(running), running.kafka_topic)
        logs = pipeline.log_folder(running)
        stages.append(Stage("stream", ["stream"], stage_environment(running, with_key=False), logs / "stream.log"))
        stages.append(Stage("feed", ["produce"], stage_environment(running), logs / "feed.log", may_end=source.finite))
        for stage in stages:
            if not stopping.is_set():
                stage.start()
        if not stopping.is_set():
            page = Page(running)
            out.print(f"dashboard  {page.url}")
            with Show(out, page.url) as show:
                _watch(settings, [*stages, page], store, stopping, show)
        store.close()
    finally:
        for stage in reversed(stages):
            out.print(f"stopping   {stage.name}")
            stage.stop()
        if page is not None:
            out.print("stopping   dashboard")
            page.stop()
        if started := {found.name for found in service_status(settings) if found.state in ("running", "died")} - before:
            out.print(f"stopping   {' and '.join(sorted(started))}")
            _stop_started(settings, started)


class Page:
    """The dashboard's server, served again when it dies."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._lives = settings, Lives("dashboard")
        self._server = serve_dashboard(settings)
        self.url = self._server.url
        self._lives.begin()

    def keep_alive(self) -> None:
        """Serve again if the server has died."""
        if not self._server.is_running and self._lives.may_begin_again():
            self._server = serve_dashboard(self._settings)
            self._lives.begin()

    def stop(self) -> None:
        """Stop the server."""
        self._server.stop()


def _stop_started(settings: Settings, started: set[str]) -> None:
    """Stop the services that this run has started, and leave alone those that ran before."""
    given = {"kafka": "kafka_bootstrap_servers", "postgres": "database_url"}
    # A service whose address is given is left alone, which is what those that ran before are to be.
    kept = {field: "127.0.0.1:0" if name == "kafka" else "postgresql://127.0.0.1" for name, field in given.items() if name not in started}
    stop_services(settings.replaced(**kept))


def _watch(settings: Settings, kept: list[Stage | Page], store: pipeline.Store, stopping: threading.Event, show: Show) -> None:
    """Keep services, stages and page alive, and show how they are, until told to stop."""
    services_seen_at, lives = 0.0, Lives("services")
    while not stopping.wait(0.5):
        if time.monotonic() - services_seen_at > SERVICES_SECONDS:
            services_seen_at = time.monotonic()
            if any(found.state == "died" for found in service_status(settings)) and lives.may_begin_again():
                try:
                    start_services(settings, show.say)
                    lives.begin()
                except ServiceError as error:
                    show.say(str(error))
                    lives.failed()
        for each in kept:
            each.keep_alive()
        try:
            show.words(_words(store.load_stages(), store.load_progress(1)))
        except UnavailableError as error:
            show.words({"postgres": ("down", str(error))})


class Show:
    """Shows the stages: a table that changes in place on a terminal, else a line when something changes, and now and then."""

    def __init__(self, out: Console, url: str) -> None:
        self._out, self._url = out, url
        self._live = Live(console=out, refresh_per_second=2, transient=True) if out.is_terminal else None
        self._said, self._said_at = "", 0.0

    def say(self, line: str) -> None:
        """Print a line of its own."""
        self._out.print(f"services   {line}")

    def words(self, words: dict[str, tuple[str, str]]) -> None:
        """Show the state and the detail of each stage."""
        if self._live is not None:
            self._live.update(_table(words, self._url))
            return
        states = "; ".join(f"{name} {state}" for name, (state, _) in words.items())
        if states != self._said or time.monotonic() - self._said_at > PLAIN_SECONDS:
            self._said, self._said_at = states, time.monotonic()
            line = "; ".join(f"{name} {state}: {detail}" for name, (state, detail) in words.items())
            self._out.print(f"{dt.datetime.now(dt.UTC):%H:%M:%S}   {line}")

    def __enter__(self) -> Show:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()


def _words(stages: pd.DataFrame, progress: pd.DataFrame) -> dict[str, tuple[str, str]]:
    now = pd.Timestamp.now("UTC")
    words = {}
    for row in stages.to_dict("records"):
        # Feed and Kafka are watched by the stream: while it does not beat, nothing is known of them.
        is_old = pd.isna(row["beat_at"]) or (now - row["beat_at"]).total_seconds() > OLD_BEAT_SECONDS
        since = "" if pd.isna(row["beat_at"]) else f" since {row['beat_at']:%H:%M:%S} UTC"
        words[row["stage"]] = ("waiting", f"no sign of life{since}") if is_old else (row["state"], row["detail"])
    for row in progress.to_dict("records"):
        age = (now - row["committed_at"]).total_seconds()
        state, detail = words["postgres"]
        words["postgres"] = state, f"{detail}; last commit {age:.1f} s ago, {row['input_rows']:,} messages, {row['bars']:,} bars"
    return words


def _table(words: dict[str, tuple[str, str]], url: str) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, (state, detail) in words.items():
        colour = {"running": "green", "waiting": "yellow", "silent": "yellow", "stopped": "dim"}.get(state, "red")
        table.add_row(name, Text(state, style=colour), detail)
    table.add_row("page", "", f"{url}   (Ctrl-C stops all)")
    return table


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
