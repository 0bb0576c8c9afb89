"""What can be said of a service without touching it. Called by `services` and, through it, `stocks status`."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from pipeline_lib.services import process
from pipeline_lib.services.process import State


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service: ``state`` is "died" if it runs no more and nobody stopped it. No password is in ``address``."""

    name: str
    state: Literal["running", "stopped", "died", "external"]
    address: str | None = None
    pid: int | None = None
    since: dt.datetime | None = None
    version: str | None = None
    log: str | None = None
    memory_mb: int | None = None


def local_status(name: str, log: Path, state: State | None, address: str | None) -> ServiceStatus:
    """Return the status of a service that is ours to run, from what is remembered of it."""
    if state is None or state.born is None:
        return ServiceStatus(name=name, state="stopped", version=state.version if state else None, log=str(log))
    running = process.find_process(state.born)
    if running is None:
        return ServiceStatus(name=name, state="died", version=state.version, log=str(log))
    return ServiceStatus(
        name=name,
        state="running",
        address=address,
        pid=state.born.pid,
        since=dt.datetime.fromtimestamp(state.born.created, dt.UTC),
        version=state.version,
        log=str(log),
        memory_mb=_memory_mb(running),
    )


def _memory_mb(running: psutil.Process) -> int | None:
    """Return the memory of the process and its children; pages that they share are counted once where that is known."""
    total = 0
    try:
        for each in (running, *running.children(recursive=True)):
            try:
                memory = each.memory_full_info()
                total += getattr(memory, "pss", memory.uss)
            except psutil.AccessDenied:
                total += each.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return None
    return round(total / 1e6)
