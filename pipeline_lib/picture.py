"""What one load of the dashboard brings: asked for in a thread, without a look at any widget.

It is not a reader of tables: it calls what it is given. `dashboard.py` makes one loader a dashboard and shows its pictures.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import pandas as pd

from pipeline_lib.errors import UnavailableError
from pipeline_lib.records import Commit
from pipeline_lib.widgets import MOST_BARS, Bar, bar_rows, gap_rows, price_rows

log = logging.getLogger(__name__)

# Bars before the tail change when a late tick amends them: all are loaded again now and then.
TAIL_BARS = 30
# A commit touches the last bar or two; what it amends before is in the next poll.
NEWS_BARS = 3

# The budget is of a minute, and reads Spark's account of each batch of it.
BUDGET_EVERY_SECONDS = 5.0

# All there is to say of prices takes a look at the whole day. Where bars are many, that is a tenth of the time at most, and
# what changes with every tick is loaded in between.
PRICES_REST = 10


class LoadBars(Protocol):
    """The last ``limit`` bars of a symbol, in order of time."""

    def __call__(self, symbol: str, width: str = ..., since: dt.datetime | None = ..., limit: int = ...) -> pd.DataFrame: ...


class Commits(Protocol):
    """What tells of commits as they happen, and what is loaded then: `store.watch_commits()`."""

    def connect(self) -> None:
        """Listen from now on; waits for the connection."""

    def fileno(self) -> int:
        """Return the number of the socket that is readable when there is something to hear."""

    def hear(self) -> list[int]:
        """Return the batch_ids told of since this was asked last; does not wait."""

    def close(self) -> None:
        """Listen no more."""

    def load_commits(self, since: float | None) -> list[Commit]:
        """Return the commits after `since`, epoch milliseconds; of None the last one."""

    def load_last_prices(self) -> pd.DataFrame:
        """Return what of the prices changes with every tick."""

    def load_budget(self) -> pd.DataFrame:
        """Return where the time goes up to the table, a row a part."""

    def load_delays(self) -> pd.DataFrame:
        """Return one row: how long ticks take to the table."""


class Loads(NamedTuple):
    """Where pictures come from."""

    bars: LoadBars
    prices: Callable[[], pd.DataFrame]
    stages: Callable[[], pd.DataFrame]
    gaps: Callable[[], pd.DataFrame] | None
    commits: Commits | None


class Ask(NamedTuple):
    """What a picture is to hold.

    ``whole``: all bars of the symbol, not the last ones alone. ``news``: only what a commit changes. ``held``: prices and
    bars stand still, but for a symbol or width that the chart does not show yet (``is_other``).
    """

    symbol: str | None
    width: str
    whole: bool = True
    news: bool = False
    held: bool = False
    is_other: bool = True


class Picture(NamedTuple):
    """What one load brought; None where it was not asked for or failed. ``prices`` are all, ``last_prices`` what changed of them.

    ``commits`` are in it for the first time, ``newest`` is the last of all that are in it. Times are epoch milliseconds.
    """

    ask: Ask
    asked_at: float
    loaded_at: float = 0.0
    bars: list[Bar] | None = None
    prices: list[dict[str, Any]] | None = None
    last_prices: list[dict[str, Any]] | None = None
    gaps: list[dict[str, Any]] | None = None
    stages: pd.DataFrame | None = None
    budget: pd.DataFrame | None = None
    delays: pd.DataFrame | None = None
    commits: list[Commit] | None = None
    newest: Commit | None = None
    fault: Exception | None = None


class Loader:
    """Loads one picture at a time, and remembers which commits the last one held."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads
        self._newest: Commit | None = None
        self._budget_at = self._prices_at = float("-inf")

    def load(self, ask: Ask) -> Picture:
        """Return what is asked for, as far as it could be had; never raises."""
        picture = Picture(ask, now_ms())
        try:
            for part in (self._load_state, self._load_news):
                picture = part(picture)
        except Exception as error:
            if not isinstance(error, UnavailableError):
                log.exception("the dashboard could not load")
            picture = picture._replace(fault=error)
        return picture._replace(loaded_at=now_ms())

    def forget(self) -> None:
        """Begin anew: what is committed up to the next picture is not new in it."""
        self._newest = None

    def _load_state(self, picture: Picture) -> Picture:
        loads = self._loads
        if picture.ask.news:
            return picture
        picture = picture._replace(stages=loads.stages(), gaps=gap_rows(loads.gaps()) if loads.gaps else None)
        if loads.commits is not None and time.monotonic() - self._budget_at > BUDGET_EVERY_SECONDS:
            self._budget_at = time.monotonic()
            picture = picture._replace(budget=loads.commits.load_budget(), delays=loads.commits.load_delays())
        return picture

    def _load_news(self, picture: Picture) -> Picture:
        loads, ask = self._loads, picture.ask
        if not ask.held:
            if loads.commits is not None:
                # In front of what they brought, which is then at least as new.
                commits = loads.commits.load_commits(self._newest.committed_at if self._newest else None)
                is_first, self._newest = self._newest is None, commits[-1] if commits else self._newest
                picture = picture._replace(commits=[] if is_first else commits, newest=self._newest)
            began = time.monotonic()
            if loads.commits is not None and (ask.news or began < self._prices_at):
                picture = picture._replace(last_prices=price_rows(loads.commits.load_last_prices()))
            else:
                picture = picture._replace(prices=price_rows(loads.prices()))
                self._prices_at = time.monotonic() + PRICES_REST * (time.monotonic() - began)
        if ask.symbol and (not ask.held or (ask.whole and ask.is_other)):
            limit = MOST_BARS if ask.whole else NEWS_BARS if ask.news else TAIL_BARS
            picture = picture._replace(bars=bar_rows(loads.bars(ask.symbol, ask.width, limit=limit)))
        return picture


def now_ms() -> float:
    """Return the time, epoch milliseconds."""
    return time.time() * 1000
