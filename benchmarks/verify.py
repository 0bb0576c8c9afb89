"""How long `stocks verify` takes, and the check that every run of the bench goes through.

Called by `python -m benchmarks verify`, and by the other parts.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.ground import Load, loaded_topic, own_database
from benchmarks.machine import busy_percent
from benchmarks.programs import Ended, stocks
from pipeline_lib.config import Settings

MOST_SECONDS = 900


def measure(settings: Settings, load: Load, repeats: int) -> list[dict[str, Any]]:
    """Return one row a run over a drained topic: all of it, and of one symbol."""
    rows = []
    print(f"verify: loading {load}", flush=True)
    with loaded_topic(settings, load) as loaded, own_database(loaded.settings) as place:
        with stocks(place, "stream", "--until-caught-up") as stream:
            stream.wait(MOST_SECONDS)
        for number in range(repeats):
            busy = busy_percent()
            all_of_it, one_symbol = check_table(place, load.ticks), check_table(place, None, "--symbol", "AAPL")
            row = {"ticks": load.ticks, "busy_before_percent": busy, "seconds": all_of_it.seconds, "cpu_seconds": all_of_it.cpu_seconds}
            rows.append({**row, "peak_rss_mb": all_of_it.peak_rss_mb, "one_symbol_seconds": one_symbol.seconds})
            print(f"verify: {load}, run {number + 1} of {repeats}: {row['seconds']:.1f} s", flush=True)
    return rows


def check_table(place: Settings, ticks: int | None = None, *options: str) -> Ended:
    """Return what `stocks verify` took. Ends the bench if a bar differs, or if it is not so many ticks that were streamed."""
    with stocks(place, "verify", "--json", *options) as program:
        ended = program.wait(MOST_SECONDS)
    report = json.loads(ended.said.splitlines()[-1])
    if not report["equal"] or (ticks is not None and report["good"] != ticks):
        raise SystemExit(f"this run is void: {json.dumps(report)[:2_000]}")
    return ended
