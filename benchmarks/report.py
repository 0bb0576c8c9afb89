"""The figures of all parts in results.json, merged by part, and as tables in results.md. It measures nothing."""

from __future__ import annotations

import datetime as dt
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import plots, targets

Rows = list[dict[str, Any]]


def keep(folder: Path, part: str, rows: Rows, machine: dict[str, Any]) -> list[str]:
    """Put a part's rows in place of those that results.json has of it, and write results.md anew; return the part's lines."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    results = json.loads(file.read_text("utf-8")) if file.exists() else {}
    parts = results.get("parts", {})
    parts[part] = {"measured_at": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC", "machine": machine, "rows": rows}
    file.write_text(json.dumps({"parts": parts}, indent=1) + "\n", "utf-8")
    plots.draw(part, rows, folder)
    (folder / "results.md").write_text("\n".join(lines(parts)) + "\n", "utf-8")
    return section(part, parts[part])


def lines(parts: dict[str, Any]) -> list[str]:
    """Return the lines of results.md."""
    said = [
        "# What was measured",
        "",
        "By `make bench`, on the real programs. Every table was verified; a wrong one would have voided its run.",
        "",
    ]
    said += ["| figure | min | median | max | must | aim | runs |", "|---|--:|--:|--:|--:|--:|--:|"]
    for target in targets.TARGETS:
        rows = [row for row in parts.get(target.part, {}).get("rows", []) if target.matches(row)]
        found = [value for value in (target.value(row) for row in rows) if value is not None]
        cells = [f"{f(found):,.{target.digits}f}" for f in SPREAD] if found else ["-"] * 3
        said.append(f"| {target.name} | {' | '.join(cells)} | {target.must} | {target.aim} | {len(found)} |")
    for name, part in parts.items():
        said += ["", *section(name, part)]
    return said


def section(name: str, part: dict[str, Any]) -> list[str]:
    """Return the lines of one part."""
    said = [f"## {name}", "", described(part), "", *TABLES.get(name, table)(part["rows"])]
    if name in plots.PICTURES:
        said += ["", f"![{name}]({name}.svg); the lines are what it must be, dotted what it aims at"]
    return said


SPREAD: tuple[Callable[[list[float]], float], ...] = (min, statistics.median, max)


def described(part: dict[str, Any]) -> str:
    """Return when and on what a part was measured."""
    machine = part["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in machine if name not in targets.OF_MACHINE)
    load = ", ".join(f"{' '.join(map(str, machine[f'load_{when}']))} {when}" for when in ("before", "after"))
    return (
        f"{part['measured_at']}; {machine['cores']} cores of {machine['processor']}, {machine['memory_gb']} GB, {machine['system']}; "
        f"{versions}. Load averages {load}."
    )


def spread(values: list[float | None], digits: int = 1) -> str:
    """Return median and range of the values that there are."""
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    low, middle, high = (f"{f(found):,.{digits}f}" for f in SPREAD)
    return f"{middle} ({low} to {high})" if len(found) > 1 else middle


def grouped(rows: Rows, *names: str) -> dict[tuple[Any, ...], Rows]:
    """Return the rows by the values of these fields."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def markdown(heads: list[str], body: list[list[str]]) -> list[str]:
    """Return the lines of a table whose first column is words."""
    rule = "|".join(["---", *["--:"] * (len(heads) - 1)])
    return [f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in body)]


def table(rows: Rows) -> list[str]:
    """Return a table of whatever plain numbers the rows have: median and range."""
    names = [name for name, value in rows[0].items() if isinstance(value, int | float)]
    return markdown(["figure", "median (range)"], [[name, spread([row[name] for row in rows])] for name in names])


def drain_table(rows: Rows) -> list[str]:
    """Return the drains: the floor, the loop and the stream of each load."""
    heads = [
        "drain",
        "s",
        "to the last row, s",
        "ticks/s",
        "ticks/s running",
        "MB/s",
        "processor s",
        "peak RSS, MB",
        "of the floor",
        "of the loop",
    ]
    body = []
    for group in grouped(rows, "ticks", "message").values():
        first = group[0]
        load = f"{first['ticks']:,} {first['message']}, {first['bytes'] / first['ticks']:.0f} bytes"
        for name in ("floor", "loop", "stream"):
            runs = [{**row[name], **{key: row.get(key) for key in ("stream_to_floor", "stream_to_loop")}} for row in group if name in row]
            if not runs:
                continue
            ratios = [spread([run[key] for run in runs], 2) if name == "stream" else "" for key in ("stream_to_floor", "stream_to_loop")]
            fields = (
                ("seconds", 1),
                ("last_row_seconds", 1),
                ("ticks_per_s", 0),
                ("running_ticks_per_s", 0),
                ("mb_per_s", 1),
                ("cpu_seconds", 1),
            )
            cells = [spread([run.get(key) for run in runs], digits) for key, digits in (*fields, ("peak_rss_mb", 0))]
            body.append([f"{load}: {name}", *cells, *ratios])
    return markdown(heads, body)


def live_table(rows: Rows) -> list[str]:
    """Return the live runs, and where the time goes."""
    body = []
    for (rate,), group in grouped(rows, "rate").items():
        for name in ("loop", "stream"):
            if runs := [row[name] for row in group if name in row]:
                cells = [spread([run[key] for run in runs], 0) for key in ("p50_ms", "p99_ms", "max_ms", "ticks_per_s")]
                body.append([f"{rate:,.0f}/s: {name}", *cells])
    said = markdown(["live", "p50, ms", "p99, ms", "max, ms", "ticks/s"], body)
    for (rate,), group in grouped(rows, "rate").items():
        for key, title in (("way_ms", "way of a tick"), ("batch_ms", "micro-batch")):
            names = group[0]["stream"][key]
            said += [
                "",
                *markdown(
                    [f"{title} at {rate:,.0f}/s, median", "ms"], [[n, spread([r["stream"][key].get(n) for r in group])] for n in names]
                ),
            ]
    return said


def produce_table(rows: Rows) -> list[str]:
    """Return what publishing each kind of tape took, and the bare client beside it."""
    heads = {
        "ticks_per_s": ("ticks/s", 0),
        "cpu_us_a_tick": ("µs of processor a tick, with the start", 1),
        "seconds": ("s", 1),
        "peak_rss_mb": ("peak RSS, MB", 0),
        "bare_ticks_per_s": ("bare client, ticks/s", 0),
        "bare_cpu_us_a_tick": ("bare client, µs", 1),
        "of_bare": ("of the bare client", 2),
    }
    body = [
        [f"{kind}, {group[0]['bytes_a_tick']:.0f} bytes", *(spread([row.get(name) for row in group], heads[name][1]) for name in heads)]
        for (kind,), group in grouped(rows, "tape").items()
    ]
    return markdown(["tape", *(head for head, _ in heads.values())], body)


TABLES: dict[str, Callable[[Rows], list[str]]] = {"drain": drain_table, "live": live_table, "produce": produce_table}
