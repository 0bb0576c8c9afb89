"""Services of one's own end with the process that asked for them, whatever its end, and are nobody else's meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from runs import assert_eventually

from pipeline_lib.config import Settings
from pipeline_lib.errors import AlreadyRunningError
from pipeline_lib.own_services import OwnServices
from pipeline_lib.services import remove_services, service_status
from pipeline_lib.supervise import stage_environment

HOLDER = """\
import sys
from pipeline_lib.config import Settings
from pipeline_lib.own_services import OwnServices
from pipeline_lib.services import start_services
own = OwnServices(Settings.load(), "own")
start_services(own.settings)
print("started", flush=True)
sys.stdin.read()
"""


def test_they_are_removed_when_their_holder_is_killed(tmp_path: Path) -> None:
    # Kafka's address is given, which spares the start of a broker; nothing here talks to it.
    settings = Settings.load(pipeline_home=tmp_path, kafka_bootstrap_servers="127.0.0.1:9")
    own = settings.replaced(pipeline_home=tmp_path / "own")
    try:
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER], env=stage_environment(settings), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == b"started\n"
            (server,) = [found for found in service_status(own) if found.name == "postgres"]
            assert server.pid is not None
            with pytest.raises(AlreadyRunningError, match="cannot use own: another notebook has it now"):
                OwnServices(settings, "own")
            holder.kill()
        assert_eventually(lambda: own.pipeline_home.exists() or psutil.pid_exists(server.pid), lambda left: not left)
    finally:
        remove_services(own)
