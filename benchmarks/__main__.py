"""Measure produce, drain and verify by the real program, several times, and write benchmarks/results.{json,md}.

Every run has a topic and a database of its own, and a run whose table verify finds wrong is void. A figure of a shared
machine is worth its spread: ratios of one run say more than seconds of two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline_lib.config import Settings
from pipeline_lib.pipeline import Place
from pipeline_lib.supervise import stage_environment

HERE = Path(__file__).parent


def timed(settings: Settings, *arguments: str) -> tuple[float, str]:
    """Return the seconds from process start to process end of a command, and what it printed."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline_lib.cli", *arguments], env=stage_environment(settings), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"stocks {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return time.monotonic() - began, done.stdout


def run_once(ticks: int) -> dict[str, float]:
    """Return the figures of one run over so many simulated ticks."""
    with Place(Settings.load(source="simulated", simulated_rate=10_000), "bench") as place:
        _, said = timed(place.settings, "produce", "--ticks", str(ticks))
        found = re.search(r"([\d,]+) ticks/s", said)
        assert found is not None, said
        drain, _ = timed(place.settings, "stream", "--until-caught-up")
        verify, said = timed(place.settings, "verify", "--json")
        report = json.loads(said)
        if not report["equal"] or report["messages"] != ticks:
            raise SystemExit(f"this run is void: {report}")
        one_symbol, said = timed(place.settings, "verify", "--symbol", "AAPL", "--json")
        if not json.loads(said)["equal"]:
            raise SystemExit(f"this run is void: {said}")
    return {
        "produce_ticks_per_s": float(found[1].replace(",", "")),
        "drain_s": drain,
        "verify_s": verify,
        "verify_ticks_per_s": ticks / verify,
        "verify_one_symbol_s": one_symbol,
    }


def main() -> None:
    """Run, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--ticks", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runs = []
    for number in range(options.repeats):
        runs.append(run_once(options.ticks))
        print(f"run {number + 1} of {options.repeats}: {runs[-1]}", flush=True)
    figures = {
        name: {"min": min(values), "median": statistics.median(values), "max": max(values)} for name, values in _columns(runs).items()
    }
    programs = f"Python {platform.python_version()}, pyspark {version('pyspark')}"
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, {programs}"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    result: dict[str, Any] = {"ticks": options.ticks, "repeats": options.repeats, "machine": machine, "load": load, "figures": figures}
    (HERE / "results.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    lines = [
        f"`make bench`: {options.ticks:,} simulated ticks of about 330 bytes, {options.repeats} runs, every table equal to its topic.",
        f"{machine}; load average at the end {load}.",
        "",
        "| figure | min | median | max |",
        "|---|--:|--:|--:|",
        *(f"| {name} | {each['min']:,.1f} | {each['median']:,.1f} | {each['max']:,.1f} |" for name, each in figures.items()),
    ]
    (HERE / "results.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def _columns(runs: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [run[name] for run in runs] for name in runs[0]}


if __name__ == "__main__":
    main()
