"""Measure the pipeline by its real programs, beside a plain loop, and write results.json and results.md in this folder.

`python -m benchmarks` measures everything; `python -m benchmarks drain live --repeats 1` those parts alone, whose figures
replace the ones in results.json. A figure of a shared machine is worth its spread: ratios of one run say more than seconds
of two.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import drain, live, page, produce, report, screen, start, verify
from benchmarks.ground import Load, own_services
from benchmarks.machine import describe, load_average
from benchmarks.programs import Program
from pipeline_lib.config import Settings
from pipeline_lib.supervise import stage_environment

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


def measure_start(settings: Settings, options: Options) -> Rows:
    """Return the rows of the starts."""
    return start.measure(settings, options.repeats)


def measure_produce(settings: Settings, options: Options) -> Rows:
    """Return the rows of publishing tapes."""
    return produce.measure(settings, Load(min(400_000, *options.ticks)), options.repeats, options.alone)


def measure_verify(settings: Settings, options: Options) -> Rows:
    """Return the rows of verify."""
    return verify.measure(settings, Load(min(options.ticks)), options.repeats)


def measure_page(settings: Settings, options: Options) -> Rows:
    """Return the rows of the page's second start."""
    return page.measure(options.repeats)


def measure_screen(settings: Settings, options: Options) -> Rows:
    """Return the rows of the way from the table to the screen."""
    return screen.measure(settings, min(options.rates), options.seconds, options.warm_up, options.repeats)


def measure_accounting(settings: Settings, options: Options) -> Rows:
    """Return the rows of what accounting costs, one a turn."""
    ticks = str(min(400_000, *options.ticks))
    own = [sys.executable, "-m", "benchmarks.accounting", "--ticks", ticks, "--out", str(options.out)]
    command = [sys.executable, "-m", "benchmarks.leash", *own]
    with Program(command, stage_environment(settings), "accounting") as program:
        program.wait(3_600)
    seconds = json.loads((options.out / "accounting.json").read_text("utf-8"))["processor_seconds"]
    pairs = zip(seconds["with_accounting"], seconds["without_accounting"], strict=True)
    return [{"cost_percent": 100 * (counted / uncounted - 1)} for counted, uncounted in pairs]


PARTS: dict[str, Callable[[Settings, Options], Rows]] = {
    "drain": measure_drain,
    "live": measure_live,
    "start": measure_start,
    "produce": measure_produce,
    "verify": measure_verify,
    "page": measure_page,
    "screen": measure_screen,
    "accounting": measure_accounting,
}


def read_options() -> Options:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    # An empty list is what argparse makes of no part at all, and holds to the choices.
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"what to measure: {', '.join(PARTS)}; all by default"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind")
    parser.add_argument("--alone", action="store_true", help="without the floor and the plain loop")
    parser.add_argument(
        "--ticks", type=int, nargs="+", default=[1_000_000, 4_000_000], help="drain: sizes of the topic; verify: the least of them"
    )
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
        if not rows:
            continue
        said = report.keep(options.out, name, rows, {**describe(), "load_before": before, "load_after": load_average()})
        print("\n".join(["", *said, ""]), flush=True)
    print(f"written to {options.out / 'results.md'}")


if __name__ == "__main__":
    main()
