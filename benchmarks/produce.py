"""How fast `stocks produce` publishes a tape, idempotent and acknowledged by all. Called by `python -m benchmarks produce`."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ground import Load, own_topic
from benchmarks.load import share_of
from benchmarks.machine import busy_percent
from benchmarks.programs import stocks
from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.sources.tape import write_tape

MOST_SECONDS = 600
TAPES = ("parquet", "jsonl")


def measure(settings: Settings, load: Load, repeats: int) -> list[dict[str, Any]]:
    """Return one row a run: the kind of tape, the ticks a second that the command itself tells, and what the whole command took."""
    rows = []
    with tempfile.TemporaryDirectory(dir=settings.pipeline_home) as folder:
        for kind in TAPES:
            tape = Path(folder) / f"tape.{kind}"
            write_tape(share_of(load, 0, 1, settings.symbols), tape)
            for number in range(repeats):
                rows.append({"tape": kind, "ticks": load.ticks, "busy_before_percent": busy_percent(), **run(settings, tape, load.ticks)})
                said = f"{rows[-1]['ticks_per_s']:,.0f} ticks/s, {rows[-1]['cpu_us_a_tick']:.0f} µs of processor a tick"
                print(f"produce: {kind}, run {number + 1} of {repeats}: {said}", flush=True)
            tape.unlink()
    return rows


def run(settings: Settings, tape: Path, ticks: int) -> dict[str, Any]:
    """Return the figures of publishing the tape into an empty topic. Ends the bench if not every tick is there."""
    with own_topic(settings) as place:
        with stocks(place, "produce", "--tape", str(tape), "--speed", "max") as produce:
            ended = produce.wait(MOST_SECONDS)
        ranges = topics.read_offsets(pipeline.servers_of(place), place.kafka_topic)
    there = sum(found.latest - found.earliest for found in ranges.values())
    told = re.search(r"([\d,]+) ticks/s$", ended.said, re.MULTILINE)
    if there != ticks or told is None:
        raise SystemExit(f"this run is void: {there:,} of {ticks:,} ticks are in the topic; {ended.said}")
    return {
        "ticks_per_s": float(told[1].replace(",", "")),
        "seconds": ended.seconds,
        "cpu_us_a_tick": 1e6 * ended.cpu_seconds / ticks,
        "peak_rss_mb": ended.peak_rss_mb,
    }
