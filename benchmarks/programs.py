"""A program as a process of its own, watched from its start to its end: time, memory, processor seconds.

It knows nothing of what the program does. A program ends at the end of its standard input, and so with the bench; leaving
the context ends it in any case, with all that it has started. Called by the parts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

import psutil

from pipeline_lib.config import Settings
from pipeline_lib.supervise import stage_environment

SAMPLE_SECONDS = 0.2
# Looking for children costs more than asking those that are known.
SAMPLES_A_FAMILY = 5
STOP_SECONDS = 90.0


class Ended(NamedTuple):
    """What a program took: seconds from its start to its end, its peak memory and processor time with its children's."""

    seconds: float
    peak_rss_mb: float
    cpu_seconds: float
    said: str


class Program:
    """One run of a program. ``began`` is by the monotonic clock, ``began_at`` in epoch seconds."""

    def __init__(self, command: list[str], environment: dict[str, str], name: str) -> None:
        self.name = name
        self._ended_at: float | None = None
        self.rss_mb: list[tuple[float, float]] = []  # (seconds since the start, memory), by sample
        self._cpu = dict[int, float]()
        self._done = threading.Event()
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the program
        self.began, self.began_at = time.monotonic(), time.time()
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=self._said, stderr=self._said, start_new_session=True
        )
        self._waiting = threading.Thread(target=self._wait, name=f"{name} waited for", daemon=True)
        self._sampling = threading.Thread(target=self._sample, name=f"{name} sampled", daemon=True)
        self._waiting.start()
        self._sampling.start()

    def _wait(self) -> None:
        self._process.wait()  # without a time-out, which would be looked at every 50 ms only
        self._ended_at = time.monotonic()
        self._done.set()

    def _sample(self) -> None:
        number, family = 0, list[psutil.Process]()
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
            root = psutil.Process(self._process.pid)
            while not self._done.wait(SAMPLE_SECONDS):
                if number % SAMPLES_A_FAMILY == 0:
                    family = [root, *root.children(recursive=True)]
                number += 1
                self.rss_mb.append((time.monotonic() - self.began, sum(map(self._ask, family)) / 2**20))

    def _ask(self, process: psutil.Process) -> int:
        try:
            with process.oneshot():
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                return int(process.memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    @property
    def said(self) -> str:
        """What it has printed up to now."""
        self._said.seek(0)
        return self._said.read().strip()

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds up to the last sample, its children's included."""
        return sum(self._cpu.values())

    @property
    def peak_rss_mb(self) -> float:
        """The most memory that it and its children had in one sample."""
        return max((size for _, size in self.rss_mb), default=0.0)

    def check(self) -> None:
        """End the bench if the program has ended though it should run."""
        if self._done.is_set():
            raise SystemExit(f"cannot measure: {self.name} has ended with {self._process.returncode}: {self.said}")

    def wait(self, seconds: float) -> Ended:
        """Return what it took, once it has ended by itself. Ends the bench if it fails, or takes longer than that."""
        if not self._done.wait(seconds):
            raise SystemExit(f"cannot measure: {self.name} has not ended after {seconds:,.0f} s: {self.said}")
        if self._process.returncode:
            raise SystemExit(f"cannot measure: {self.name} has ended with {self._process.returncode}: {self.said}")
        assert self._ended_at is not None
        return Ended(self._ended_at - self.began, self.peak_rss_mb, self.cpu_seconds, self.said)

    def stop(self) -> Ended:
        """End it in order, and return what it took."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.wait(STOP_SECONDS)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._waiting.join()
        self._sampling.join()
        self._said.close()


def stocks(settings: Settings, *arguments: str) -> Program:
    """Return `stocks` with these arguments, started with these settings."""
    return Program([sys.executable, "-m", "pipeline_lib.cli", *arguments], stage_environment(settings), f"stocks {arguments[0]}")


def module(settings: Settings, name: str, *arguments: str) -> Program:
    """Return a module of the bench, started with these settings."""
    return Program([sys.executable, "-m", f"benchmarks.{name}", *arguments], stage_environment(settings), name)


def end_with_parent() -> None:
    """End this process at the end of its standard input: for a module of the bench."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="until-eof", daemon=True).start()
