"""How fast `stocks produce` publishes a tape, idempotent and acknowledged by all, beside kafka-python's bare `send`.

`python -m benchmarks.produce TAPE` is that: the tape's messages, encoded beforehand, each given to `send` as one would, with as
many futures unacknowledged at most. It reads, checks and recovers nothing. Called by `python -m benchmarks produce`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from kafka import KafkaProducer

from benchmarks.ground import Load, own_topic
from benchmarks.load import share_of
from benchmarks.machine import busy_percent
from benchmarks.programs import end_with_parent, module, stocks
from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.producer import LINGER_MS, MAX_IN_FLIGHT
from pipeline_lib.records import decode_tick, encode_key, encode_tick
from pipeline_lib.sources.tape import Tape, write_tape

MOST_SECONDS = 600
TAPES = ("parquet", "jsonl")


def measure(settings: Settings, load: Load, repeats: int, alone: bool = False) -> list[dict[str, Any]]:
    """Return one row a run: the kind of tape, the ticks a second that the command itself tells, and what the whole command took."""
    rows = []
    with tempfile.TemporaryDirectory(dir=settings.pipeline_home) as folder:
        for kind in TAPES:
            tape = Path(folder) / f"tape.{kind}"
            write_tape(share_of(load, 0, 1, settings.symbols), tape)
            size = sum(len(encode_tick(tick)) for tick in Tape(tape)) / load.ticks
            for number in range(repeats):
                row = {
                    "tape": kind,
                    "ticks": load.ticks,
                    "bytes_a_tick": size,
                    "busy_before_percent": busy_percent(),
                    **run(settings, tape),
                }
                if not alone:
                    row["bare_ticks_per_s"], row["bare_cpu_us_a_tick"] = run_bare(settings, tape)
                    row["of_bare"] = row["ticks_per_s"] / row["bare_ticks_per_s"]
                rows.append(row)
                said = f"{row['ticks_per_s']:,.0f} ticks/s, {row['cpu_us_a_tick']:.1f} µs of processor a tick"
                print(f"produce: {kind}, run {number + 1} of {repeats}: {said}", flush=True)
            tape.unlink()
    return rows


def run(settings: Settings, tape: Path) -> dict[str, Any]:
    """Return the figures of publishing the tape into an empty topic. Ends the bench if not every tick is there once and in order."""
    with own_topic(settings) as place:
        with stocks(place, "produce", "--tape", str(tape), "--speed", "max") as produce:
            ended = produce.wait(MOST_SECONDS)
        ticks = check_topic(place, tape)
    told = re.search(r"([\d,]+) ticks/s$", ended.said, re.MULTILINE)
    if told is None:
        raise SystemExit(f"this run is void: {ended.said}")
    return {
        "ticks_per_s": float(told[1].replace(",", "")),
        "seconds": ended.seconds,
        "cpu_us_a_tick": 1e6 * ended.cpu_seconds / ticks,
        "peak_rss_mb": ended.peak_rss_mb,
    }


def check_topic(place: Settings, tape: Path) -> int:
    """Return how many ticks the topic holds. Ends the bench if a partition has other ids than the tape, or in another order."""
    servers = pipeline.servers_of(place)
    ranges = topics.read_offsets(servers, place.kafka_topic)
    wanted: dict[int, list[str]] = {number: [] for number in ranges}
    for tick in Tape(tape):
        wanted[topics.partition_of(encode_key(tick.symbol), len(ranges))].append(tick.id)
    for number, found in ranges.items():
        messages = topics.read_messages(servers, place.kafka_topic, {number: found.earliest}, {number: found.latest})
        if [decode_tick(message.value, message.key).id for message in messages] != wanted[number]:
            raise SystemExit(f"this run is void: partition {number} does not hold the tape's ticks, each once and in order")
    return sum(map(len, wanted.values()))


def run_bare(settings: Settings, tape: Path) -> tuple[float, float]:
    """Return the ticks a second of the bare client, and its microseconds of processor a tick."""
    with own_topic(settings) as place, module(place, "produce", str(tape)) as bare:
        said = json.loads(bare.wait(MOST_SECONDS).said.splitlines()[-1])
        check_topic(place, tape)
    return said["ticks_per_s"], said["cpu_us_a_tick"]


def main() -> None:
    """Send the tape's messages by the bare client, and print how fast that was."""
    end_with_parent()
    settings = Settings.load()
    messages = [(encode_key(tick.symbol), encode_tick(tick)) for tick in Tape(sys.argv[1])]
    client = KafkaProducer(
        bootstrap_servers=pipeline.servers_of(settings), enable_idempotence=True, acks="all", linger_ms=LINGER_MS, batch_size=128 * 1024
    )
    began, used, unacknowledged = time.monotonic(), time.process_time(), deque[Any]()
    for key, value in messages:
        unacknowledged.append(client.send(settings.kafka_topic, key=key, value=value))
        if len(unacknowledged) > MAX_IN_FLIGHT:
            unacknowledged.popleft().get()
    for future in unacknowledged:
        future.get()
    seconds, used = time.monotonic() - began, time.process_time() - used
    client.close()
    print(json.dumps({"ticks_per_s": len(messages) / seconds, "cpu_us_a_tick": 1e6 * used / len(messages)}))


if __name__ == "__main__":
    main()
