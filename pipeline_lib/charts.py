"""Bars and progress as figures that stand still, for papermill and for print.

The live chart is `dashboard.py`; this one draws the same bars with matplotlib, the same on every machine: its own
settings, and a font that matplotlib brings. Called by the notebooks. A figure is returned, never shown.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import matplotlib.dates as mdates
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ZONE = "America/New_York"

# The dashboard's pair: blue and orange stay apart for every common kind of colour blindness.
UP, DOWN, QUIET = "#0b6fb8", "#c8500a", "#6b7280"

# Stages of the latency budget, with the colours that the dashboard has for them.
BUDGET_STAGES = {"feed": ("feed", "#8b95a3"), "kafka": ("Kafka", "#c3cad3"), "spark": ("Spark", UP), "postgres": ("PostgreSQL", DOWN)}

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c3cad3",
    "axes.labelcolor": "#3d4653",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eef0f3",
    "xtick.color": "#5b6472",
    "ytick.color": "#5b6472",
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "svg.hashsalt": "stock-pipeline",
}

# A legend stands above the axes, where it hides nothing.
_ABOVE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "frameon": False, "borderaxespad": 0.2}


class StillFigure(Figure):
    """A figure that shows itself in a notebook without pyplot, byte for byte the same whatever a user's settings are."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with matplotlib.rc_context(_style()):
            self.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def plot_bars(bars: pd.DataFrame) -> StillFigure:
    """Return candles with VWAP above their volume; bars that are not final are drawn lighter. Times are New York's.

    Columns: symbol, window_start, window_end, open, high, low, close, volume, vwap, is_final; of one symbol.
    """
    with matplotlib.rc_context(_style()):
        figure = StillFigure(figsize=(10, 5), layout="constrained")
        price, volume = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        if bars.empty:
            price.set_title("No bars")
            return figure
        # Bars stand side by side by number, so that a closed market leaves no gap and no bar overlaps another.
        place = np.arange(len(bars))
        colours = np.where(bars["close"] >= bars["open"], UP, DOWN)
        opacity = np.where(bars["is_final"].astype(bool), 1.0, 0.45)
        _draw_candles(price, place, bars, colours, opacity)
        vwap = bars["vwap"].to_numpy(float)
        if not np.isnan(vwap).all():
            price.plot(place, vwap, color=QUIET, linewidth=1, label="VWAP")
            price.legend(**_ABOVE)
        volume.bar(place, bars["volume"].to_numpy(float), width=0.8, color=_with_opacity(colours, 0.5 * opacity))
        width = (bars["window_end"] - bars["window_start"]).iloc[0]
        price.set_title(f"{', '.join(map(str, bars['symbol'].unique()))}, bars of {_duration_words(width)}")
        price.set_ylabel("price")
        volume.set_ylabel("volume")
        _label_times(volume, bars["window_start"])
        return figure


def plot_progress(progress: pd.DataFrame) -> StillFigure:
    """Return rows a micro-batch above the milliseconds it took, by when it was committed.

    Columns: committed_at, input_rows, aggregate_ms, commit_ms.
    """
    with matplotlib.rc_context(_style()):
        figure = StillFigure(figsize=(10, 4), layout="constrained")
        rows, delay = figure.subplots(2, 1, sharex=True)
        rows.set_title("Micro-batches")
        rows.set_ylabel("messages")
        delay.set_ylabel("ms")
        if progress.empty:
            rows.set_title("No micro-batches")
            return figure
        times = mdates.date2num(progress["committed_at"].dt.tz_convert(ZONE).dt.tz_localize(None))
        rows.vlines(times, 0, progress["input_rows"].to_numpy(float), color=UP, linewidth=1.2)
        rows.plot(times, progress["input_rows"].to_numpy(float), "o", color=UP, markersize=2.5)
        spark = progress["aggregate_ms"].to_numpy(float)
        delay.stackplot(
            times,
            spark,
            progress["commit_ms"].to_numpy(float),
            colors=[UP, DOWN],
            labels=["Spark: read, parse, aggregate", "PostgreSQL: merge and commit"],
            alpha=0.75,
            linewidth=0,
        )
        delay.legend(**_ABOVE, ncols=2)
        delay.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M:%S"))
        delay.set_xlabel("committed at, New York")
        return figure


def plot_budget(budget: pd.DataFrame) -> StillFigure:
    """Return the way of the mean tick from its first sight to the table, a line a part, each begun where the one before ended.

    Columns: stage, part, is_on_way, mean_ms; in the order of the data. Parts that are not known are left out.
    """
    parts = budget[budget["is_on_way"] & budget["mean_ms"].notna()]
    with matplotlib.rc_context(_style()):
        figure = StillFigure(figsize=(10, 1 + 0.25 * max(4, len(parts))), layout="constrained")
        axes = figure.subplots()
        took = parts["mean_ms"].to_numpy(float)
        axes.set_title(f"The way of the mean tick: {took.sum():,.0f} ms" if len(parts) else "No micro-batches")
        axes.set_xlabel("ms since its first sight")
        place, ends = np.arange(len(parts)), np.cumsum(took)
        for stage, (name, colour) in BUDGET_STAGES.items():
            own = (parts["stage"] == stage).to_numpy()
            axes.barh(place[own], took[own], left=(ends - took)[own], height=0.7, color=colour, label=name)
        for number, (end, each) in enumerate(zip(ends, took, strict=True)):
            axes.annotate(f"{each:,.0f}", (max(end, end - each), number), (4, 0), textcoords="offset points", va="center", color="#3d4653")
        axes.set_yticks(place, parts["part"].tolist())
        axes.invert_yaxis()
        axes.margins(x=0.06)
        axes.grid(visible=False, axis="y")
        axes.legend(**_ABOVE, ncols=len(BUDGET_STAGES))
        return figure


def plot_arrival(ticks: pd.DataFrame) -> StillFigure:
    """Return how long after its event each tick came, by when it came; those that were overtaken by a later event stand out.

    Columns: event_time, receipt_time; in the order of arrival.
    """
    with matplotlib.rc_context(_style()):
        figure = StillFigure(figsize=(10, 3), layout="constrained")
        axes = figure.subplots()
        overtaken = (ticks["event_time"] < ticks["event_time"].cummax()).to_numpy()
        delay_ms = ((ticks["receipt_time"] - ticks["event_time"]) / pd.Timedelta(milliseconds=1)).to_numpy(float)
        times = mdates.date2num(ticks["receipt_time"].dt.tz_convert(ZONE).dt.tz_localize(None))
        for chosen, colour, label in ((~overtaken, UP, "in order"), (overtaken, DOWN, "overtaken by a later event")):
            axes.plot(times[chosen], delay_ms[chosen], "o", color=colour, markersize=2.5, label=f"{label}: {chosen.sum():,}")
        axes.set_title("Receipt time less event time")
        axes.set_ylabel("ms")
        axes.legend(**_ABOVE, ncols=2, markerscale=2)
        axes.xaxis.set_major_locator(mdates.AutoDateLocator())
        axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M:%S"))
        axes.set_xlabel("receipt time, New York")
        return figure


def plot_lines(lines: pd.DataFrame, title: str, unit: str) -> StillFigure:
    """Return one line a column, over an index of timestamps."""
    with matplotlib.rc_context(_style()):
        figure = StillFigure(figsize=(10, 3.5), layout="constrained")
        axes = figure.subplots()
        times = mdates.date2num(pd.DatetimeIndex(lines.index).tz_convert(ZONE).tz_localize(None))
        for place, name in enumerate(lines.columns):
            # Dashes as well as colours: eight colours alone are too many to tell apart.
            axes.plot(times, lines[name].to_numpy(float), label=str(name), linewidth=1.2, linestyle=("-", "--")[place // 4 % 2])
        axes.set_title(title, pad=22 if len(lines.columns) > 1 else None)
        axes.set_ylabel(unit)
        if len(lines.columns) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0, ncols=8)
        axes.xaxis.set_major_locator(mdates.AutoDateLocator())
        axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
        axes.set_xlabel("New York")
        return figure


def _style() -> Any:
    """Return every setting: matplotlib's defaults but for ours. The backend is the one thing that is the user's."""
    return {**matplotlib.rcParamsDefault, "backend": matplotlib.rcParams["backend"], **STYLE}


def _draw_candles(axes: Axes, place: np.ndarray, bars: pd.DataFrame, colours: np.ndarray, opacity: np.ndarray) -> None:
    opens, closes = bars["open"].to_numpy(float), bars["close"].to_numpy(float)
    shades = _with_opacity(colours, opacity)
    low, high = bars["low"].to_numpy(float), bars["high"].to_numpy(float)
    axes.vlines(place, low, high, colors=shades, linewidth=1)
    # A candle that closes where it opened is still a line.
    height = np.maximum(abs(closes - opens), (high.max() - low.min()) / 400)
    axes.bar(place, height, bottom=np.minimum(opens, closes), width=0.7, color=shades)


def _with_opacity(colours: np.ndarray, opacity: np.ndarray) -> list[tuple[str, float]]:
    return [(str(colour), float(alpha)) for colour, alpha in zip(colours, opacity, strict=True)]


def _label_times(axes: Axes, starts: pd.Series) -> None:
    there = starts.dt.tz_convert(ZONE)
    step = max(1, -(-len(there) // 9))
    places = range(0, len(there), step)
    of_one_day = there.dt.date.nunique() == 1
    pattern = "%H:%M:%S" if of_one_day else "%b %d\n%H:%M"
    axes.set_xticks(list(places), [there.iloc[i].strftime(pattern) for i in places])
    axes.set_xlabel(f"{there.iloc[0]:%Y-%m-%d}, New York" if of_one_day else "New York")


def _duration_words(width: pd.Timedelta) -> str:
    seconds = round(width.total_seconds())
    for size, word in ((3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {word}"
    return f"{seconds} s"
