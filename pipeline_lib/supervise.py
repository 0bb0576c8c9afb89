"""Services, stream and feed kept alive: each a process of its own, and each started again when it dies.

It has no thread and shows nothing: whoever has a `Supervisor` calls `keep_alive` again and again, and may kill and stop from
another thread. A service whose address is given is used, and never started, killed or stopped. Called by `stocks run`
(run.py) and by the drill of notebook 06.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.errors import EXIT_TRY_AGAIN, PipelineError, ServiceError
from pipeline_lib.services import find_died, kill_service, service_status, start_services, stop_services
from pipeline_lib.services.process import bound_log

STOP_SECONDS = 20.0
# How often in a row a stage may die before it is left dead. One that says itself that another try may do, and the services,
# which a full disk keeps down, are tried for as long as it takes, after at most this pause.
MAX_DEATHS = 5
MAX_PAUSE_SECONDS = 15.0
LOGS_SECONDS = 10.0
# Whatever lives this long has not died "in a row".
LONG_LIFE_SECONDS = 60.0

Report = Callable[[str], None]


class Supervisor:
    """The services of the settings' PIPELINE_HOME, and stream and feed on them, from `start_…` until `stop_…`."""

    def __init__(self, settings: Settings, report: Report | None = None) -> None:
        self.stages: dict[str, Stage] = {}
        self.returns: Counter[str] = Counter()  # how often each service has come back
        self._settings, self._report = settings, report or (lambda line: None)
        self._before = {found.name for found in service_status(settings) if found.state == "running"}
        self._lives = Lives("services")
        self._down: set[str] = set()  # died, and not up again yet
        self._logs_seen_at = 0.0
        self._changing = threading.Lock()  # what is being stopped is not to be started again

    def start_services(self) -> Settings:
        """Start the services that neither run nor have an address; return the settings with both addresses."""
        return start_services(self._settings, self._report)

    def start_stages(self, running: Settings, *, feed_ends: bool = False) -> None:
        """Start stream and feed on these addresses, with tables and topic made. ``feed_ends`` is for a tape, which has an end."""
        with contextlib.closing(pipeline.open_store(running)) as store:
            pipeline.bind(running, store)
        logs = pipeline.log_folder(running)
        self.stages["stream"] = Stage("stream", ["stream"], stage_environment(running, with_key=False), logs / "stream.log")
        self.stages["feed"] = Stage("feed", ["produce"], stage_environment(running), logs / "feed.log", may_end=feed_ends)
        for stage in self.stages.values():
            stage.start()

    def keep_alive(self) -> None:
        """Start again whatever has died. Raises PipelineError if something has ended with a fault of its own, or dies again and again."""
        with self._changing:
            self._bound_logs()
            # One that could not be started has no process that could have died: it is down until a start succeeds.
            self._down.update(find_died(self._settings))
            if self._down and self._lives.may_begin_again(for_ever=True):
                try:
                    start_services(self._settings, self._report)
                    self.returns.update(self._down)
                    self._down.clear()
                    self._lives.begin()
                except ServiceError as error:
                    self._report(str(error))
                    self._lives.failed()
            for stage in self.stages.values():
                stage.keep_alive()

    def _bound_logs(self) -> None:
        """Keep short what the stages, the page and PostgreSQL append to; Kafka and Spark put their own logs aside."""
        if time.monotonic() - self._logs_seen_at < LOGS_SECONDS:
            return
        self._logs_seen_at = time.monotonic()
        for log in ("logs/stream.log", "logs/feed.log", "dashboard/voila.log", "postgres/postgres.log"):
            with contextlib.suppress(OSError):  # on a full disk a copy is not to be had
                bound_log(self._settings.pipeline_home / log)

    def kill(self, name: str) -> None:
        """Kill a stage or a service as `kill -9` does; what is killed on purpose does not count as dying again and again.

        Raises ServiceError if it does not run, or is not ours to kill since its address is given.
        """
        if name in self.stages:
            self.stages[name].kill()
        else:
            self._lives.pardon()
            kill_service(self._settings, name)

    def stop_stages(self, say: Report | None = None) -> None:
        """Stop the feed, then the stream; each finishes what it has in hand."""
        for name in ("feed", "stream"):
            self.stop_stage(name, say)

    def stop_stage(self, name: str, say: Report | None = None) -> None:
        """Stop one stage, which finishes what it has in hand; one that was stopped stays so."""
        with self._changing:
            stage = self.stages.pop(name, None)
            if stage is not None:
                if say is not None:
                    say(name)
                stage.stop()

    def stop_services(self, say: Report | None = None) -> None:
        """Stop the services that were started here, and leave alone those that ran before."""
        started = {found.name for found in service_status(self._settings) if found.state in ("running", "died")} - self._before
        if not started:
            return
        if say is not None:
            say(" and ".join(sorted(started)))
        # A service whose address is given is left alone, which is what those that ran before are to be.
        kept = {"kafka_bootstrap_servers": "127.0.0.1:0", "database_url": "postgresql://127.0.0.1"}
        if "kafka" in started:
            del kept["kafka_bootstrap_servers"]
        if "postgres" in started:
            del kept["database_url"]
        stop_services(self._settings.replaced(**kept))


class Stage:
    """One stage as a child process, its output in a log. ``may_end`` is for a stage that has an end of its own."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: Path, *, may_end: bool = False) -> None:
        self.name, self.log = name, log
        self.starts = 0
        self._arguments, self._environment, self._may_end = arguments, environment, may_end
        self._lives = Lives(name)
        self._log_began = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; it ends when its standard input does."""
        with self.log.open("ab") as log:
            self._log_began = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline_lib.cli", *self._arguments, "--until-eof"],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the one who started us, who stops the stages in order
            )
        self.starts += 1
        self._lives.begin()

    @property
    def is_alive(self) -> bool:
        """True while its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def last_line(self) -> str:
        """The last thing it said in this life: its error, if it ended with one."""
        if not self.log.exists():
            return "it said nothing"
        with self.log.open("rb") as log:
            log.seek(self._log_began if self._log_began <= self.log.stat().st_size else 0)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        # Libraries may have a last word of their own after its error.
        return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "it said nothing")

    def keep_alive(self) -> None:
        """Start the process again if it was killed or may succeed now. Raises PipelineError for any other fault of its own."""
        status = None if self._process is None else self._process.poll()
        if status is None or (status == 0 and self._may_end):
            return
        if status > 0 and status != EXIT_TRY_AGAIN:
            raise PipelineError(f"the {self.name} has ended: {self.last_line.removeprefix('error: ')} (log: {_relative(self.log)})")
        if self._lives.may_begin_again(for_ever=status == EXIT_TRY_AGAIN):
            self.start()

    def kill(self) -> None:
        """Kill the process, and what it has started, such as the Java of Spark. Raises ServiceError if it does not run."""
        process = self._process
        if process is None or process.poll() is not None:
            raise ServiceError(f"cannot kill the {self.name}: it does not run; wait until it is started again")
        self._lives.pardon()
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # it has a session of its own: nobody else is in that group
        else:
            process.kill()
        process.wait()

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

    def pardon(self) -> None:
        """Forget the deaths up to now: the one that comes was wanted."""
        self._deaths = 0

    def may_begin_again(self, *, for_ever: bool = False) -> bool:
        """Return whether the time for another start has come.

        Raises PipelineError if it has died too often in a row, unless it is to be tried `for_ever`.
        """
        now = time.monotonic()
        if not self._again_at:
            self._deaths = 1 if now - self._began_at > LONG_LIFE_SECONDS else self._deaths + 1
            if self._deaths > MAX_DEATHS and not for_ever:
                raise PipelineError(f"the {self.name} has died {self._deaths} times in a row: see the logs, and start anew")
            self._again_at = now + min(0.5 * 2 ** (self._deaths - 1), MAX_PAUSE_SECONDS)
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


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
