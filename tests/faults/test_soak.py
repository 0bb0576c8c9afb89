"""Half an hour under `stocks run` with a seeded fault every 20 to 40 s: all is well in the end, and nothing has grown."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from runs import assert_equal
from whole_run import Run

from pipeline_lib.services import service_status, start_services
from pipeline_lib.stream import remove_checkpoints

RATE = 300.0  # ticks a second
SETTLED_SECONDS = 60.0  # what is there after so long is what later sizes are held against

# The topic's own data grow by retention, the tables by what is in it.
GROWS = ("kafka/data", "postgres")
# What was left over by processes that nobody could end in order.
LEFT_OVER = ("spark-", "blockmgr-", "liblz4-java", "artifacts-", "temporary-")


def kill_stream(run: Run) -> None:
    """Kill the Python of the stream."""
    run.child("pipeline_lib.cli", "stream").kill()


def kill_java(run: Run) -> None:
    """Kill the JVM of Spark."""
    run.child("org.apache.spark.deploy.SparkSubmit").kill()


def kill_feed(run: Run) -> None:
    """Kill the feed."""
    run.child("pipeline_lib.cli", "produce").kill()


def kill_broker(run: Run) -> None:
    """Kill the broker."""
    run.service("kafka").kill()


def kill_postgres(run: Run) -> None:
    """Kill PostgreSQL."""
    run.service("postgres").kill()


def remove_checkpoint(run: Run) -> None:
    """Remove the checkpoints under the running query."""
    remove_checkpoints(run.settings.checkpoint_folder)


FAULTS = (kill_stream, kill_java, kill_feed, kill_broker, kill_postgres, remove_checkpoint)


def try_fault(run: Run, fault: Callable[[Run], None]) -> str:
    """Make the fault, and return its name; what is down already cannot be killed."""
    try:
        fault(run)
    except (ValueError, AssertionError, psutil.NoSuchProcess, FileNotFoundError):
        return f"({fault.__name__})"
    return fault.__name__


def sizes_of(home: Path) -> dict[str, int]:
    """Return the bytes of each folder of PIPELINE_HOME, without what is meant to grow."""
    sizes: dict[str, int] = {}
    for parent, _, names in os.walk(home):
        inside = Path(parent).relative_to(home).as_posix()
        if not inside.startswith(GROWS):
            for name in names:
                try:
                    size = (Path(parent) / name).stat().st_size
                except FileNotFoundError:
                    continue
                top = inside.split("/")[0]
                sizes[top] = sizes.get(top, 0) + size
    return sizes


def left_over() -> set[str]:
    """Return what Java processes have left in the system's temporary folder."""
    return {each.name for each in Path(tempfile.gettempdir()).iterdir() if each.name.startswith(LEFT_OVER)}


def memory_of(run: Run) -> dict[str, int]:
    """Return the megabytes of each kind of process."""
    kinds = {
        "stream": "pipeline_lib.cli stream",
        "feed": "pipeline_lib.cli produce",
        "java": "deploy.SparkSubmit",
        "page": "pipeline_lib.web",
    }
    found = {"run": psutil.Process(run.process.pid).memory_info().rss >> 20}
    for child in psutil.Process(run.process.pid).children(recursive=True):
        try:
            command, rss = " ".join(child.cmdline()), child.memory_info().rss >> 20
        except psutil.NoSuchProcess:
            continue
        for name, words in kinds.items():
            if words in command:
                found[name] = max(found.get(name, 0), rss)
    for status in service_status(run.settings):
        found[status.name] = status.memory_mb or 0
    return found


@pytest.mark.repeats("soak with random faults", short=0)
def test_after_a_soak_with_random_faults_all_is_well_and_nothing_has_grown(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    minutes = request.config.getoption("--soak-minutes")
    dice, made, samples = random.Random(5), [], []
    before = left_over()
    run = Run(tmp_path, simulated_rate=RATE)
    home = run.settings.pipeline_home
    try:
        run.goes_on(300)
        began = time.monotonic()
        while time.monotonic() - began < minutes * 60:
            threading.Event().wait(dice.uniform(20, 40))
            assert run.process.poll() is None, run.log.read_text()
            made.append(try_fault(run, dice.choice(FAULTS)))
            if time.monotonic() - began > SETTLED_SECONDS:
                samples.append((time.monotonic() - began, memory_of(run), sizes_of(home)))
        run.goes_on(300)
        samples.append((time.monotonic() - began, memory_of(run), sizes_of(home)))
        family = psutil.Process(run.process.pid).children(recursive=True)
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(120) == 0, run.log.read_text()
        assert psutil.wait_procs(family, timeout=30)[1] == []
        assert {found.state for found in service_status(run.settings)} == {"stopped"}
        print(f"soak: {minutes:g} minutes, faults: {', '.join(made)}")
        for at, memory, sizes in (samples[0], samples[len(samples) // 2], samples[-1]):
            print(f"soak: after {at:.0f} s: memory {memory} MB, disk { ({name: size >> 10 for name, size in sizes.items()}) } kB")
        assert_equal(start_services(run.settings))
        assert left_over() <= before
        assert_level(samples)
    finally:
        run.close()


def assert_level(samples: list[tuple[float, dict[str, int], dict[str, int]]]) -> None:
    """Assert that the last third is not above the first by more than a process that lives varies."""
    third = max(1, len(samples) // 3)
    for place, unit in ((1, 150), (2, 40 << 20)):  # megabytes of a process, bytes of a folder: logs may grow to their bound
        for name in samples[-1][place]:
            first = max(sample[place].get(name, 0) for sample in samples[:third])
            last = max(sample[place].get(name, 0) for sample in samples[-third:])
            assert last <= first * 1.5 + unit, (name, first, last)
