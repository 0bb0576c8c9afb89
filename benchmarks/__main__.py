"""Measure the pipeline by its real programs, beside a plain loop, and write results.json and results.md in this folder.

`python -m benchmarks` measures everything; `python -m benchmarks drain live --repeats 1` those parts alone, whose figures
replace the ones in results.json. A figure of a shared machine is worth its spread: ratios of one run say more than seconds
of two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import drain, live, report
from benchmarks.ground import Load, own_services
from benchmarks.machine import describe, load_average
from pipeline_lib.config import Settings

HERE = Path(__file__).parent

Options = argparse.Namespace
Rows = list[dict[str, Any]]


def measure_drain(settings: Settings, options: Options) -> Rows:
    """Return the rows of the drains."""
    loads = [Load(ticks, message) for ticks in options.ticks for message in options.messages]
    return drain.measure(settings, loads, options.repeats, options.alone)


def measure_live(settings: Settings, options: Options) -> Rows:
    """Return the rows of the live runs."""
    return live.measure(settings, options.rates, options.seconds, options.warm_up, options.repeats, options.alone)


PARTS: dict[str, Callable[[Settings, Options], Rows]] = {"drain": measure_drain, "live": measure_live}


def read_options() -> Options:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], help=f"what to measure: {', '.join(PARTS)}; nothing for all")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind")
    parser.add_argument("--alone", action="store_true", help="without the floor and the plain loop")
    parser.add_argument("--ticks", type=int, nargs="+", default=[1_000_000, 4_000_000], help="drain: sizes of the topic")
    parser.add_argument("--messages", nargs="+", choices=["small", "full"], default=["small", "full"], help="drain: which ticks")
    parser.add_argument("--rates", type=float, nargs="+", default=[1_000.0, 10_000.0], help="live: ticks a second")
    parser.add_argument("--seconds", type=float, default=45.0, help="live: how long is measured")
    parser.add_argument("--warm-up", type=float, default=20.0, help="live: how long it runs before")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of results.json and results.md")
    return parser.parse_args()


def main() -> None:
    """Measure the parts in turn, and write each to the results when it is done."""
    options = read_options()
    for name in options.parts or PARTS:
        before = load_average()
        with own_services() as settings:
            rows = PARTS[name](settings, options)
        report.keep(options.out, name, rows, {**describe(), "load_before": before, "load_after": load_average()})
    print((options.out / "results.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
