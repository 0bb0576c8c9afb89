"""Services in a folder of their own, stopped and removed when this process ends, however it ends.

A kernel can be killed, and what it started would go on for ever. So a small process waits for the end of its standard
input, which comes with ours, and then removes the folder with all that runs in it. Called by the drill of notebook 06.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from pipeline_lib.config import Settings
from pipeline_lib.errors import AlreadyRunningError, ServiceError
from pipeline_lib.services import remove_services
from pipeline_lib.services.locks import hold_lock
from pipeline_lib.supervise import stage_environment

REMOVE_SECONDS = 90.0
READY, TAKEN = "ready", "taken"


class OwnServices:
    """A folder `name` below PIPELINE_HOME, nobody else's while this lives; ``settings`` point there. Nothing is started in it yet.

    Raises AlreadyRunningError if another process has it.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings.replaced(pipeline_home=settings.pipeline_home / name)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline_lib.own_services"],
            env=stage_environment(self.settings, with_key=False),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # neither Ctrl-C nor an interrupted kernel is its end
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != READY:
            self.close()
        if said == TAKEN:
            raise AlreadyRunningError(f"cannot use {name}: another notebook has it now; run the last cells of that one, and try again")
        if said != READY:
            raise ServiceError(f"cannot use {name}: what is left there cannot be removed; end what runs there, and delete the folder")

    def close(self) -> None:
        """Stop and remove what runs there."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(REMOVE_SECONDS)


def main() -> None:
    """Hold the folder of the settings until standard input ends; then remove what is there."""
    settings = Settings.load()
    home: Path = settings.pipeline_home
    try:
        with hold_lock(home / "own.lock", 0):
            remove_services(settings)  # what was left when the one before us was killed itself
            print(READY, flush=True)
            sys.stdin.read()
            remove_services(settings)
            shutil.rmtree(home, ignore_errors=True)
    except AlreadyRunningError:
        print(TAKEN, flush=True)


if __name__ == "__main__":
    main()
