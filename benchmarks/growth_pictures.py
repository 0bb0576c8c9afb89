"""The growth of cost as pictures, with a sentence each, made of the rows in growth.json. It measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from benchmarks.plots import save
from benchmarks.report import described
from pipeline_lib.charts import QUIET, UP

Rows = list[dict[str, Any]]


class Picture(NamedTuple):
    """How a part is drawn, and said in a sentence."""

    title: str
    draw: Callable[[Rows], Figure]
    say: Callable[[Rows], str]


def draw(part: str, rows: Rows, folder: Path) -> None:
    """Write the picture of a part."""
    save(lambda: PICTURES[part].draw(rows), folder / f"growth-{part}.svg")


def lines(parts: dict[str, Any]) -> list[str]:
    """Return the lines of growth.md."""
    said = ["# How cost grows", "", "By `make bench-growth`. One run of each size; every table was verified."]
    for name, picture in PICTURES.items():
        if name in parts:
            rows = parts[name]["rows"]
            said += [
                "",
                f"## {picture.title}",
                "",
                picture.say(rows),
                "",
                f"![{picture.title}](growth-{name}.svg)",
                "",
                described(parts[name]),
            ]
    return said


def drains(name: str, words: str) -> Callable[[Rows], Figure]:
    """Return what draws the seconds and the memory of drains against a field of their loads."""

    def draw_them(rows: Rows) -> Figure:
        figure = Figure(figsize=(8, 2.8))
        left, right = figure.subplots(1, 2)
        places = [row[name] for row in rows]
        for label, key, colour in (("wall", "seconds", UP), ("processor", "cpu_seconds", QUIET)):
            line(left, places, [row["stream"][key] for row in rows], label, colour)
        left.legend(frameon=False)
        finish(left, "Seconds", words)
        line(right, places, [row["stream"]["peak_rss_mb"] for row in rows], "", UP)
        finish(right, "Peak memory, MB", words)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{place:,}" for place in places])
            axes.minorticks_off()
            axes.set_ylim(0)
        figure.tight_layout()
        return figure

    return draw_them


def say_drains(name: str, words: str) -> Callable[[Rows], str]:
    """Return what says the seconds and the memory of the least and the most."""

    def say(rows: Rows) -> str:
        first, last = rows[0], rows[-1]
        times, slower = last[name] / first[name], last["stream"]["seconds"] / first["stream"]["seconds"]
        memory = f"{first['stream']['peak_rss_mb']:,.0f} to {last['stream']['peak_rss_mb']:,.0f} MB"
        seconds = f"{first['stream']['seconds']:.1f} to {last['stream']['seconds']:.1f} s"
        return f"{times:g} times as many {words} take {slower:.2f} times as long ({seconds}), and {memory} of memory."

    return say


def draw_table(rows: Rows) -> Figure:
    """Return the milliseconds of each statement against the bars in the table."""
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    bars = [row["bars"] for row in rows]
    for number, name in enumerate(rows[0]["ms"]):
        line(axes, bars, [row["ms"][name] for row in rows], name, f"C{number}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(bars, [f"{row['bars']:,}\n{row['days']} days" for row in rows])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    finish(axes, "Milliseconds, median", "bars in the table")
    return figure


def say_table(rows: Rows) -> str:
    """Return how much longer each statement takes on the largest table."""
    first, last = rows[0], rows[-1]
    parts = [f"{name} {first['ms'][name]:.1f} to {last['ms'][name]:.1f} ms" for name in first["ms"]]
    return f"From {first['bars']:,} to {last['bars']:,} bars ({last['table_mb']:,.0f} MB): {'; '.join(parts)}."


def draw_memory(rows: Rows) -> Figure:
    """Return the memory of the stream's processes over the run."""
    figure = Figure(figsize=(8, 2.8))
    axes = figure.subplots()
    axes.plot([at / 60 for at in rows[0]["seconds"]], rows[0]["rss_mb"], color=UP)
    axes.set_ylim(0)
    finish(axes, "Memory of the stream, MB", "minutes")
    return figure


def say_memory(rows: Rows) -> str:
    """Return the memory at the middle of the run, and at its end."""
    row = rows[0]
    middle, last = row["rss_mb"][len(row["rss_mb"]) // 2], row["rss_mb"][-1]
    return (
        f"At {row['rate']:,.0f} ticks/s the stream has {middle:,.0f} MB after {row['seconds'][-1] / 120:.0f} min and {last:,.0f} MB "
        f"after {row['seconds'][-1] / 60:.0f} min; {max(row['rss_mb']):,.0f} MB is the most."
    )


def line(axes: Axes, places: list[Any], values: list[float], label: str, colour: str) -> None:
    """Draw a line with its points."""
    axes.plot(places, values, "o-", label=label, color=colour, markersize=4)


def finish(axes: Axes, title: str, words: str) -> None:
    """Give the axes their words."""
    axes.set_title(title)
    axes.set_xlabel(words)


PICTURES = {
    "ticks": Picture("Drains of more ticks", drains("ticks", "ticks"), say_drains("ticks", "ticks")),
    "symbols": Picture("Drains of more symbols", drains("symbols", "symbols"), say_drains("symbols", "symbols")),
    "partitions": Picture("Drains of more partitions", drains("partitions", "partitions"), say_drains("partitions", "partitions")),
    "table": Picture("A table with more bars", draw_table, say_table),
    "memory": Picture("Memory over time", draw_memory, say_memory),
}
