"""Where the calls of one key are written down, so that all processes of this user count the same ones, restarts included.

A file a key under the user's own folder of state, not under PIPELINE_HOME: two checkouts may use one key. Its name is a
salted hash of the key, cut short; the key is nowhere in it. A lock that the operating system gives back guards it, and it
is replaced as a whole, so a process killed at any instant leaves it as it was before or after a call. Called by
`rate_limit` alone, which knows what the numbers mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import fasteners  # type: ignore[import-untyped]
import msgspec
import platformdirs
from pydantic import SecretStr

from pipeline_lib.errors import SettingsError

# Only so that the hash is no other program's hash of the same key.
_SALT = b"stock-pipeline, calls of a Finnhub key\0"

LOCK_SECONDS = 5.0

# A lock on a file is the process's: threads of one process keep each other out by these.
_in_process: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)


class Spent(msgspec.Struct):
    """What is known of a key's calls. Times are epoch milliseconds.

    `calls` are those of the last minute; `limit` is what the server allows a minute, if it said so; `left` is how many
    more it allows until `left_until`; before `closed_until` it allows none.
    """

    calls: list[int] = []
    limit: int | None = None
    left: int = 0
    left_until: int = 0
    closed_until: int = 0


class CallLedger(Protocol):
    """Holds what is spent, for one at a time."""

    def open(self) -> contextlib.AbstractContextManager[Spent]:
        """Give out what is spent; what it was changed to is kept, unless an exception leaves the context."""


class MemoryLedger:
    """For one process, until it ends."""

    def __init__(self) -> None:
        self._spent = Spent()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open(self) -> Iterator[Spent]:
        """Give out what is spent."""
        with self._lock:
            yield self._spent


class FileLedger:
    """For every process that names the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SettingsError(
                f"cannot count the calls of the Finnhub key: {path.parent}: {error.strerror}; make it a folder that this user can write to"
            ) from None

    @contextlib.contextmanager
    def open(self) -> Iterator[Spent]:
        """Give out what is spent. Raises SettingsError if the file cannot be used."""
        with _in_process[self.path]:
            lock = fasteners.InterProcessLock(self.path.with_suffix(".lock"))
            try:
                if not lock.acquire(timeout=LOCK_SECONDS, delay=0.002, max_delay=0.02):
                    lock.lockfile.close()  # fasteners leaves it open
                    raise SettingsError(
                        f"cannot count the calls of the Finnhub key: another process has held {self.path.name} for {LOCK_SECONDS:g} s; "
                        "is one of them stopped in the middle? End it"
                    )
                try:
                    before = self._read()
                    spent = msgspec.json.decode(before, type=Spent) if before else Spent()
                    yield spent
                    after = msgspec.json.encode(spent)
                    if after != before:
                        self._write(after)
                finally:
                    lock.release()
            except OSError as error:
                raise SettingsError(
                    f"cannot count the calls of the Finnhub key: {error.filename or self.path}: {error.strerror}; "
                    "make it a file that this user can write to"
                ) from None

    def _read(self) -> bytes:
        """Return what is in the file; nothing if there is none, or if it is not what this program writes."""
        try:
            found = self.path.read_bytes()
            msgspec.json.decode(found, type=Spent)
        except (FileNotFoundError, msgspec.DecodeError):
            return b""
        return found

    def _write(self, text: bytes) -> None:
        unfinished = self.path.with_suffix(".part")  # one holder of the lock at a time, so one name
        unfinished.write_bytes(text)
        unfinished.replace(self.path)


def ledger_path(key: SecretStr) -> Path:
    """Return the file in which the calls of this key are counted on this machine, for this user."""
    name = hashlib.sha256(_SALT + key.get_secret_value().encode()).hexdigest()[:16]
    return platformdirs.user_state_path("stock-pipeline", appauthor=False) / "finnhub-calls" / f"{name}.json"
