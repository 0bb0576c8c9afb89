"""Compare the bars that the topic comes to with the stored ones: the second opinion's verdict.

It is given what recompute.py found and a snapshot of the tables, and reads neither Kafka nor PostgreSQL itself. Called by
audit.py.

Prices, counts and times are compared exactly. Sums of fractions, vwap and mean_price to a relative 1e-9, since
different cuts of one bar give different last digits; price_stddev likewise, or to 1e-9 of the price.
is_final, revision, late_tick_count and updated_at depend on when ticks came, and are no part of it.

Where retention has removed messages that were consumed, a bar that the table gives more ticks than the topic still has is
*cut*: it cannot be known any more, and is left out by name and number. It is not out of sight, though. What is left of it
has to be within it (its high no lower, its sums no smaller), its open and close are compared if their messages are still
there, and the ticks that all cut bars have lost are, together, those that the partitions have lost. Every other bar is
compared in full, a bar that has lost nothing too, whatever partition it is of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from pipeline_lib.recompute import Place, Recomputed

RELATIVE_TOLERANCE = 1e-9

_EXACT = (
    "window_end",
    "open",
    "high",
    "low",
    "close",
    "tick_count",
    "trade_count",
    "poll_count",
    "first_event_time",
    "open_partition",
    "open_offset",
    "last_event_time",
    "close_partition",
    "close_offset",
    "last_receipt_time",
    "previous_close",
)
_CLOSE = ("volume", "notional", "vwap", "mean_price")
# What a tick more can only make larger.
_NO_LESS = (
    "high",
    "tick_count",
    "trade_count",
    "poll_count",
    "last_event_time",
    "last_receipt_time",
    "previous_close",
    "volume",
    "notional",
)
MAX_SHOWN = 20


class Difference(NamedTuple):
    """One value of one bar that is not what the topic says. ``expected`` is recomputed, ``found`` is stored."""

    symbol: str
    window_start: str
    column: str
    expected: Any
    found: Any


class VerifyReport(NamedTuple):
    """What the comparison found. ``left_out`` are bars that retention has cut, and ``read_from`` is where reading began.

    ``accounts`` are the partitions whose counts were compared: those that were read whole. ``ids_twice`` is how many of the
    messages read had an id that came before, and ``ids_shown`` some of them: (partition, offset, id). That is no difference:
    the topic is the truth, and the table counts what it holds. ``partitions`` are the stored accounts: of each partition
    offsets and counts, and the holes that are left between them.
    """

    messages: int
    good: int
    dead_letters: int
    bars: int
    differing_bars: int
    differences: list[Difference]
    account_faults: list[str]
    left_out: list[str]
    offsets: dict[int, int]
    accounts: list[int]
    read_from: dict[int, int]
    unread: int  # messages after the stored offsets: neither compared nor wrong
    ids_twice: int
    ids_shown: list[tuple[int, int, str]]
    partitions: list[dict[str, int]]

    @property
    def equal(self) -> bool:
        """Whether the table is what the topic says, bar for bar, and every message is accounted for."""
        return not self.differing_bars and not self.account_faults

    def __str__(self) -> str:
        return (
            f"{self.messages:,} messages: {self.good:,} ticks and {self.dead_letters:,} dead letters; "
            f"{self.bars:,} bars compared, {self.differing_bars:,} differ"
        )


class Comparison(NamedTuple):
    """What comparing some bars found: how many were compared and differ, the first differences, and the bars that are cut.

    ``lost`` is how many ticks the table has of cut bars that the topic has no more.
    """

    bars: int
    differing_bars: int
    differences: list[Difference]
    left_out: list[str]
    lost: int


def index_bars(stored: pd.DataFrame, window_ms: int) -> dict[Place, dict[str, Any]]:
    """Return the rows of stock_aggregates by symbol and window start; times become epoch milliseconds.

    Of two rows with one start, which no stream writes, it has one whose end is wrong, so that this is seen.
    """
    stored = stored.copy()
    for name in stored.columns:
        if isinstance(stored[name].dtype, pd.DatetimeTZDtype):
            stored[name] = stored[name].astype("int64") // 1_000
    rows: dict[Place, dict[str, Any]] = {}
    for row in stored.to_dict("records"):
        place = row["symbol"], row["window_start"]
        if place not in rows or row["window_end"] != row["window_start"] + window_ms:
            rows[place] = row
    return rows


def compare_bars(
    recomputed: Recomputed, found: dict[Place, dict[str, Any]], removed: dict[int, int], window_ms: int, places: Iterable[Place]
) -> Comparison:
    """Return what comparing these bars found.

    `removed` are the partitions that retention has shortened, each with the first offset that it still holds.
    """
    compared = differing = lost = 0
    differences: list[Difference] = []
    left_out = []
    for symbol, start in sorted(places):
        bar, row = recomputed.bars.get((symbol, start)), found.get((symbol, start))
        expected = {**bar.row(), "window_end": start + window_ms} if bar else None
        missing = 0 if row is None else int(row["tick_count"] + row["poll_count"]) - (bar.messages if bar else 0)
        cut = bool(removed) and missing > 0
        if row is not None and cut:
            faults = list(_compare_cut((symbol, start), expected, row, removed, window_ms))
            lost += missing
            if not faults:
                left_out.append(f"{symbol} {_utc(start)}")
                continue
        else:
            faults = list(_compare((symbol, start), expected, row))
        compared += 1
        differing += bool(faults)
        differences += faults[: max(0, MAX_SHOWN - len(differences))]
    return Comparison(compared, differing, differences, left_out, lost)


def compare_accounts(counts: dict[int, tuple[int, int]], offsets: pd.DataFrame, lost: int | None) -> list[str]:
    """Return what is wrong with the accounts of partitions that were read whole, each in a line.

    `offsets` are such rows of stream_offsets, with two columns more: `kept_dead_letters`, how many rows there are in
    dead_letters, and `earliest`, the first offset that the partition still holds. `lost` is how many ticks the cut bars
    have lost, None where not every bar was looked at.
    """
    faults = []
    gone = 0
    for row in offsets.to_dict("records"):
        partition = row["partition"]
        stored, ours = (row["good_count"], row["dead_letter_count"]), counts.get(partition, (0, 0))
        gone += stored[0] - ours[0]
        is_short = row["earliest"] > row["first_offset"]
        if stored != ours and not (is_short and stored[0] >= ours[0] and stored[1] >= ours[1]):
            faults.append(f"partition {partition}: {stored[0]} good and {stored[1]} dead are stored, the topic has {ours[0]} and {ours[1]}")
        kept, pruned = row["kept_dead_letters"], row["pruned_letter_count"]
        if kept + pruned != (stored[1] if is_short else ours[1]):
            faults.append(f"partition {partition}: {kept} dead letters are kept, {pruned} pruned, the topic has {ours[1]}")
    if not faults and lost is not None and lost != gone:
        faults.append(f"bars cut by retention lack {lost} ticks, the partitions have lost {gone}")
    return faults


def _compare_cut(
    place: Place, left: dict[str, Any] | None, found: dict[str, Any], removed: dict[int, int], window_ms: int
) -> Iterable[Difference]:
    """Yield what is wrong with a bar of which some ticks are gone, by what is left of it."""
    symbol, start = place[0], _utc(place[1])
    if found["window_end"] != place[1] + window_ms:
        yield Difference(symbol, start, "window_end", place[1] + window_ms, found["window_end"])
    for end in ("open", "close"):
        partition, offset = found[f"{end}_partition"], found[f"{end}_offset"]
        time = found["first_event_time" if end == "open" else "last_event_time"]
        if partition in removed and offset < removed[partition]:
            continue
        # Its message is still there: it is the end of what is left, too.
        names = (end, f"{end}_partition", f"{end}_offset", "first_event_time" if end == "open" else "last_event_time")
        ours = tuple(left[name] for name in names) if left else None
        if ours != (found[end], partition, offset, time):
            yield Difference(symbol, start, end, ours, (found[end], partition, offset, time))
    if left is None:
        return
    for column in _NO_LESS:
        ours, theirs = _value(left[column]), _value(found[column])
        if ours is not None and (theirs is None or (theirs < ours and not _near(ours, theirs, 0.0))):
            yield Difference(symbol, start, column, f"at least {ours}", theirs)
    for column in ("low", "first_event_time"):
        if found[column] > left[column]:
            yield Difference(symbol, start, column, f"at most {left[column]}", found[column])


def _compare(place: Place, expected: dict[str, Any] | None, found: dict[str, Any] | None) -> Iterable[Difference]:
    symbol, start = place[0], _utc(place[1])
    if expected is None or found is None:
        yield Difference(symbol, start, "bar", "present" if expected else "absent", "present" if found else "absent")
        return
    for column in _EXACT:
        if _value(expected[column]) != _value(found[column]):
            yield Difference(symbol, start, column, expected[column], found[column])
    for column in (*_CLOSE, "price_stddev"):
        ours, theirs = _value(expected[column]), _value(found[column])
        scale = expected["high"] if column == "price_stddev" else 0.0
        if (ours is None) != (theirs is None) or (ours is not None and not _near(ours, theirs, scale)):
            yield Difference(symbol, start, column, ours, theirs)

    # Of one price there is no price_stddev, and the sum it would be made of is nothing.
    if expected["tick_count"] < 2 and not _near(0.0, found["square_deviation"], expected["high"] ** 2):
        yield Difference(symbol, start, "square_deviation", 0.0, found["square_deviation"])


def _near(ours: float, theirs: float, scale: float) -> bool:
    return math.isclose(ours, theirs, rel_tol=RELATIVE_TOLERANCE, abs_tol=RELATIVE_TOLERANCE * scale)


def _value(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _utc(milliseconds: int) -> str:
    return pd.Timestamp(milliseconds, unit="ms", tz="UTC").strftime("%Y-%m-%d %H:%M:%S")
