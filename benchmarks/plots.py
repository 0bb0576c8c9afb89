"""The drains and the live runs as pictures, made of the rows in results.json. It measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import targets
from pipeline_lib.charts import DOWN, QUIET, STYLE, UP

Rows = list[dict[str, Any]]

COLOURS = {"floor": "#c3cad3", "loop": QUIET, "stream": UP}
NAMES = {"floor": "floor: read and parse", "loop": "plain loop, no recovery", "stream": "the stream"}
PARTS_OF_WAY = ("#c3cad3", "#8fb8dc", UP, DOWN)


def save(make: Callable[[], Figure], file: Path) -> None:
    """Write what is drawn, the same bytes for the same rows."""
    style: Any = STYLE
    with matplotlib.rc_context(style):
        make().savefig(file, metadata={"Date": None}, bbox_inches="tight")


def draw(part: str, rows: Rows, folder: Path) -> Path | None:
    """Return the file of the part's picture, None if it has none."""
    if part not in PICTURES:
        return None
    file = folder / f"{part}.svg"
    save(lambda: PICTURES[part](rows), file)
    return file


def draw_drains(rows: Rows) -> Figure:
    """Return the seconds of every load for the floor, the loop and the stream, with what they must be."""
    loads = list(dict.fromkeys((row["ticks"], row["message"]) for row in rows))
    figure = Figure(figsize=(8, 0.9 + 0.8 * len(loads)))
    axes = figure.subplots()
    for place, (ticks, message) in enumerate(loads):
        group = [row for row in rows if (row["ticks"], row["message"]) == (ticks, message)]
        for offset, name in enumerate(COLOURS):
            bar(axes, place + 0.26 * (offset - 1), [row[name]["seconds"] for row in group if name in row], name, first=place == 0)
        for target in targets.TARGETS:
            if target.part == "drain" and target.name.endswith(", s") and target.matches(group[0]):
                mark(axes, target, place)
    axes.set_yticks(range(len(loads)), [f"{ticks / 1e6:g} M {message}" for ticks, message in loads])
    axes.invert_yaxis()
    finish(axes, "A loaded topic, drained", "seconds from process start to process end; median, least and most")
    return figure


def draw_live(rows: Rows) -> Figure:
    """Return the latencies of every rate for the loop and the stream, and the parts of a tick's way through the stream."""
    rates = list(dict.fromkeys(row["rate"] for row in rows))
    figure = Figure(figsize=(8, 1.2 + 1.9 * len(rates)))
    above, below = figure.subplots(2, 1, height_ratios=[2 * len(rates), len(rates)])
    labels: list[str] = []
    for rate in rates:
        group = [row for row in rows if row["rate"] == rate]
        for share in ("p50", "p99"):
            place = len(labels)
            labels.append(f"{rate:,.0f}/s, {share}")
            for offset, name in enumerate(("loop", "stream")):
                bar(
                    above, place + 0.36 * (offset - 0.5), [row[name][f"{share}_ms"] for row in group if name in row], name, first=place == 0
                )
            for target in targets.TARGETS:
                if target.part == "live" and share in target.name and target.matches(group[0]):
                    mark(above, target, place)
    above.set_yticks(range(len(labels)), labels)
    above.invert_yaxis()
    finish(above, "From a tick's entry to the table, live", "ms")
    for place, rate in enumerate(rates):
        ways = [row["stream"]["way_ms"] for row in rows if row["rate"] == rate]
        left = 0.0
        for colour, name in zip(PARTS_OF_WAY, ways[0], strict=False):
            width = statistics.median(way[name] for way in ways)
            below.barh(place, width, 0.5, left, color=colour, label=name if place == 0 else None)
            left += width
    below.set_yticks(range(len(rates)), [f"{rate:,.0f}/s" for rate in rates])
    below.invert_yaxis()
    finish(below, "Where the time goes", "ms, the median of each part")
    figure.tight_layout()
    return figure


def bar(axes: Axes, place: float, values: list[float], name: str, first: bool) -> None:
    """Draw the median of the values, with a line from the least to the most."""
    if not values:
        return
    middle = statistics.median(values)
    reach = [[middle - min(values)], [max(values) - middle]]
    label = NAMES[name] if first else None
    axes.barh(place, middle, 0.26, xerr=reach, color=COLOURS[name], label=label, error_kw={"ecolor": "#3d4653", "elinewidth": 1})


def mark(axes: Axes, target: targets.Target, place: float) -> None:
    """Draw what a figure must be, and what it aims at."""
    for bound, style in ((target.must, "-"), (target.aim, ":")):
        axes.plot([float(bound.replace(",", ""))] * 2, [place - 0.42, place + 0.42], style, color=DOWN, linewidth=1.5)


def finish(axes: Axes, title: str, words: str) -> None:
    """Give the axes their words."""
    axes.set_title(title)
    axes.set_xlabel(words)
    axes.grid(visible=False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)


PICTURES: dict[str, Callable[[Rows], Figure]] = {"drain": draw_drains, "live": draw_live}
