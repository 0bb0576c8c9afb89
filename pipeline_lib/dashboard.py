"""The dashboard: a chart of one symbol, a board of all, the state of every stage, kept up to date by one task.

It is not a reader of tables: what it shows comes from the callables it is given, so it can be tried on any frames.
A notebook and the web page (``web/``) make the same object. One task of the kernel's own event loop loads in a thread
and changes the widgets' values; it never displays, so other cells run meanwhile. It polls every second; given ``commits``, it
is told of each commit, and loads at once what that changed.

    >>> Dashboard(load_bars=store.load_bars, load_prices=store.load_prices, load_stages=store.load_stages)
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ipywidgets
import pandas as pd

from pipeline_lib.config import duration_ms
from pipeline_lib.errors import PipelineError, UnavailableError
from pipeline_lib.picture import Ask, Commits, LoadBars, Loader, Loads, Picture, now_ms
from pipeline_lib.records import Commit
from pipeline_lib.screen import ScreenTimes
from pipeline_lib.widgets import (
    TITLES,
    Bar,
    Board,
    Chart,
    Strip,
    banner_of,
    clock_words,
    latency_of,
    stage_rows,
    with_last_prices,
)

log = logging.getLogger(__name__)

WIDTHS = {"10 s": "10 seconds", "1 min": "1 minute", "5 min": "5 minutes", "15 min": "15 minutes", "1 h": "1 hour"}

# Bars before the tail change when a late tick amends them: all are loaded again this often.
WHOLE_EVERY_SECONDS = 60.0
# A page that has not said for so long that it has drawn is hidden, or gone.
PAGE_PATIENCE_SECONDS = 5.0
# A load that takes longer is said on the page.
PATIENCE_SECONDS = 3.0


def _widths(window: str) -> list[tuple[str, str]]:
    """Return the labels and widths that bars of this window can be shown in."""
    narrowest = duration_ms(window)
    wider = [(label, width) for label, width in WIDTHS.items() if duration_ms(width) > narrowest and duration_ms(width) % narrowest == 0]
    own = next((label for label, width in WIDTHS.items() if duration_ms(width) == narrowest), window)
    return [(own, window), *wider]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Dashboard(ipywidgets.VBox):
    """The live dashboard; show it by naming it at the end of a cell.

    Made inside a running event loop (a notebook, Voilà) it starts at once and replaces the dashboard made before it.
    Elsewhere ``await refresh()`` loads once. ``idle_seconds`` makes it rest when no page has looked at it for so long.
    """

    _running: ClassVar[Dashboard | None] = None

    def __init__(
        self,
        *,
        load_bars: LoadBars,
        load_prices: Callable[[], pd.DataFrame],
        load_stages: Callable[[], pd.DataFrame],
        load_gaps: Callable[[], pd.DataFrame] | None = None,
        commits: Commits | None = None,
        symbols: Sequence[str] | None = None,
        window: str = "10 seconds",
        refresh_seconds: float = 1.0,
        idle_seconds: float | None = None,
    ) -> None:
        self._loader = Loader(Loads(load_bars, load_prices, load_stages, load_gaps, commits))
        self._commits, self._times = commits, ScreenTimes()
        self._fixed_symbols = symbols is not None
        self.refresh_seconds, self.idle_seconds = refresh_seconds, idle_seconds
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._news = self._is_asked = self._does_page_speak = False
        self._sent: Commit | None = None  # the last one that is in what was sent
        self._sent_stamp = self._drawn_stamp = 0
        self._sent_at = float("-inf")
        self._up_to_table: tuple[pd.DataFrame, pd.DataFrame] | None = None  # budget and delays, as loaded last
        self._loaded_whole_at = float("-inf")
        self._seen_at = time.monotonic()
        self._down_since: dt.datetime | None = None
        self._good_at: dt.datetime | None = None
        self._paused_since: dt.datetime | None = None

        names = list(symbols or ())
        self.symbol = ipywidgets.Dropdown(options=names, value=names[0] if names else None, tooltip="Symbol")
        self.width = ipywidgets.Dropdown(options=_widths(window), value=window, tooltip="Width of a bar")
        self.pause = ipywidgets.ToggleButton(description="Pause", tooltip="Let prices and bars stand still")
        self.strip, self.chart, self.board = Strip(), Chart(), Board(selected=self.symbol.value or "")
        controls = ipywidgets.HBox([self.symbol, self.width, self.pause]).add_class("sp-controls")
        left = ipywidgets.VBox([controls, self.chart]).add_class("sp-pane")
        right = ipywidgets.VBox([self.board]).add_class("sp-pane").add_class("sp-side")
        super().__init__([self.strip, ipywidgets.HBox([left, right]).add_class("sp-main")])
        self.add_class("sp-dashboard")

        self.symbol.observe(self._symbol_chosen, "value")
        self.board.observe(lambda change: self._choose(change["new"]), "selected")
        self.width.observe(lambda _: self._load_now(), "value")
        self.pause.observe(self._pause_toggled, "value")
        self.strip.on_msg(lambda _, content, __: self._page_said(content))
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self.start()

    def __repr__(self) -> str:
        return "Dashboard()"

    def start(self) -> None:
        """Begin to load, in the running event loop, in place of the dashboard that ran before."""
        if Dashboard._running is not None:
            Dashboard._running.stop()
        Dashboard._running = self
        self.strip.notice = {}
        self._task = asyncio.get_running_loop().create_task(self._run(), name="dashboard")

    def stop(self) -> None:
        """Load no more. What is shown stays, and says that it is no longer live."""
        if Dashboard._running is self:
            Dashboard._running = None
        if self._task is None:
            return
        self._task.cancel()
        self._task = None
        self._stop_listening()
        self._show_aged(True)
        now = _now()
        self.strip.set_trait("clock", 0)
        self.strip.notice = {"kind": "stopped", "text": f"Stopped at {clock_words(now, now)} New York: what you see is from then."}

    @property
    def is_running(self) -> bool:
        """True while the task lives."""
        return self._task is not None and not self._task.done()

    async def refresh(self) -> None:
        """Load all once and show it. What fails is said in words, never raised."""
        await self._refresh(news=False)

    async def _refresh(self, *, news: bool) -> None:
        """Load and show: everything, or with `news` only what a commit changes."""
        ask = self._ask(news)
        self._news = self._news and ask.held and not self.pause.value  # what is committed from now on is told of anew
        asked_at = time.monotonic()
        loading = asyncio.ensure_future(asyncio.to_thread(self._loader.load, ask))
        try:
            while not (await asyncio.wait({loading}, timeout=self.refresh_seconds))[0]:
                self._tick(waiting=time.monotonic() - asked_at)
            self._show(loading.result())
        except Exception as error:
            log.exception("the dashboard could not show what it loaded")
            self._show_fault(error)
        if not news:
            self._tick()

    def _ask(self, news: bool) -> Ask:
        symbol, width = self.symbol.value, self.width.value
        is_other = self.chart.shown != (symbol, width)
        whole = is_other or time.monotonic() - self._loaded_whole_at > WHOLE_EVERY_SECONDS
        return Ask(symbol, width, whole, news and not whole, self.pause.value or not self._is_page_ready(), is_other)

    async def _run(self) -> None:
        poll_at = float("-inf")
        while True:
            self._wake.clear()
            now = time.monotonic()
            if self.idle_seconds is not None and now - self._seen_at >= self.idle_seconds:
                # Until a page looks.
                self._stop_listening()
                self._forget()
                await self._wake.wait()
                poll_at = float("-inf")
                continue
            self._keep_listening()
            is_due, self._is_asked = self._is_asked or now >= poll_at, False
            if is_due:
                poll_at = now + self.refresh_seconds
            if is_due or self._news:
                await self._refresh(news=not is_due)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.0, poll_at - time.monotonic()))

    # commits, told of by PostgreSQL

    def _keep_listening(self) -> None:
        if self._commits is not None and (self._listening is None or self._listening.done()):
            self._listening = asyncio.get_running_loop().create_task(self._listen(self._commits), name="dashboard commits")

    def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None

    async def _listen(self, commits: Commits) -> None:
        """Be told of commits until the connection is lost; the next poll connects again. Polling goes on in any case."""
        loop = asyncio.get_running_loop()
        connecting = asyncio.ensure_future(asyncio.to_thread(commits.connect))
        try:
            await asyncio.shield(connecting)
            socket = commits.fileno()
        except asyncio.CancelledError:

            def leave(connected: asyncio.Future[None]) -> None:
                # Whoever listens again by now has connected anew.
                if connected.exception() is None and self._listening is None:
                    commits.close()

            connecting.add_done_callback(leave)
            raise
        except PipelineError as error:
            log.debug("the dashboard polls: %s", error)
            return
        lost: asyncio.Future[PipelineError] = loop.create_future()
        try:
            loop.add_reader(socket, self._hear, commits, lost)
            log.debug("the dashboard polls: %s", await lost)
        except NotImplementedError:
            log.debug("the dashboard polls: this event loop watches no sockets")
            await loop.create_future()
        finally:
            with contextlib.suppress(NotImplementedError):
                loop.remove_reader(socket)
            commits.close()

    def _hear(self, commits: Commits, lost: asyncio.Future[PipelineError]) -> None:
        try:
            heard = commits.hear()
        except PipelineError as error:
            if not lost.done():
                lost.set_result(error)
            return
        if heard and not self.pause.value:
            self._times.hear(heard, now_ms())
            self._news = True
            if self._sent_stamp == self._drawn_stamp:
                self._wake.set()

    # the page, which says when it has drawn a picture: until then the next one waits, and is then the latest

    def _is_page_ready(self) -> bool:
        """Return whether a picture may be sent: the last one is drawn, or there is no page that would say so."""
        if self._sent_stamp == self._drawn_stamp or not self._does_page_speak:
            return True
        if time.monotonic() - self._sent_at > PAGE_PATIENCE_SECONDS:
            self._does_page_speak = False
            self._times.forget()
            return True
        return False

    def _page_said(self, content: dict[str, Any]) -> None:
        self._page_seen()
        if content.get("kind") != "drawn" or content.get("stamp") != self._sent_stamp:
            return
        self._does_page_speak, self._drawn_stamp = True, self._sent_stamp
        if content.get("seen"):
            self._times.draw(self._sent_stamp, now_ms())
        else:
            self._times.forget()
        if self._news:
            self._wake.set()

    def _stamp(self, picture: Picture) -> None:
        """Send the page a number that it says back when it has drawn what was sent before, if a commit is new in that."""
        if picture.newest is None or picture.newest == self._sent:
            return
        self._sent = picture.newest
        self._sent_stamp += 1
        self._sent_at = time.monotonic()
        self._times.send(self._sent_stamp, picture.commits or (), picture.asked_at, picture.loaded_at)
        self.strip.shown = {"stamp": self._sent_stamp, "run": picture.newest.run_id, "batch": picture.newest.batch_id}

    def _forget(self) -> None:
        """Count no commit that nobody could have seen in time."""
        self._loader.forget()
        self._times.forget()

    # what is shown

    def _show(self, picture: Picture) -> None:
        now = _now()
        if picture.stages is not None:
            self.strip.stages = stage_rows(picture.stages, now)
            self.strip.banner = banner_of(self.strip.stages)
        if picture.gaps is not None:
            self.board.gaps = picture.gaps
        if picture.budget is not None and picture.delays is not None:
            self._up_to_table = picture.budget, picture.delays
        if self._up_to_table is not None and not picture.ask.news:
            self.strip.latency = latency_of(*self._up_to_table, self._times.drawn(now_ms()), now)
        # What was asked for before the pause and comes after it is left out, too.
        held, ask = self.pause.value, picture.ask
        if picture.prices is not None and not held:
            self.board.rows = picture.prices
            self._offer_symbols([row["symbol"] for row in picture.prices])
        if picture.last_prices is not None and not held:
            self.board.rows = with_last_prices(self.board.rows, picture.last_prices)
        if picture.bars is not None and ask.symbol is not None and not (held and self.chart.shown == (ask.symbol, ask.width)):
            self._show_bars(ask.symbol, ask.width, picture.bars, ask.whole)
        if picture.fault is not None:
            self._show_fault(picture.fault)
            return
        if not held and not ask.held:
            self._stamp(picture)
        self._good_at, self._down_since = now, None
        self._show_aged(False)
        self.strip.notice = self._pause_notice(now)

    def _show_bars(self, symbol: str, width: str, rows: list[Bar], whole: bool) -> None:
        last = self.chart.last_start
        if not whole and rows and last is not None and rows[0][0] > last:
            # The latest bars do not reach back to those shown: there is a hole, so the next load is a whole one.
            self._loaded_whole_at = float("-inf")
            return
        label = next(label for label, value in self.width.options if value == width)
        if whole:
            self._loaded_whole_at = time.monotonic()
        self.chart.show_bars(symbol, width, label, rows, whole=whole)

    def _show_fault(self, error: Exception) -> None:
        now = _now()
        self._show_aged(True)
        if not isinstance(error, UnavailableError):
            words = str(error) if isinstance(error, PipelineError) else f"cannot load: {type(error).__name__}: {error}"
            self.strip.notice = {"kind": "fault", "text": words}
            return
        self._down_since = self._down_since or now
        shown = f" What you see is from {clock_words(self._good_at, now)}." if self._good_at else ""
        text = f"PostgreSQL: down since {clock_words(self._down_since, now)} New York.{shown}"
        self.strip.notice = {"kind": "down", "text": text, "detail": str(error)}
        # A page that was opened just now has heard of no stage yet.
        known = self.strip.stages or [{"stage": name, "title": title, "detail": ""} for name, title in TITLES.items()]
        self.strip.stages = [self._stage_without_database(stage) for stage in known]

    def _stage_without_database(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Return the stage as far as it is known while PostgreSQL, which holds every stage's state, is down."""
        if stage["stage"] == "postgres":
            since = round((self._down_since or _now()).timestamp() * 1000)
            return {**stage, "state": "down", "detail": "does not answer; if it does not come back: `stocks up`", "since": since}
        detail = stage["detail"] if stage["stage"] == "feed" else "not known while PostgreSQL is down"
        return {**stage, "state": "unknown", "detail": detail, "since": None}

    def _show_aged(self, aged: bool) -> None:
        self.chart.aged = self.board.aged = aged

    def _tick(self, waiting: float = 0.0) -> None:
        """Tell the page the time, and that an answer is long in coming if it is."""
        now = round(time.time() * 1000)
        self.strip.clock = self.board.clock = now
        if waiting > PATIENCE_SECONDS and self._down_since is None:
            self._show_aged(True)
            self.strip.notice = {"kind": "down", "text": f"PostgreSQL has not answered for {waiting:.0f} s."}

    def _offer_symbols(self, names: list[str]) -> None:
        """Offer these symbols beside those offered, unless they were given; the choice stays."""
        if self._fixed_symbols or set(names) <= set(self.symbol.options):
            return
        chosen = self.symbol.value
        self.symbol.options = sorted({*self.symbol.options, *names})
        self.symbol.value = chosen or names[0]

    def _choose(self, symbol: str) -> None:
        if symbol in self.symbol.options:
            self.symbol.value = symbol

    def _symbol_chosen(self, change: dict[str, Any]) -> None:
        self.board.selected = change["new"] or ""
        self._load_now()

    def _load_now(self) -> None:
        self._is_asked = True
        self._wake.set()

    def _pause_toggled(self, change: dict[str, Any]) -> None:
        self.pause.description = "Go on" if change["new"] else "Pause"
        now = _now()
        self._paused_since = now if change["new"] else None
        self.strip.notice = self._pause_notice(now)
        self._forget()
        self._load_now()

    def _pause_notice(self, now: dt.datetime) -> dict[str, str]:
        if self._paused_since is None:
            return {}
        return {
            "kind": "paused",
            "text": f"Paused since {clock_words(self._paused_since, now)} New York: prices and bars stand still until you go on.",
        }

    def _page_seen(self) -> None:
        was_resting = self.idle_seconds is not None and time.monotonic() - self._seen_at >= self.idle_seconds
        self._seen_at = time.monotonic()
        if was_resting:
            self._wake.set()
