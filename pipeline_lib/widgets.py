"""The three widgets of the dashboard: chart, board and strip. Frames go in, trait values come out, the browser draws.

They load nothing and know no clock but the one they are given. ``dashboard.py`` puts them together and is the only
caller. Their JavaScript is in ``frontend/src``; the bundle is made when the package is built (``hatch_build.py``).
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import anywidget
import pandas as pd
import traitlets

from pipeline_lib.config import duration_ms
from pipeline_lib.errors import InstallError
from pipeline_lib.screen import Drawn, screen_parts, tick_to_screen, tick_to_table

NEW_YORK = ZoneInfo("America/New_York")
STATIC = Path(__file__).parent / "static"

# A stage says that it lives every second or so; a pause of Spark's collector is shorter than this.
SILENCE = dt.timedelta(seconds=5)

# The snapshot is sent anew when this many bars differ from it, so that the tail stays small.
LONGEST_TAIL = 60
MOST_BARS = 500

BAR_NUMBERS = ("open", "high", "low", "close", "volume", "vwap")
TITLES = {"feed": "Feed", "kafka": "Kafka", "spark": "Spark", "postgres": "PostgreSQL"}

SPARK_DOWN = "no sign of life; if it does not come back: `stocks stream`"

Bar = list[Any]


def bundled(name: str) -> Path:
    path = STATIC / name
    if not path.is_file():
        raise InstallError(f"cannot draw the dashboard: its bundle {path.name} is missing; run `make install`, or `pip install -e .`")
    return path


def epoch_ms(moment: Any) -> int | None:
    """Return epoch milliseconds of a timestamp, None of none."""
    return None if moment is None or pd.isna(moment) else round(moment.timestamp() * 1000)


def clock_words(moment: dt.datetime, now: dt.datetime) -> str:
    """Return the time of day in New York, with the date if it is not today's."""
    there, today = moment.astimezone(NEW_YORK), now.astimezone(NEW_YORK)
    return f"{there:%H:%M:%S}" if there.date() == today.date() else f"{there:%b} {there.day}, {there:%H:%M:%S}"


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def bar_rows(bars: pd.DataFrame) -> list[Bar]:
    """Return the bars as [start ms, open, high, low, close, volume, vwap, final], in order of time, without NaN."""
    if bars.empty:
        return []
    starts = pd.to_datetime(bars["window_start"], utc=True).dt.as_unit("ms").astype("int64")
    numbers = [[None if pd.isna(value) else value for value in bars[name].astype(float).tolist()] for name in BAR_NUMBERS]
    rows = zip(starts.tolist(), *numbers, bars["is_final"].astype(bool).tolist(), strict=True)
    return sorted((list(row) for row in rows), key=lambda row: row[0])


def price_rows(prices: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a dict a symbol: price, change, since what, volume, times in epoch milliseconds, and its freshness if it has one.

    What is unknown is None.
    """
    return [
        {
            "symbol": str(row["symbol"]),
            "change_since": str(row.get("change_since") or ""),
            **{name: _number(row.get(name)) for name in ("price", "change", "change_pct", "volume")},
            "freshness": row.get("freshness") if isinstance(row.get("freshness"), str) else None,
            **{name: epoch_ms(row.get(name)) for name in ("event_time", "receipt_time", "updated_at", "fresh_since", "opens_at")},
        }
        for row in prices.to_dict("records")
    ]


def with_last_prices(rows: list[dict[str, Any]], last: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the board with the last prices, and the change since what it was reckoned from before.

    A symbol that has no row yet is left out: what more there is to say of it comes with the next poll.
    """
    latest = {row["symbol"]: row for row in last}
    return [_with_last_price(row, latest[row["symbol"]]) if row["symbol"] in latest else row for row in rows]


def _with_last_price(row: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    new = {**row, **{name: last[name] for name in ("price", "event_time", "receipt_time", "updated_at")}}
    if row["price"] is not None and row["change"] is not None and new["price"] is not None:
        base = row["price"] - row["change"]
        new["change"] = new["price"] - base
        new["change_pct"] = 100 * new["change"] / base if base else None
    return new


def latency_of(budget: pd.DataFrame, delays: pd.DataFrame, drawn: list[Drawn], now: dt.datetime) -> dict[str, Any]:
    """Return how long ticks took to the table and to the screen in the last minute, and part by part; nothing if none came.

    ``table`` and ``screen`` have the median and the 99th percentile, p50 and p99; ``parts`` a dict each with its stage, the
    mean and the most. Milliseconds.
    """
    until = delays["until"].iloc[0]
    if pd.isna(until) or pd.isna(delays["p50_ms"].iloc[0]) or now - until > dt.timedelta(minutes=1):
        return {}
    parts = [
        {"stage": str(row["stage"]), "part": str(row["part"]), "mean": float(row["mean_ms"]), "most": float(row["most_ms"])}
        for row in budget.to_dict("records")
        if row["is_on_way"] and not pd.isna(row["mean_ms"])
    ]
    flush = float(budget.loc[budget["part"] == "commit", "mean_ms"].fillna(0).sum())
    on_screen = [{"stage": "screen", **part} for part in screen_parts(drawn)]
    for part in on_screen[:1]:
        part["mean"] = max(0.0, part["mean"] - flush)  # it is counted from within the transaction
    # Of the same ticks as those on the screen, as soon as there are any: a page that was just opened has not seen the whole minute.
    of_table = {name: float(delays[f"{name}_ms"].iloc[0]) for name in ("p50", "p99")}
    return {
        "table": tick_to_table(drawn, flush) or of_table,
        "screen": tick_to_screen(drawn),
        "parts": parts + on_screen,
    }


def gap_rows(gaps: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a dict a gap of the feed, in order of time: source, reason, started_at and ended_at in epoch milliseconds."""
    return [
        {
            **{name: str(row[name]) for name in ("source", "reason")},
            **{name: epoch_ms(row[name]) for name in ("started_at", "ended_at")},
        }
        for row in gaps.to_dict("records")
    ]


def stage_rows(stages: pd.DataFrame, now: dt.datetime) -> list[dict[str, Any]]:
    """Return a dict a stage: stage, title, state, detail, since.

    A stage whose last sign of life is old is down since then. The stream tells of feed and Kafka too, so without it they
    are unknown, not down.
    """
    records = [{**row, "is_silent": _is_silent(row, now)} for row in stages.to_dict("records")]
    stream_tells = any(row["stage"] == "spark" and row["state"] != "stopped" and not row["is_silent"] for row in records)
    rows = []
    for row in records:
        name, state, since = str(row["stage"]), str(row["state"]), row.get("since")
        detail = "" if row.get("detail") is None else str(row["detail"])
        if row["is_silent"] and state != "stopped":
            state = "down" if stream_tells or name not in ("feed", "kafka") else "unknown"
            since = row["beat_at"]
            # What the feed said of itself stays: the banner tells from it where the data come from.
            kafka = "no sign of life" if stream_tells else "not known while Spark is down"
            detail = {"spark": SPARK_DOWN, "kafka": kafka}.get(name, detail)
        rows.append({"stage": name, "title": TITLES.get(name, name), "state": state, "detail": detail, "since": epoch_ms(since)})
    return rows


def _is_silent(row: dict[Any, Any], now: dt.datetime) -> bool:
    beat = row.get("beat_at")
    return bool(beat is not None and not pd.isna(beat) and now - beat > SILENCE)


def banner_of(stages: list[dict[str, Any]]) -> dict[str, str]:
    """Return kind, title and text of the line that says where the data come from: what the feed says of itself."""
    detail = next((stage["detail"] for stage in stages if stage["stage"] == "feed"), "")
    if not detail:
        return {}
    first, _, rest = detail.partition(", ")
    if detail.startswith("simulated"):
        why = " — no Finnhub key" if "no FINNHUB_API_KEY" in rest else ""
        return {"kind": "simulated", "title": first.upper() + why, "text": rest}
    if detail.startswith("tape"):
        return {"kind": "replay", "title": "REPLAY, not the market of today", "text": detail}
    return {"kind": "live", "title": first, "text": rest}


class Chart(anywidget.AnyWidget):
    """Candles, volume and VWAP of one symbol.

    ``snapshot`` and the ``tail`` that differs from it are together always the whole picture.
    """

    _esm = bundled("chart.js")
    _css = bundled("dashboard.css")
    snapshot: traitlets.Dict[str, Any] = traitlets.Dict({"bars": []}).tag(sync=True)
    tail: traitlets.Dict[str, Any] = traitlets.Dict({"bars": []}).tag(sync=True)
    message = traitlets.Unicode("Waiting for the first bars…").tag(sync=True)
    aged = traitlets.Bool(False).tag(sync=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sent: dict[int, Bar] = {}  # the snapshot's bars by start
        self._known: dict[int, Bar] = {}  # snapshot and tail
        self.shown: tuple[str, str] | None = None

    @property
    def last_start(self) -> int | None:
        """Start of the last bar shown, in epoch milliseconds."""
        return max(self._known, default=None)

    def show_bars(self, symbol: str, width: str, label: str, rows: list[Bar], *, whole: bool) -> None:
        """Show these bars of the symbol: all of them if ``whole``, else the latest, beside those shown already."""
        name = {"symbol": symbol, "width": width}
        is_other = self.shown != (symbol, width)
        if is_other and not whole:
            raise ValueError(f"cannot show a part of {symbol}, {width}: the chart shows {self.shown}")
        given = {row[0]: row for row in rows}
        self._known = dict(sorted((given if whole else self._known | given).items())[-MOST_BARS:])
        changed = [row for start, row in self._known.items() if self._sent.get(start) != row]
        first = min(self._known, default=0)
        is_less = any(start >= first and start not in self._known for start in self._sent)
        with self.hold_sync():
            if is_other or is_less or len(changed) > LONGEST_TAIL:
                self._sent, self.shown, changed = self._known, (symbol, width), []
                self.snapshot = {**name, "label": label, "seconds": duration_ms(width) // 1000, "bars": list(self._known.values())}
            self.tail = {**name, "bars": changed}
            self.message = "" if self._known else f"No bars of {symbol} yet: they appear with its first ticks."


class Board(anywidget.AnyWidget):
    """The last price of every symbol, and the feed's gaps; ``selected`` is the symbol that was clicked."""

    _esm = bundled("board.js")
    rows: traitlets.List[dict[str, Any]] = traitlets.List().tag(sync=True)
    gaps: traitlets.List[dict[str, Any]] = traitlets.List().tag(sync=True)
    selected = traitlets.Unicode("").tag(sync=True)
    aged = traitlets.Bool(False).tag(sync=True)
    clock = traitlets.Int(0).tag(sync=True)


class Strip(anywidget.AnyWidget):
    """The state of the stages, where the data come from, what is wrong, and how long a tick takes.

    Tells when somebody looks at it, and when the page has drawn what was sent before ``shown``.
    """

    _esm = bundled("strip.js")
    stages: traitlets.List[dict[str, Any]] = traitlets.List().tag(sync=True)
    banner: traitlets.Dict[str, str] = traitlets.Dict().tag(sync=True)
    notice: traitlets.Dict[str, str] = traitlets.Dict().tag(sync=True)
    latency: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    shown: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    clock = traitlets.Int(0).tag(sync=True)
