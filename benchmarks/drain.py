"""A topic that was loaded before, drained into an empty database: the stream beside the floor and a plain loop.

Every run of the stream is verified, and the loop's bars are held against the stream's: a wrong table voids the run. Called by
`python -m benchmarks drain`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from benchmarks.ground import Load, Loaded, loaded_topic, own_database
from benchmarks.machine import busy_percent
from benchmarks.programs import Ended, module, stocks
from benchmarks.sight import Reader
from benchmarks.verify import check_table
from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.store import Store

MOST_SECONDS = 900

_BARS = "select symbol, window_start, tick_count, open, high, low, close, volume, vwap from {} order by symbol, window_start"


def measure(settings: Settings, loads: list[Load], repeats: int, alone: bool) -> list[dict[str, Any]]:
    """Return one row a run: the load, what the stream took, and unless it is alone what the floor and the loop took."""
    rows = []
    for load in loads:
        print(f"drain: loading {load}", flush=True)
        with loaded_topic(settings, load) as loaded:
            for number in range(repeats):
                row = {**load._asdict(), "bytes": loaded.bytes, "busy_before_percent": busy_percent(), **run(loaded, alone)}
                print(f"drain: {load}, run {number + 1} of {repeats}: {words(row)}", flush=True)
                rows.append(row)
    return rows


def run(loaded: Loaded, alone: bool) -> dict[str, Any]:
    """Return the figures of one drain."""
    if alone:
        with own_database(loaded.settings) as place:
            return {"stream": drain(place, loaded)}
    row: dict[str, Any] = {"floor": loop(loaded.settings, loaded, "floor")}
    with own_database(loaded.settings) as place:
        row["stream"] = drain(place, loaded)
        with own_database(loaded.settings) as other:
            row["loop"] = loop(other, loaded, "bars", str(place.window_ms))
            hold_against(pipeline.open_store(place), pipeline.open_store(other))
    row["stream_to_floor"] = row["stream"]["seconds"] / row["floor"]["seconds"]
    row["stream_to_loop"] = row["stream"]["seconds"] / row["loop"]["seconds"]
    return row


def drain(place: Settings, loaded: Loaded) -> dict[str, Any]:
    """Return what `stocks stream` took, by phase, and verify what it wrote."""
    ranges = topics.read_offsets(pipeline.servers_of(place), place.kafka_topic)
    ends = {part: found.latest for part, found in ranges.items()}
    url = pipeline.open_store(place).url
    with Reader(url) as reader, stocks(place, "stream", "--until-caught-up") as stream:
        ended = stream.wait(MOST_SECONDS)
        last = reader.wait(ends, 10)
        first, began = reader.sightings[0], stream.began_at
    rows_after_first = sum(ends.values()) - sum(first.next_offsets.values())
    running = last.at - first.at
    return {
        **figures(ended, loaded),
        "first_rows_seconds": first.at - began,
        "last_row_seconds": last.at - began,
        # Of one micro-batch alone nothing can be said of how it goes on.
        "running_ticks_per_s": rows_after_first / running if rows_after_first else None,
        "peak_rss_mb": ended.peak_rss_mb,
        "batches": batches(pipeline.open_store(place)),
        "verify_seconds": check_table(place, loaded.load.ticks).seconds,
    }


def figures(ended: Ended, loaded: Loaded, cpu_seconds: float | None = None) -> dict[str, Any]:
    """Return the figures that the stream and the loops share; wall seconds are from process start to process end."""
    return {
        "seconds": ended.seconds,
        "cpu_seconds": ended.cpu_seconds if cpu_seconds is None else cpu_seconds,
        "ticks_per_s": loaded.load.ticks / ended.seconds,
        "mb_per_s": loaded.bytes / 1e6 / ended.seconds,
    }


def loop(settings: Settings, loaded: Loaded, *arguments: str) -> dict[str, Any]:
    """Return what a loop took."""
    with module(settings, "loops", *arguments) as program:
        ended = program.wait(MOST_SECONDS)
    said = json.loads(ended.said)
    if said["messages"] != loaded.load.ticks:
        raise SystemExit(f"this run is void: the loop has read {said['messages']:,} of {loaded.load.ticks:,} messages")
    return figures(ended, loaded, said["cpu_seconds"])


def batches(store: Store) -> list[dict[str, Any]]:
    """Return of each micro-batch what it read, and how long its parts took."""
    rows = []
    for each in store.load_progress(10_000).to_dict("records"):
        row = {name: int(each[name]) for name in ("input_rows", "bars", "aggregate_ms", "commit_ms")}
        rows.append({**row, "spark_ms": spark_ms(each["spark_progress"])})
    store.close()
    return rows


def spark_ms(progress: Any) -> dict[str, int]:
    """Return Spark's own account of a micro-batch: milliseconds by part; empty where it was not kept."""
    return dict((json.loads(progress) if isinstance(progress, str) else progress or {}).get("durationMs", {}))


def hold_against(stream: Store, other: Store) -> None:
    """End the bench unless the loop's bars are the stream's."""
    ours, theirs = (
        store.query(_BARS.format(table)).to_dict("split")["data"] for store, table in ((stream, "stock_aggregates"), (other, "loop_bars"))
    )
    stream.close()
    other.close()
    for mine, its in zip(ours, theirs, strict=True):
        exact = mine[:7] == its[:7]
        if not exact or not all(a == b or math.isclose(a, b, rel_tol=1e-9) for a, b in zip(mine[7:], its[7:], strict=True)):
            if all(x != x for x in (*mine[8:], *its[8:])) and exact:
                continue  # no volume, no VWAP: not a number on both sides
            raise SystemExit(f"this run is void: the stream has {mine}, the loop has {its}")


def words(row: dict[str, Any]) -> str:
    """Return a run in a line."""
    stream = row["stream"]
    said = f"stream {stream['seconds']:.1f} s ({stream['cpu_seconds']:.1f} s of processor, {stream['peak_rss_mb']:,.0f} MB)"
    for name in ("floor", "loop"):
        if name in row:
            said += f", {name} {row[name]['seconds']:.1f} s ({row[name]['cpu_seconds']:.1f}), {row[f'stream_to_{name}']:.2f} of it"
    return said
