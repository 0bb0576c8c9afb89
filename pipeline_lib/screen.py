"""From the table to the screen: when each commit was heard of, loaded and drawn, kept for a minute.

It knows no clock but the times that it is given, epoch milliseconds, and touches neither database nor widget. Called by
dashboard.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pipeline_lib.records import Commit

KEPT_MS = 60_000

# Of a batch its first and its last tick are known; the others are taken to be spread evenly between, at so many points.
POINTS = 20


class Drawn(NamedTuple):
    """A commit that is on the screen: when it was heard of (None where it was found by polling), asked for, loaded and drawn."""

    commit: Commit
    heard_at: float | None
    asked_at: float
    loaded_at: float
    drawn_at: float


class ScreenTimes:
    """The commits of the last minute that a page has drawn. A commit counts when a picture is drawn that holds it."""

    def __init__(self) -> None:
        self._heard: dict[int, float] = {}  # by batch_id
        self._sent: dict[int, list[Drawn]] = {}  # by stamp; drawn_at is still to come
        self._drawn: deque[Drawn] = deque()

    def hear(self, batch_ids: Iterable[int], at: float) -> None:
        """Note that PostgreSQL has told of these commits."""
        self._heard = {number: then for number, then in self._heard.items() if then > at - KEPT_MS}
        self._heard.update(dict.fromkeys(batch_ids, at))

    def send(self, stamp: int, commits: Iterable[Commit], asked_at: float, loaded_at: float) -> None:
        """Note that a picture with this stamp, which holds these commits for the first time, goes to the page."""
        # What no page has drawn for so long, none will.
        self._sent = {number: sent for number, sent in self._sent.items() if sent and sent[0].loaded_at > loaded_at - KEPT_MS}
        self._sent[stamp] = [Drawn(commit, self._heard.pop(commit.batch_id, None), asked_at, loaded_at, 0.0) for commit in commits]

    def draw(self, stamp: int, at: float) -> None:
        """Note that the page has drawn the picture of this stamp, and so what earlier ones held."""
        for sent in [number for number in self._sent if number <= stamp]:
            self._drawn.extend(each._replace(drawn_at=at) for each in self._sent.pop(sent))
        while self._drawn and self._drawn[0].drawn_at < at - KEPT_MS:
            self._drawn.popleft()

    def forget(self) -> None:
        """Leave out what is under way: nobody looks, so nothing can be said of when it would have been seen."""
        self._sent.clear()
        self._heard.clear()

    def drawn(self, now: float) -> list[Drawn]:
        """Return the commits that were drawn in the minute before now."""
        return [each for each in self._drawn if each.drawn_at >= now - KEPT_MS]


def table_to_screen(drawn: Sequence[Drawn]) -> dict[str, float]:
    """Return median and 99th percentile of the time from commit to screen, as p50 and p99; nothing of no commit."""
    return percentiles([(each.drawn_at - each.commit.committed_at, 1.0) for each in drawn])


def tick_to_screen(drawn: Sequence[Drawn]) -> dict[str, float]:
    """Return median and 99th percentile of the time from a tick's receipt to the screen, as p50 and p99; nothing of no tick."""
    return _delays([(each.commit, each.drawn_at) for each in drawn])


def tick_to_table(drawn: Sequence[Drawn], flush_ms: float) -> dict[str, float]:
    """Return the same to the table, for the same ticks: to the commit's time, and what its flush takes beyond that."""
    return _delays([(each.commit, min(each.drawn_at, each.commit.committed_at + flush_ms)) for each in drawn])


def _delays(reached: Iterable[tuple[Commit, float]]) -> dict[str, float]:
    points = []
    for commit, at in reached:
        first, last = commit.first_receipt_time, commit.last_receipt_time
        if first is None or last is None:
            continue
        shortest, longest = at - last, at - first
        points += [(shortest + (longest - shortest) * (n + 0.5) / POINTS, commit.ticks / POINTS) for n in range(POINTS)]
    return percentiles(points)


def screen_parts(drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    """Return what each part took between commit and screen, of the mean tick and at most; nothing of no commit.

    ``notify`` begins in the transaction, where the commit's time is read, so the flush is in it.
    """
    ticks = sum(each.commit.ticks for each in drawn)
    if not ticks:
        return []
    took = [_parts_of(each) for each in drawn]
    return [
        {
            "part": part,
            "mean": sum(each[place] * one.commit.ticks for each, one in zip(took, drawn, strict=True)) / ticks,
            "most": max(each[place] for each in took),
        }
        for place, part in enumerate(("notify", "wait for the page", "load", "draw"))
    ]


def _parts_of(each: Drawn) -> tuple[float, ...]:
    """Return the milliseconds of each part of one commit; a load that began before the commit, and holds it, waited for nothing."""
    heard = max(each.commit.committed_at, min(each.heard_at or each.asked_at, each.loaded_at))
    asked = max(heard, each.asked_at)
    times = (each.commit.committed_at, heard, asked, each.loaded_at, each.drawn_at)
    return tuple(later - sooner for sooner, later in pairwise(times))


def percentiles(points: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Return the weighted median and 99th percentile of (value, weight) pairs as p50 and p99; nothing of no pair."""
    ordered = sorted(points)
    total, so_far = sum(weight for _, weight in ordered), 0.0
    found: dict[str, float] = {}
    for value, weight in ordered:
        so_far += weight
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            if name not in found and so_far >= share * total * (1 - 1e-9):
                found[name] = value
    return found
