"""From a tick's entry to its place in the table, live: the real feed process, the real stream, bars of a second.

A tick is stamped where it enters (`receipt_time`), and read back from the topic afterwards; when it was in the table is what
a reader saw, who is notified of each commit. So each tick has a figure of its own, and the parts of its way: to the broker,
to the beginning of the micro-batch that took it, to that one's commit, to the reader. Called by `python -m benchmarks live`.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd

from benchmarks.drain import spark_ms
from benchmarks.ground import own_database, own_topic
from benchmarks.machine import busy_percent
from benchmarks.programs import Program, module, stocks
from benchmarks.sight import Reader, Sighting
from benchmarks.verify import check_table
from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings

START_SECONDS = 120.0


class Entry(msgspec.Struct):
    """What is asked of a message here."""

    receipt_time: int


class Way(NamedTuple):
    """The ticks of the time that is measured: arrays of one length, times in epoch milliseconds."""

    received: np.ndarray
    appended: np.ndarray  # by the broker
    seen: np.ndarray
    committed: np.ndarray  # the stamp in the table; not a number for a loop, which has none


def measure(settings: Settings, rates: list[float], seconds: float, warm_up: float, repeats: int, alone: bool) -> list[dict[str, Any]]:
    """Return one row a run: the rate, and the latencies of the stream; unless it is alone, those of the plain loop too."""
    rows = []
    for rate in rates:
        for number in range(repeats):
            row = {"rate": rate, "measured_seconds": seconds, "busy_before_percent": busy_percent()}
            row |= run(settings.replaced(window="1 second", simulated_rate=rate), seconds, warm_up, alone)
            print(f"live: {rate:,.0f}/s, run {number + 1} of {repeats}: {words(row)}", flush=True)
            rows.append(row)
    return rows


def run(settings: Settings, seconds: float, warm_up: float, alone: bool) -> dict[str, Any]:
    """Return the figures of one live run; the loop follows the stream on the same feed."""
    with own_topic(settings) as topic, own_database(topic) as place, contextlib.ExitStack() as feeding:
        feed = feeding.enter_context(stocks(place, "produce", "--source", "simulated", "--until-eof"))
        row: dict[str, Any] = {"stream": of_stream(place, feed, seconds, warm_up)}
        if not alone:
            with own_database(topic) as other:
                row["loop"] = of_loop(other, feed, seconds / 2, warm_up / 4)
            row["stream_to_loop_p50"] = row["stream"]["p50_ms"] / row["loop"]["p50_ms"]
        feed.stop()
        row["verify_seconds"] = check_table(place).seconds
    return row


def of_stream(place: Settings, feed: Program, seconds: float, warm_up: float) -> dict[str, Any]:
    """Return what a reader of the stream's table saw in so many seconds, after a warm-up."""
    with Reader(pipeline.open_store(place).url) as reader, stocks(place, "stream", "--until-eof") as stream:
        began, cpu = look(place, reader, [stream, feed], seconds, warm_up)
        stream.stop()
        store = pipeline.open_store(place)
        progress = store.load_progress(100_000)
        store.close()
    way = follow(place, reader.sightings, began, seconds)
    return {**latencies(way, seconds), **cpu, **parts(way, progress), "peak_rss_mb": stream.peak_rss_mb}


def of_loop(place: Settings, feed: Program, seconds: float, warm_up: float) -> dict[str, Any]:
    """Return the same of the plain loop."""
    with Reader(pipeline.open_store(place).url, told=True) as reader, module(place, "loops", "bars", str(place.window_ms), "live") as loop:
        began, cpu = look(place, reader, [loop, feed], seconds, warm_up)
        return {**latencies(follow(place, reader.sightings, began, seconds), seconds), **cpu}


def look(place: Settings, reader: Reader, programs: list[Program], seconds: float, warm_up: float) -> tuple[float, dict[str, float]]:
    """Let everything run for the warm-up and so many seconds more; return when those began, and the cores that programs used."""
    servers, topic = pipeline.servers_of(place), place.kafka_topic
    topics.create_topic(servers, topic)
    reader.wait({}, START_SECONDS)
    reader.wait({part: found.latest for part, found in topics.read_offsets(servers, topic).items()}, START_SECONDS)
    let_run(programs, warm_up)
    began, used = time.time(), {program.name: program.cpu_seconds for program in programs}
    let_run(programs, seconds)
    cores = {f"cores of {name}": (program.cpu_seconds - used[name]) / seconds for name, program in zip(used, programs, strict=True)}
    # What entered last is with the broker a second later; that is to be seen, too.
    let_run(programs, 1.0)
    reader.wait({part: found.latest for part, found in topics.read_offsets(servers, topic).items()}, START_SECONDS)
    return began, cores


def let_run(programs: list[Program], seconds: float) -> None:
    """Return after so many seconds; ends the bench if a program ends meanwhile."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        threading.Event().wait(min(1.0, left))
        for program in programs:
            program.check()


def follow(place: Settings, sightings: list[Sighting], began: float, seconds: float) -> Way:
    """Return the way of every tick that entered in so many seconds from a time on."""
    servers, topic = pipeline.servers_of(place), place.kafka_topic
    first, last = 1_000 * began, 1_000 * (began + seconds)
    # The broker takes nothing before it enters, and all of it within a second.
    starts, ends = topics.find_offsets(servers, topic, int(first)), topics.find_offsets(servers, topic, int(last) + 1_000)
    at, committed = (np.array([getattr(each, name) or np.nan for each in sightings]) for name in ("at", "committed_at"))
    upto = {part: np.array([each.next_offsets.get(part, 0) for each in sightings]) for part in starts}
    decode, rows = msgspec.json.Decoder(Entry).decode, []
    for message in topics.read_messages(servers, topic, starts, ends):
        received = decode(message.value or b"").receipt_time
        if first <= received < last:
            sighting = int(np.searchsorted(upto[message.partition], message.offset, side="right"))
            rows.append((received, message.timestamp, 1_000 * at[sighting], 1_000 * committed[sighting]))
    if not rows:
        raise SystemExit("cannot measure: no tick entered in the time that was looked at")
    return Way(*np.array(rows, dtype=float).T)


def latencies(way: Way, seconds: float) -> dict[str, Any]:
    """Return how long ticks took from their entry to the reader, in milliseconds, and how many a second they were."""
    took = way.seen - way.received
    p50, p99 = np.percentile(took, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(took.max()), "ticks_per_s": len(took) / seconds}


def parts(way: Way, progress: pd.DataFrame) -> dict[str, Any]:
    """Return the medians of a tick's way by part, and of the micro-batches that took them by part, in milliseconds."""
    started, committed = (progress[name].astype("int64").to_numpy() / 1_000 for name in ("started_at", "committed_at"))
    batch = np.minimum(np.searchsorted(committed, way.committed - 0.5), len(committed) - 1)  # the one whose commit brought it
    used = np.unique(batch)
    taken = progress.iloc[used]
    spark = pd.DataFrame([spark_ms(each) for each in taken["spark_progress"]])
    return {
        "way_ms": {
            "entry to broker": float(np.median(way.appended - way.received)),
            "broker to micro-batch": float(np.median(started[batch] - way.appended)),
            "micro-batch to commit": float(np.median(way.committed - started[batch])),
            "commit to reader": float(np.median(way.seen - way.committed)),
        },
        "batch_ms": {
            "interval": float(np.nanmedian(np.diff(committed, prepend=np.nan)[used])),
            **{name: float(taken[name].median()) for name in ("input_rows", "aggregate_ms", "commit_ms")},
            **{f"spark {name}": float(spark[name].median()) for name in sorted(spark.columns)},
        },
    }


def words(row: dict[str, Any]) -> str:
    """Return a run in a line."""
    said = "; ".join(f"{name} p50 {row[name]['p50_ms']:.0f} p99 {row[name]['p99_ms']:.0f} ms" for name in ("stream", "loop") if name in row)
    return f"{said}; {json.dumps({name: round(value) for name, value in row['stream']['way_ms'].items()})}"
