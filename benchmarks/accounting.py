"""Measure what a clean stream pays for accounting: python -m benchmarks.accounting

The same messages, held in memory, are aggregated three ways in turn: as the stream does it; with the bad ones dropped in
silence and no offsets counted; and with a plain `from_json` that takes what it can. The first against the second is the
price of accounting, the second against the third that of the strict grammar. Kafka and PostgreSQL are left out, so the ratios
are larger than a whole stream's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import psutil
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline_lib import bars, pipeline
from pipeline_lib.config import Settings
from pipeline_lib.pipeline import Place
from pipeline_lib.sources import open_source
from pipeline_lib.stream import load_messages, prepare_messages

WINDOW_MS = 10_000


def with_accounting(messages: DataFrame) -> DataFrame:
    """Return what the stream collects of a micro-batch."""
    return bars.merge_parts(bars.select_unseen(prepare_messages(messages, WINDOW_MS), dict.fromkeys(range(4), 0)))


def without_accounting(messages: DataFrame) -> DataFrame:
    """Return the bars alone: what is bad is dropped, and nobody knows how much was read."""
    return _bars(bars.parse_plain(messages).where(F.col("tick").isNotNull()))


def lenient(messages: DataFrame) -> DataFrame:
    """Return the bars of whatever from_json can make something of."""
    fields = "symbol string, price double, volume double, event_time bigint, receipt_time bigint, repeat string, previous_close double"
    return _bars(messages.withColumn("tick", F.from_json(F.col("value").cast("string"), fields)).where("tick.price > 0"))


def _bars(ticks: DataFrame) -> DataFrame:
    counted = bars.window_bars(ticks, WINDOW_MS)
    return counted.drop("messages", "first_offset", "last_offset")


def main() -> None:
    """Measure in turns, and write benchmarks/accounting.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accounting", description=__doc__)
    parser.add_argument("--ticks", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="the folder of accounting.json")
    options = parser.parse_args()
    settings = Settings.load(source="simulated", simulated_rate=10_000)
    with Place(settings, "accounting") as place:
        pipeline.produce(place.settings, open_source(place.settings, ticks=options.ticks))
        session = pipeline.open_spark(place.settings)
        messages = load_messages(session, pipeline.servers_of(place.settings), place.settings.kafka_topic).cache()
        assert messages.count() == options.ticks
        seconds = measure(session, messages, options.repeats)
        session.stop()
    ratios = {
        "accounting": [a / b - 1 for a, b in zip(seconds["with_accounting"], seconds["without_accounting"], strict=True)],
        "strict grammar": [a / b - 1 for a, b in zip(seconds["without_accounting"], seconds["lenient"], strict=True)],
    }
    result = {name: {"min": min(each), "median": statistics.median(each), "max": max(each)} for name, each in ratios.items()}
    for name, each in result.items():
        print(f"{name}: {each['median']:+.1%} of processor time ({each['min']:+.1%} to {each['max']:+.1%}, {options.repeats} turns)")
    text = json.dumps({"ticks": options.ticks, "processor_seconds": seconds, "cost": result}, indent=2)
    (options.out / "accounting.json").write_text(text + "\n", "utf-8")


def measure(session: SparkSession, messages: DataFrame, repeats: int) -> dict[str, list[float]]:
    """Return the processor seconds of Spark's Java for each way, by turns, after two turns to warm up."""
    java = next(child for child in psutil.Process().children(recursive=True) if "SparkSubmit" in " ".join(child.cmdline()))
    ways: list[Callable[[DataFrame], DataFrame]] = [with_accounting, without_accounting, lenient]
    seconds: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for turn in range(-2, repeats):
        for way in ways:
            before = java.cpu_times()
            way(messages).collect()
            after = java.cpu_times()
            if turn >= 0:
                seconds[way.__name__].append(round(after.user + after.system - before.user - before.system, 3))
    return seconds


if __name__ == "__main__":
    main()
