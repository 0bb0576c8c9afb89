"""A process that outlives the command that starts it, and is found again by its number and its time of birth.

It knows nothing about what the process does. What is remembered of a service is one :class:`State` in its folder.
Called by `kafka` and `postgres`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from pipeline_lib.errors import ServiceError

# What a service is given of the environment: nothing of ours (the key!), and nothing that would change what it does.
INHERITED = ("PATH", "HOME", "TMPDIR", "TMP", "TEMP", "LD_LIBRARY_PATH", "USERPROFILE", "SYSTEMROOT", "SystemRoot")

# Below the ports that Linux (32768 and up), macOS and Windows (49152 and up) give to outgoing connections: a remembered
# port is then not lost to some program's connection while the service is down.
PORTS = range(20_000, 30_000)

PORT_SECONDS = 3  # a guess; a killed JVM needs some tenths of a second to go

START_BYTES = 32 << 20  # a segment of PostgreSQL's log has 16 MB, an index of Kafka's 10
LOG_BYTES = 5_000_000  # a longer log is put aside as .1

# A process forgets a child that nobody holds, and Python warns about it. Ours are meant to go on alone.
_children: dict[int, subprocess.Popen[bytes]] = {}


class Born(NamedTuple):
    """One process of this machine, for good: its number, and the moment of its birth in seconds since the epoch."""

    pid: int
    created: float


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a service between two commands. ``born`` is None after it was stopped."""

    born: Born | None
    ports: dict[str, int]
    version: str
    data: str  # the folder of its data


class User(NamedTuple):
    """The user of the operating system that a process runs as."""

    uid: int
    gid: int


class Program(NamedTuple):
    """What is to be run: in which folder, writing to which log, as whom (None: as we are), with what more environment."""

    command: Sequence[str]
    folder: Path
    log: Path
    user: User | None = None
    environment: dict[str, str] = {}  # noqa: RUF012  never written to


def read_state(folder: Path) -> State | None:
    """Return what is remembered of the service in this folder, None if it was never started.

    Raises ServiceError if the file is there and holds something else.
    """
    try:
        return msgspec.json.decode((folder / "state.json").read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ServiceError(f"cannot read {folder / 'state.json'}: {error}; delete the file, and the service is started anew") from error


def write_state(folder: Path, state: State) -> None:
    """Remember the state; a reader sees the old one or the new one."""
    fresh = folder / f"state.json.{os.getpid()}"
    fresh.write_bytes(msgspec.json.encode(state))
    fresh.replace(folder / "state.json")


def spawn(program: Program) -> Born:
    """Start the program in a session of its own, where no Ctrl-C of a terminal or notebook reaches it, and return it.

    Raises ServiceError if the operating system refuses.
    """
    bound_log(program.log)
    environment = {**service_environment(), **program.environment}
    try:
        with program.log.open("ab") as log:
            child = subprocess.Popen(
                program.command,
                cwd=program.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0),
                **demotion(program.user),
            )
    except OSError as error:
        raise ServiceError(f"cannot start {program.command[0]}: {error.strerror or error}") from error
    _children[child.pid] = child
    try:
        return Born(child.pid, psutil.Process(child.pid).create_time())
    except psutil.NoSuchProcess:
        return Born(child.pid, time.time())  # dead already; whoever waits for it will see that


def bound_log(log: Path) -> None:
    """Put a log that has grown long aside as .1, under the process too that appends to it.

    It is copied and cut to nothing, since its writer holds the file itself; the little that it writes between the two is lost.
    """
    if log.is_file() and log.stat().st_size > LOG_BYTES:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def service_environment() -> dict[str, str]:
    """Return the environment that a service, or a tool of it, is run with: the same on every machine."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    # Without a UTF-8 locale Java cannot open a file whose path is not ASCII.
    return inherited if os.name == "nt" else {**inherited, "LC_ALL": "C.UTF-8"}


def demotion(user: User | None) -> dict[str, Any]:
    """Return the arguments that make subprocess run something as this user, and with nothing of root's."""
    if user is None:
        return {}
    return {"user": user.uid, "group": user.gid, "extra_groups": [], "umask": 0o077}


def find_process(born: Born | None) -> psutil.Process | None:
    """Return the process itself if it still runs; None if it is gone, or if its number belongs to another one now."""
    if born is None:
        return None
    child = _children.get(born.pid)
    if child is not None and child.poll() is not None:
        _children.pop(born.pid, None)  # another thread may have been faster
    try:
        process = psutil.Process(born.pid)
        # psutil derives the time of birth from the clock, which may have been put right by a little since.
        if abs(process.create_time() - born.created) > 1:
            return None
        # A zombie has ended, unless it has other threads: a dying JVM is in this state while it still holds its ports.
        if process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1 and born.pid not in _children:
            return None
    except psutil.NoSuchProcess:
        return None
    return process


def wait_until_reaped(born: Born, seconds: float) -> bool:
    """Return whether the ended process has left the table of processes within that time; a running one is not waited for."""
    deadline = time.monotonic() + seconds
    while find_process(born) is None and psutil.pid_exists(born.pid) and time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(born.pid).status() != psutil.STATUS_ZOMBIE:
                return True  # its number belongs to another one now
        time.sleep(0.05)
    return not psutil.pid_exists(born.pid)


def stop(born: Born, signals: Sequence[int] = (signal.SIGTERM,), seconds: float = 20) -> None:
    """End the process: each signal in turn, with so much time for each, and SIGKILL at last. None but this one is hit.

    Raises ServiceError if it is there even after that.
    """
    process = find_process(born)
    if process is None:
        return
    for number in (*signals, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended in between, which is what we want
            process.send_signal(number)
        if _is_gone_within(born, seconds):
            return
    raise ServiceError(f"cannot stop the process {born.pid}: it is there after SIGKILL; it waits for the disk or the network, look at `ps`")


def _is_gone_within(born: Born, seconds: float) -> bool:
    """Return whether the process ends in time. One that its parent has not asked about yet (a zombie) has ended."""
    deadline = time.monotonic() + seconds
    while (process := find_process(born)) is not None:
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(0.05)
    return True


def wait_until(ready: Callable[[], bool], born: Born, seconds: float) -> bool:
    """Return whether the process came to be ready: False as soon as it is dead, or when the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process = find_process(born)
        if process is None:
            return False
        if ready():
            return True
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(0.05)
    return False


def choose_ports(names: Sequence[str], remembered: dict[str, int], report: Callable[[str], None]) -> dict[str, int]:
    """Return a free port of the loopback for each name: the remembered one, or another and a word about it."""
    chosen: dict[str, int] = {}
    for name in names:
        port = remembered.get(name)
        if port is not None and _becomes_free(port):
            chosen[name] = port
            continue
        candidates = random.sample(PORTS, k=200)  # at random, so that two services that start at once do not meet
        free = next((candidate for candidate in candidates if candidate not in chosen.values() and is_free(candidate)), None)
        if free is None:
            raise ServiceError(f"cannot find a free port for {name}: 200 between {PORTS.start} and {PORTS.stop - 1} are taken")
        if port is not None:
            report(f"port {port} is taken by another program: {name} uses {free} from now on")
        chosen[name] = free
    return chosen


def _becomes_free(port: int) -> bool:
    """Return whether the port is free, or becomes so: a process that was killed holds it until it is all gone."""
    deadline = time.monotonic() + PORT_SECONDS
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of the loopback now."""
    with socket.socket() as candidate:
        if os.name == "posix":  # as servers do: a connection that is closed and only remembered does not count
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def full_disk(data: Path) -> str | None:
    """Return the words for a disk without the room that a server needs to start; Java's own speak of a fault of memory."""
    free = shutil.disk_usage(data).free
    return f"the disk of {data} is full, {free >> 20} MB are left; free some room" if free < START_BYTES else None


def log_size(log: Path) -> int:
    """Return how long the log is now, 0 if there is none: what comes after it belongs to the next start."""
    return log.stat().st_size if log.is_file() else 0


def telling_line(log: Path, words: Sequence[str], since: int = 0) -> str:
    """Return the last line, after so many bytes of the log, that holds one of the words; else its last line."""
    if not log.is_file():
        return f"there is no {log.name}"
    with log.open("rb") as file:
        file.seek(since if since <= log_size(log) else 0)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()[-300:] if line.strip()]
    telling = [line for line in lines if any(word in line for word in words)]
    return (telling or lines or [f"{log.name} says nothing"])[-1][:300]
