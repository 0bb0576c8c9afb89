"""From the start of `stocks stream` to its first committed micro-batch. Called by `python -m benchmarks start`."""

from __future__ import annotations

from typing import Any

from benchmarks.ground import Load, loaded_topic, own_database
from benchmarks.machine import busy_percent
from benchmarks.programs import stocks
from benchmarks.sight import Reader
from benchmarks.verify import check_table
from pipeline_lib import pipeline
from pipeline_lib.config import Settings

LOAD = Load(1_000)
MOST_SECONDS = 180


def measure(settings: Settings, repeats: int) -> list[dict[str, Any]]:
    """Return one row a start into an empty database, with a thousand ticks in the topic."""
    rows = []
    with loaded_topic(settings, LOAD) as loaded:
        for number in range(repeats):
            rows.append({"busy_before_percent": busy_percent(), **run(loaded.settings)})
            print(f"start: run {number + 1} of {repeats}: first micro-batch after {rows[-1]['seconds']:.1f} s", flush=True)
    return rows


def run(settings: Settings) -> dict[str, Any]:
    """Return the figures of one start."""
    with own_database(settings) as place:
        with Reader(pipeline.open_store(place).url) as reader, stocks(place, "stream", "--until-eof") as stream:
            first = reader.wait({}, MOST_SECONDS)
            row = {"seconds": first.at - stream.began_at, "cpu_seconds": stream.cpu_seconds, "rss_mb": stream.peak_rss_mb}
            stream.stop()
        check_table(place)
    return row
