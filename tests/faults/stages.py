"""Stages as processes of their own, as a person starts them, and ways to end them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from runs import assert_eventually

from pipeline_lib.config import Settings
from pipeline_lib.supervise import stage_environment

KILLED_STREAM = Path(__file__).with_name("killed_stream.py")

# A stream that lives for seconds need not be compiled for hours: half the start, and nothing else differs.
QUICK_JAVA = {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"}


@contextmanager
def stage(settings: Settings, *arguments: str, program: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a stage of the command line, or a program, as a process of its own; whatever is left of it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, *(["-m", "pipeline_lib.cli"] if program is None else [str(program)]), *arguments],
        env={**stage_environment(settings), **QUICK_JAVA},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the JVM too, where Python is gone already
        process.communicate()


def java_of(process: subprocess.Popen[str]) -> psutil.Process:
    """Return the JVM of a stream's Spark, as soon as there is one."""

    def is_java(child: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):  # a child that has ended and is not waited for yet hides no other
            return "org.apache.spark.deploy.SparkSubmit" in child.cmdline()
        return False

    def found() -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in psutil.Process(process.pid).children(recursive=True) if is_java(child)]
        return []

    return assert_eventually(found, bool)[0]


def catch_up(settings: Settings) -> str:
    """Run the plain `stocks stream` until it has read what is in the topic; return what it said."""
    with stage(settings, "stream", "--until-caught-up") as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said
