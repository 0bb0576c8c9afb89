"""What the figures must reach and what they aim at, on two cores with all guarantees on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Row = dict[str, Any]

OF_MACHINE = ("cores", "processor", "memory_gb", "system", "load_before", "load_after")


class Target(NamedTuple):
    """A figure by name, the rows of a part that have it, and its bounds as a person reads them."""

    name: str
    must: str
    aim: str
    part: str
    matches: Callable[[Row], bool]
    value: Callable[[Row], float | None]
    digits: int = 0


def _drained(ticks: int) -> Callable[[Row], bool]:
    return lambda row: row["ticks"] == ticks and row["message"] == "small"


def _at(rate: float) -> Callable[[Row], bool]:
    return lambda row: row["rate"] == rate


def _stream(name: str) -> Callable[[Row], float]:
    return lambda row: float(row["stream"][name])


def _always(row: Row) -> bool:
    return True


def _plain(name: str) -> Callable[[Row], float]:
    return lambda row: float(row[name])


TARGETS = (
    Target("drain of 4 M small ticks, s", "18", "13", "drain", _drained(4_000_000), _stream("seconds"), 1),
    Target("drain of 1 M small ticks, s", "11", "9", "drain", _drained(1_000_000), _stream("seconds"), 1),
    Target("memory of the stream in the drain of 4 M, MB", "1,200", "800", "drain", _drained(4_000_000), _stream("peak_rss_mb")),
    Target("live 1,000/s, entry to table, p50, ms", "250", "120", "live", _at(1_000), _stream("p50_ms")),
    Target("live 1,000/s, p99, ms", "450", "250", "live", _at(1_000), _stream("p99_ms")),
    Target("live 10,000/s, p50, ms", "300", "150", "live", _at(10_000), _stream("p50_ms")),
    Target("live 10,000/s, p99, ms", "600", "350", "live", _at(10_000), _stream("p99_ms")),
    Target("start of `stocks stream` to the first micro-batch, s", "6", "4", "start", _always, _plain("seconds"), 1),
    Target(
        "`stocks produce` from a tape of Parquet, ticks/s",
        "35,000",
        "60,000",
        "produce",
        lambda row: row["tape"] == "parquet",
        _plain("ticks_per_s"),
    ),
    Target("`stocks verify` of 1 M, s", "15", "8", "verify", lambda row: row["ticks"] == 1_000_000, _plain("seconds"), 1),
    Target("`make run`, second start, to the first live bar, s", "20", "12", "page", _always, _plain("live_bar_seconds"), 1),
    Target("cost of accounting on a clean stream, %", "5", "2", "accounting", _always, _plain("cost_percent"), 1),
    Target("table to screen, p50, ms", "150", "60", "screen", _always, _plain("p50_ms")),
    Target("table to screen, p99, ms", "500", "200", "screen", _always, _plain("p99_ms")),
)
