"""The whole in one terminal: services, feed, stream and dashboard, each a process, one readable line a stage.

A stage that is killed is started again (supervise.py); one that ends with a fault of its own ends the run, with its last
line. Every process is told to stop by the end of its standard input, so none outlives this one, however it dies. Called by
the command line.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.errors import AlreadyRunningError, UnavailableError
from pipeline_lib.services.locks import hold_lock
from pipeline_lib.sources import open_source, plan_words
from pipeline_lib.supervise import Lives, Supervisor, stage_environment
from pipeline_lib.web.serve import check_port, serve_dashboard

__all__ = ["run_pipeline", "stage_environment"]

# What a stage said longer ago than this is not repeated.
OLD_BEAT_SECONDS = 6.0
# Without a terminal a line is printed when something changes, and at least this often.
PLAIN_SECONDS = 30.0


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
    supervisor = Supervisor(settings, lambda line: out.print(f"services   {line}"))
    # A taken port, a wrong tape or a missing key is told before anything is started.
    check_port(settings.dashboard_port)
    source = open_source(settings)
    source.close()
    out.print(f"feed       {source.name}; {source.reason}")
    if settings.chosen_source == "finnhub":
        out.print(f"plan       {plan_words(settings)}")
    page: Page | None = None
    try:
        running = supervisor.start_services()
        if not stopping.is_set():
            supervisor.start_stages(running, feed_ends=source.finite)
        if not stopping.is_set():
            page = Page(running)
            out.print(f"dashboard  {page.url}")
            store = pipeline.open_store(running)
            with Show(out, page.url) as show:
                _watch(supervisor, page, store, stopping, show)
            store.close()
    finally:
        supervisor.stop_stages(lambda name: out.print(f"stopping   {name}"))
        if page is not None:
            out.print("stopping   dashboard")
            page.stop()
        supervisor.stop_services(lambda names: out.print(f"stopping   {names}"))


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


def _watch(supervisor: Supervisor, page: Page, store: pipeline.Store, stopping: threading.Event, show: Show) -> None:
    """Keep services, stages and page alive, and show how they are, until told to stop."""
    while not stopping.wait(0.5):
        supervisor.keep_alive()
        page.keep_alive()
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
