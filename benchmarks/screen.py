"""From the table to the screen: when a commit can be read, and when the page has painted it. Called by `python -m benchmarks screen`.

The page runs in a headless Chromium on the same cores as everything else. It says itself which micro-batch it has painted last, in
attributes of its head; here these are watched from within the page, by its own clock.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from playwright.sync_api import Page

from benchmarks.ground import own_database, own_topic
from benchmarks.live import let_run
from benchmarks.machine import busy_percent
from benchmarks.page import open_page, wait_for_answer
from benchmarks.programs import Program, stocks
from benchmarks.sight import Reader, Sighting
from benchmarks.verify import check_table
from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.services.process import choose_ports
from pipeline_lib.supervise import stage_environment

START_SECONDS = 120.0

PAINTED = "() => document.querySelector('.sp-strip')?.dataset.batch !== undefined"
WATCH = """() => {
    const strip = document.querySelector(".sp-strip");
    window.painted = [];
    const note = () => window.painted.push([performance.timeOrigin + performance.now(), strip.dataset.run, Number(strip.dataset.batch)]);
    new MutationObserver(note).observe(strip, { attributes: true, attributeFilter: ["data-batch"] });
}"""


class Painting(NamedTuple):
    """At a time, epoch milliseconds, the page had painted a micro-batch, and all before it."""

    at: float
    run_id: str
    batch_id: int


def measure(settings: Settings, rate: float, seconds: float, warm_up: float, repeats: int) -> list[dict[str, Any]]:
    """Return one row a run."""
    rows = []
    for number in range(repeats):
        row = {"rate": rate, "measured_seconds": seconds, "busy_before_percent": busy_percent()}
        rows.append(row | run(settings.replaced(window="1 second", simulated_rate=rate), seconds, warm_up))
        print(f"screen: run {number + 1} of {repeats}: p50 {rows[-1]['p50_ms']:.0f} p99 {rows[-1]['p99_ms']:.0f} ms", flush=True)
    return rows


def run(settings: Settings, seconds: float, warm_up: float) -> dict[str, Any]:
    """Return the figures of one run."""
    settings = settings.replaced(dashboard_port=choose_ports(("page",), {}, print)["page"])
    with own_topic(settings) as topic, own_database(topic) as place:
        with (
            open_page() as page,
            stocks(place, "produce", "--source", "simulated", "--until-eof") as feed,
            Reader(pipeline.open_store(place).url) as reader,
            stocks(place, "stream", "--until-eof") as stream,
            serve(place) as served,
        ):
            reader.wait({}, START_SECONDS)
            wait_for_answer(f"http://127.0.0.1:{place.dashboard_port}/voila/static/voila.js", served)
            page.goto(f"http://127.0.0.1:{place.dashboard_port}/")
            page.wait_for_function(PAINTED, timeout=1_000 * START_SECONDS)
            let_run([feed, stream, served], warm_up)
            page.evaluate(WATCH)
            let_run([feed, stream, served], seconds)
            with contextlib.closing(pipeline.open_store(place)) as store:
                row = compare(paintings_of(page), reader.sightings, store.load_progress(100_000))
            page.goto("about:blank")
            for program in (feed, stream, served):
                program.stop()
        check_table(place)
    return row


def serve(place: Settings) -> Program:
    """Return `stocks dashboard`, started: it ends at Ctrl-C alone, so it is on a leash."""
    own = [sys.executable, "-m", "pipeline_lib.cli", "dashboard"]
    return Program([sys.executable, "-m", "benchmarks.leash", *own], stage_environment(place), "stocks dashboard")


def paintings_of(page: Page) -> list[Painting]:
    """Return what the page has painted since it is watched."""
    return [Painting(*each) for each in page.evaluate("() => window.painted")]


def compare(painted: list[Painting], sightings: list[Sighting], progress: pd.DataFrame) -> dict[str, Any]:
    """Return how long it took from when a commit could be read to when it, or a later one, was painted, in milliseconds.

    Of the commits after the first painting that was watched: what came before was painted before, or with it.
    """
    if len(painted) < 2:
        raise SystemExit(f"cannot measure the screen: the page has painted {len(painted)} times while it was watched")
    place = {(row.run_id, row.batch_id): number for number, row in enumerate(progress.itertuples())}
    shown = np.maximum.accumulate([place[each.run_id, each.batch_id] for each in painted])
    stamps = np.array([each.committed_at or 0.0 for each in sightings])
    took = []
    for number in range(int(shown[0]) + 1, int(shown[-1]) + 1):
        committed_at = progress["committed_at"].iloc[number].timestamp()
        readable = 1_000 * sightings[int(np.searchsorted(stamps, committed_at - 0.0005))].at
        took.append(painted[int(np.searchsorted(shown, number))].at - readable)
    p50, p99 = np.percentile(took, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": max(took), "commits": len(took), "paintings": len(painted)}
