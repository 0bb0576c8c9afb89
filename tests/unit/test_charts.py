"""Figures: drawn from bars alone, the same whenever they are drawn."""

from __future__ import annotations

import matplotlib
import pandas as pd
import pytest

from pipeline_lib.charts import plot_arrival, plot_bars, plot_budget, plot_lines, plot_progress

START = pd.Timestamp("2026-03-02 14:30:00", tz="UTC")  # 09:30 in New York


def make_bars(count: int = 30) -> pd.DataFrame:
    start = [START + pd.Timedelta(seconds=10 * i) for i in range(count)]
    open_ = [100 + (i * 7 % 5) / 10 for i in range(count)]
    close = [100 + (i * 3 % 5) / 10 for i in range(count)]
    return pd.DataFrame(
        {
            "symbol": "AAPL",
            "window_start": start,
            "window_end": [moment + pd.Timedelta(seconds=10) for moment in start],
            "open": open_,
            "high": [max(pair) + 0.1 for pair in zip(open_, close, strict=True)],
            "low": [min(pair) - 0.1 for pair in zip(open_, close, strict=True)],
            "close": close,
            "volume": [float(i % 4) * 100 for i in range(count)],
            "vwap": [float("nan") if i % 4 == 0 else 100.2 for i in range(count)],
            "is_final": [i < count - 1 for i in range(count)],
        }
    )


def make_progress(count: int = 20) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "committed_at": [START + pd.Timedelta(seconds=i) for i in range(count)],
            "input_rows": [25 + i for i in range(count)],
            "aggregate_ms": [300 + i % 7 for i in range(count)],
            "commit_ms": [12 + i % 3 for i in range(count)],
        }
    )


def test_the_same_bars_give_the_same_picture_whatever_the_settings() -> None:
    first = plot_bars(make_bars())._repr_png_()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20}):
        assert plot_bars(make_bars())._repr_png_() == first


def test_title_names_symbol_and_width_and_times_are_new_yorks() -> None:
    price, volume = plot_bars(make_bars()).axes
    assert price.get_title(loc="left") == "AAPL, bars of 10 s"
    assert volume.get_xticklabels()[0].get_text() == "09:30:00"
    assert volume.get_xlabel() == "2026-03-02, New York"


def test_an_unfinished_bar_is_lighter() -> None:
    price = plot_bars(make_bars()).axes[0]
    finished, unfinished = price.patches[0], price.patches[-1]
    assert finished.get_facecolor()[3] == 1.0  # type: ignore[index]
    assert unfinished.get_facecolor()[3] < 0.5  # type: ignore[index]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_any_number_of_bars_and_batches_can_be_drawn(count: int) -> None:
    assert plot_bars(make_bars(count))._repr_png_()
    assert plot_progress(make_progress(count))._repr_png_()


def test_a_tick_that_a_later_event_has_overtaken_stands_out() -> None:
    events = [START + pd.Timedelta(milliseconds=ms) for ms in (0, 50, 20, 70)]
    receipts = [START + pd.Timedelta(milliseconds=ms) for ms in (0, 50, 60, 70)]
    figure = plot_arrival(pd.DataFrame({"event_time": events, "receipt_time": receipts}))
    in_order, overtaken = figure.axes[0].lines
    assert (in_order.get_label(), overtaken.get_label()) == ("in order: 3", "overtaken by a later event: 1")
    assert overtaken.get_ydata().tolist() == [40]


def test_lines_are_the_columns_and_are_drawn_the_same_every_time() -> None:
    lines = pd.DataFrame({"A": [1.0, 2.0], "B": [2.0, float("nan")]}, index=[START, START + pd.Timedelta(minutes=1)])
    figure = plot_lines(lines, "title", "unit")
    assert [line.get_label() for line in figure.axes[0].lines] == ["A", "B"]
    assert figure._repr_png_() == plot_lines(lines, "title", "unit")._repr_png_()


def test_the_parts_of_the_budget_follow_each_other_to_the_whole() -> None:
    parts = [
        ("feed", "exchange to receipt", False, 9.0),
        ("feed", "receipt to broker", True, 40.0),
        ("kafka", "wait for the batch", True, 160.0),
    ]
    parts += [
        ("spark", "read, parse, aggregate", True, 90.0),
        ("postgres", "commit", True, 10.0),
        ("spark", "walCommit", True, float("nan")),
    ]
    (axes,) = plot_budget(pd.DataFrame(parts, columns=["stage", "part", "is_on_way", "mean_ms"])).axes
    bars = sorted((bar.get_x(), bar.get_width()) for bar in axes.patches)
    assert bars == [(0, 40), (40, 160), (200, 90), (290, 10)]
    assert axes.get_title(loc="left") == "The way of the mean tick: 300 ms"


def test_a_budget_of_nothing_is_still_a_figure() -> None:
    assert plot_budget(
        pd.DataFrame(columns=["stage", "part", "is_on_way", "mean_ms"]).astype({"is_on_way": bool, "mean_ms": float})
    )._repr_png_()
