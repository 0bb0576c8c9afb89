"""How cost grows: with ticks, with symbols, with partitions, with the bars in the table, and with time.

`python -m benchmarks.growth` measures all of it, `python -m benchmarks.growth ticks table` those alone, and writes growth.json,
growth.md and a picture of each into this folder. One run of each size, so what counts is the shape, not a single figure.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import growth_pictures, growth_table, live
from benchmarks.drain import measure
from benchmarks.ground import Load, own_database, own_services, own_topic
from benchmarks.machine import describe, load_average
from benchmarks.programs import stocks
from benchmarks.sight import Reader
from benchmarks.verify import check_table
from pipeline_lib import pipeline
from pipeline_lib.config import Settings

HERE = Path(__file__).parent

Options = argparse.Namespace
Rows = list[dict[str, Any]]


def by_ticks(settings: Settings, options: Options) -> Rows:
    """Return drains of one, two, four and eight times so many ticks."""
    return drains(settings, [Load(options.ticks * times) for times in (1, 2, 4, 8)])


def by_symbols(settings: Settings, options: Options) -> Rows:
    """Return drains of as many ticks with more symbols, and so more bars."""
    return drains(settings, [Load(options.ticks, symbols=count) for count in (8, 80, 800)])


def by_partitions(settings: Settings, options: Options) -> Rows:
    """Return drains of as many ticks in more partitions."""
    return drains(settings, [Load(options.ticks, partitions=count) for count in (1, 2, 4)])


def drains(settings: Settings, loads: list[Load]) -> Rows:
    """Return the figures of one drain of each load, without those of its micro-batches."""
    rows = measure(settings, loads, repeats=1, alone=True)
    for row in rows:
        batches = row["stream"].pop("batches")
        row["bars_a_batch"] = sum(each["bars"] for each in batches) / len(batches)
        row["commit_ms_a_batch"] = sum(each["commit_ms"] for each in batches) / len(batches)
    return rows


def by_bars(settings: Settings, options: Options) -> Rows:
    """Return what the upsert and the dashboard's readings take on a table of so many days."""
    rows = []
    for days in options.days:
        with own_topic(settings) as topic, own_database(topic) as place:
            rows.append(growth_table.run(place, days))
            print(f"table: {days} days: {rows[-1]['ms']}", flush=True)
    return rows


def by_time(settings: Settings, options: Options) -> Rows:
    """Return the memory of the stream every five seconds of a live run."""
    settings = settings.replaced(window="1 second", simulated_rate=options.rate)
    with own_topic(settings) as topic, own_database(topic) as place:
        with (
            stocks(place, "produce", "--source", "simulated", "--until-eof") as feed,
            Reader(pipeline.open_store(place).url) as reader,
            stocks(place, "stream", "--until-eof") as stream,
        ):
            live.look(place, reader, [stream, feed], 60 * options.minutes, 0)
            feed.stop()
            stream.stop()
        check_table(place)
        samples = stream.rss_mb
    return [{"rate": options.rate, "seconds": [at for at, _ in samples[::25]], "rss_mb": [size for _, size in samples[::25]]}]


PARTS: dict[str, Callable[[Settings, Options], Rows]] = {
    "ticks": by_ticks,
    "symbols": by_symbols,
    "partitions": by_partitions,
    "table": by_bars,
    "memory": by_time,
}


def main() -> None:
    """Measure the parts in turn, and write each when it is done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    # An empty list is what argparse makes of no part at all, and holds to the choices.
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"what to measure: {', '.join(PARTS)}; all by default"
    )
    parser.add_argument("--ticks", type=int, default=1_000_000, help="the smallest drain; the largest is eight times as large")
    parser.add_argument("--days", type=int, nargs="+", default=[1, 21, 252], help="sessions whose bars the table holds")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long memory is watched; 60 for an hour")
    parser.add_argument("--rate", type=float, default=1_000.0, help="ticks a second meanwhile")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of growth.json, growth.md and the pictures")
    options = parser.parse_args()
    for name in options.parts or PARTS:
        before = load_average()
        with own_services() as settings:
            rows = PARTS[name](settings, options)
        keep(options.out, name, rows, {**describe(), "load_before": before, "load_after": load_average()})
    print(f"written to {options.out / 'growth.md'}")


def keep(folder: Path, part: str, rows: Rows, machine: dict[str, Any]) -> None:
    """Put a part's rows in place of those that growth.json has of it, draw it, and write growth.md anew."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "growth.json"
    parts = json.loads(file.read_text("utf-8")) if file.exists() else {}
    parts[part] = {"measured_at": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC", "machine": machine, "rows": rows}
    file.write_text(json.dumps(parts, indent=1) + "\n", "utf-8")
    growth_pictures.draw(part, rows, folder)
    (folder / "growth.md").write_text("\n".join(growth_pictures.lines(parts)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
