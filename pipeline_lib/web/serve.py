"""Start and stop the server of the page. Called by the command line and the browser tests.

Voilà's options stand in `voila.json`. Names that are not the loopback's are refused (allow_remote_access), so that no
stranger's page reaches this one through a name of its own. A kernel is ready for the next visitor (preheat_kernel). A page that
closes gives its kernel back; where it could not, because its browser was killed, its kernel falls silent (page.py) and is
culled after cull_idle_timeout.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pipeline_lib.config import Settings
from pipeline_lib.errors import ServiceError, SettingsError

WEB = Path(__file__).parent
HOST = "127.0.0.1"

START_SECONDS = 60.0
STOP_SECONDS = 15.0


class DashboardServer:
    """A running page. ``url`` is its address."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self._process, self.url, self.log = process, url, log

    @property
    def is_running(self) -> bool:
        """True while the server lives."""
        return self._process.poll() is None

    def wait(self) -> int:
        """Wait for the server to end; return its exit status."""
        return self._process.wait()

    def stop(self) -> None:
        """Stop the server and the kernels of all its visitors."""
        if self._process.stdin:
            self._process.stdin.close()  # see __main__.py
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve_dashboard(settings: Settings, report: Callable[[str], None] | None = None) -> DashboardServer:
    """Serve the dashboard on the loopback at ``settings.dashboard_port``; return when it answers.

    Raises SettingsError if there is no database to show or the port is taken, ServiceError if the server does not start.
    """
    if settings.database_url is None:
        raise SettingsError("cannot serve the dashboard: no database is known; start the services with `stocks up`, or set DATABASE_URL")
    check_port(settings.dashboard_port)
    log_path = settings.pipeline_home / "dashboard" / "voila.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    if report:
        report("starting the dashboard")
    log_path.unlink(missing_ok=True)
    with log_path.open("ab") as log:  # appended to, so that it can be cut while it is written
        process = _start_voila(settings, log)
    server = DashboardServer(process, f"http://{HOST}:{settings.dashboard_port}/", log_path)
    try:
        _wait_until_it_answers(server)
    except BaseException:
        server.stop()
        raise
    return server


def check_port(port: int) -> None:
    """Raise SettingsError if the port of the page is taken."""
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SettingsError(
                f"cannot serve the dashboard: port {port} is not free ({error.strerror}); set DASHBOARD_PORT to another"
            ) from None


def _start_voila(settings: Settings, log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline_lib.web", "dashboard.ipynb", f"--Voila.port={settings.dashboard_port}"],
        cwd=WEB,  # where voila.json is
        env=_environment(settings),
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C in the terminal is for the one who started us, who stops us in order
    )


def _environment(settings: Settings) -> dict[str, str]:
    """Return the child's environment: what the page needs of the settings, and not the key."""
    environment = {name: value for name, value in os.environ.items() if name != "FINNHUB_API_KEY"}
    assert settings.database_url is not None
    environment |= {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "KAFKA_TOPIC": settings.kafka_topic,
        "SYMBOLS": ",".join(settings.symbols),
        "WINDOW": settings.window,
        "PIPELINE_HOME": str(settings.pipeline_home.absolute()),
    }
    environment["TMPDIR"] = _fresh_temporary_folder(settings)
    own = [str(WEB / "share"), environment.get("JUPYTER_PATH", "")]
    environment["JUPYTER_PATH"] = os.pathsep.join(path for path in own if path)
    return environment


def _fresh_temporary_folder(settings: Settings) -> str:
    """Return an empty folder for the files of the kernels, which a killed server leaves behind."""
    folder = (settings.pipeline_home / "dashboard" / "tmp").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return str(folder)


def _wait_until_it_answers(server: DashboardServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if not server.is_running:
            raise ServiceError(f"cannot serve the dashboard: Voilà ended with {server.wait()}: {_last_line(server.log)}; see {server.log}")
        try:
            # A file, not the page: asking for the page would take a kernel.
            with urllib.request.urlopen(f"{server.url}voila/static/voila.js", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServiceError(f"cannot serve the dashboard: Voilà did not answer within {START_SECONDS:.0f} s; see {server.log}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
