"""One process at a time: a lock on a file, which the operating system gives back when its holder dies.

Called by `jars` and by the services. It is not a lock between threads of one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import fasteners  # type: ignore[import-untyped]

from pipeline_lib.errors import AlreadyRunningError


@contextlib.contextmanager
def hold_lock(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of this file; wait for another holder up to ``seconds``.

    Raises AlreadyRunningError if the other one still holds it then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = fasteners.InterProcessLock(path)
    if not lock.acquire(timeout=seconds, delay=0.02, max_delay=0.1):
        if lock.lockfile is not None:
            lock.lockfile.close()  # fasteners leaves it open
        raise AlreadyRunningError(f"cannot lock {path}: another `stocks` command has held it for {seconds:.0f} s; wait for it, or end it")
    try:
        yield
    finally:
        lock.release()
