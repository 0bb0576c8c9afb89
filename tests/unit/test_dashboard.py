"""The dashboard by its traits: generated frames go in, and what the browser would draw is read. No page, no database."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import time
from collections.abc import Callable, Iterator

import pandas as pd
import pytest

from pipeline_lib.dashboard import Dashboard
from pipeline_lib.errors import UnavailableError
from pipeline_lib.records import Commit
from pipeline_lib.widgets import LONGEST_TAIL, Chart, banner_of, bar_rows, price_rows, stage_rows, with_last_prices

START = pd.Timestamp("2026-03-02 14:30:00", tz="UTC")
WINDOW = pd.Timedelta(seconds=10)


def make_bars(symbol: str = "AAPL", count: int = 5, first: int = 0) -> pd.DataFrame:
    """Bars at +0 s, +10 s, …; the price of bar i is 100 + i, and the last bar is not final."""
    index = range(first, first + count)
    prices = [100.0 + i for i in index]
    return pd.DataFrame(
        {
            "symbol": symbol,
            "window_start": [START + i * WINDOW for i in index],
            "window_end": [START + (i + 1) * WINDOW for i in index],
            "open": prices,
            "high": prices,
            "low": prices,
            "close": prices,
            "volume": 10.0,
            "vwap": prices,
            "is_final": [i < count - 1 for i in range(count)],
        }
    )


class Frames:
    """What the dashboard is given to load; a test changes it while the dashboard runs."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.bars = {"AAPL": make_bars("AAPL"), "<b>X</b>": make_bars("<b>X</b>", 3)}
        self.asked: list[tuple[str, str, int]] = []
        self.price = 101.5
        self.beat_age = dt.timedelta(seconds=1)

    def load_bars(self, symbol: str, width: str = "10 seconds", since: dt.datetime | None = None, limit: int = 500) -> pd.DataFrame:
        self._fail()
        self.asked.append((symbol, width, limit))
        return self.bars[symbol].tail(limit)

    def load_prices(self) -> pd.DataFrame:
        self._fail()
        now = pd.Timestamp.now("UTC")
        row = {"price": self.price, "change": None, "change_pct": float("nan"), "volume": 10.0}
        times = {"event_time": START, "receipt_time": now, "updated_at": now}
        return pd.DataFrame([{"symbol": symbol, **row, **times} for symbol in self.bars])

    def load_stages(self) -> pd.DataFrame:
        self._fail()
        now = pd.Timestamp.now("UTC")
        detail = {"feed": "simulated market, 50 ticks/s; no FINNHUB_API_KEY"}
        return pd.DataFrame(
            [
                {"stage": stage, "state": "running", "detail": detail.get(stage, ""), "since": START, "beat_at": now - self.beat_age}
                for stage in ("feed", "kafka", "spark", "postgres")
            ]
        )

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault


class Told:
    """Commits that a test tells of: what the dashboard is given of store.watch_commits(), over a socket of its own."""

    def __init__(self, frames: Frames) -> None:
        self.frames, self.fault = frames, UnavailableError("cannot use PostgreSQL: no answer")
        self.commits: list[Commit] = []
        self.is_away = False
        self._far: socket.socket | None = None
        self._near: socket.socket | None = None

    def tell(self) -> None:
        """Commit a micro-batch, and tell of it whoever listens."""
        now = time.time() * 1000
        self.commits.append(Commit("run", len(self.commits), now, 10, now - 200, now - 100))
        if self._far is not None:
            self._far.send(b".")

    def lose(self) -> None:
        """Let the connection go."""
        assert self._far is not None
        self._far.close()

    @property
    def is_heard(self) -> bool:
        return self._near is not None

    def connect(self) -> None:
        if self.is_away:
            raise self.fault
        self._near, self._far = socket.socketpair()

    def fileno(self) -> int:
        assert self._near is not None
        return self._near.fileno()

    def hear(self) -> list[int]:
        assert self._near is not None
        told = len(self._near.recv(100))
        if not told:
            raise self.fault
        return [commit.batch_id for commit in self.commits[-told:]]

    def close(self) -> None:
        for each in (self._near, self._far):
            if each is not None:
                each.close()
        self._near = self._far = None

    def load_commits(self, since: float | None) -> list[Commit]:
        return self.commits[-1:] if since is None else [commit for commit in self.commits if commit.committed_at > since]

    def load_last_prices(self) -> pd.DataFrame:
        return self.frames.load_prices()[["symbol", "price", "event_time", "receipt_time", "updated_at"]]

    def load_budget(self) -> pd.DataFrame:
        parts = [("spark", "read, parse, aggregate", True, 90.0, 120.0), ("postgres", "commit", True, 10.0, 12.0)]
        return pd.DataFrame(parts, columns=["stage", "part", "is_on_way", "mean_ms", "most_ms"])

    def load_delays(self) -> pd.DataFrame:
        return pd.DataFrame([{"until": pd.Timestamp.now("UTC"), "p50_ms": 230.0, "p99_ms": 410.0}])


@pytest.fixture
def frames() -> Frames:
    return Frames()


@pytest.fixture
def make(frames: Frames) -> Iterator[Callable[..., Dashboard]]:
    made: list[Dashboard] = []

    def make_dashboard(**options: object) -> Dashboard:
        arguments = {"symbols": list(frames.bars), "refresh_seconds": 0.01, **options}
        dashboard = Dashboard(
            load_bars=frames.load_bars,
            load_prices=frames.load_prices,
            load_stages=frames.load_stages,
            **arguments,  # type: ignore[arg-type]
        )
        made.append(dashboard)
        return dashboard

    yield make_dashboard
    for dashboard in made:
        dashboard.close_all()


async def eventually(get: Callable[[], object], expected: object, timeout: float = 5.0) -> None:
    """Wait until `get` returns what is expected; fail with what it returned last."""
    last = get()
    try:
        async with asyncio.timeout(timeout):
            while (last := get()) != expected:
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"expected {expected!r}, last saw {last!r}")


def drawn(chart: Chart) -> dict[int, float]:
    """Closes by start, as the page draws them: the snapshot overlaid with the tail."""
    return {row[0]: row[4] for row in [*chart.snapshot["bars"], *chart.tail["bars"]]}


def closes(bars: pd.DataFrame) -> dict[int, float]:
    return {row[0]: row[4] for row in bar_rows(bars)}


def test_one_refresh_fills_chart_board_and_strip(frames: Frames, make: Callable[..., Dashboard]) -> None:
    dashboard = make()
    asyncio.run(dashboard.refresh())
    assert dashboard.chart.snapshot["symbol"] == "AAPL"
    assert drawn(dashboard.chart) == closes(frames.bars["AAPL"])
    assert [row["symbol"] for row in dashboard.board.rows] == list(frames.bars)
    assert dashboard.board.rows[0]["change_pct"] is None
    assert [stage["title"] for stage in dashboard.strip.stages] == ["Feed", "Kafka", "Spark", "PostgreSQL"]
    assert dashboard.strip.notice == {}


@pytest.mark.parametrize(
    ("detail", "kind", "title"),
    [
        (
            "simulated market, seed 7, 50 ticks/s; no FINNHUB_API_KEY: the simulated market",
            "simulated",
            "SIMULATED MARKET — no Finnhub key",
        ),
        ("simulated market, seed 7, 50 ticks/s; asked for", "simulated", "SIMULATED MARKET"),
        ("tape day.parquet at speed 60, event times kept; asked for", "replay", "REPLAY, not the market of today"),
        ("Finnhub quotes, 8 symbols, each every 8 s; FINNHUB_API_KEY is set", "live", "Finnhub quotes"),
    ],
)
def test_the_banner_says_where_the_data_come_from(detail: str, kind: str, title: str) -> None:
    banner = banner_of([{"stage": "feed", "detail": detail}])
    assert (banner["kind"], banner["title"]) == (kind, title)


def test_values_change_untouched_and_snapshot_is_sent_once(frames: Frames, make: Callable[..., Dashboard]) -> None:
    async def watch() -> None:
        dashboard = make()
        await eventually(lambda: drawn(dashboard.chart), closes(frames.bars["AAPL"]))
        sent: list[object] = []
        dashboard.chart.observe(lambda change: sent.append(change["name"]), ["snapshot", "tail"])
        frames.price, frames.bars["AAPL"] = 102.5, make_bars("AAPL", 6)
        await eventually(lambda: dashboard.board.rows[0]["price"], 102.5)
        await eventually(lambda: drawn(dashboard.chart), closes(frames.bars["AAPL"]))
        assert "snapshot" not in sent
        dashboard.stop()

    asyncio.run(watch())


def test_the_chart_shows_the_symbol_that_is_chosen(frames: Frames, make: Callable[..., Dashboard]) -> None:
    async def watch() -> None:
        dashboard = make()
        await eventually(lambda: dashboard.chart.snapshot.get("symbol"), "AAPL")
        dashboard.board.selected = "<b>X</b>"
        await eventually(lambda: dashboard.chart.snapshot["symbol"], "<b>X</b>")
        assert dashboard.symbol.value == "<b>X</b>"
        assert drawn(dashboard.chart) == closes(frames.bars["<b>X</b>"])
        dashboard.width.value = "5 minutes"
        await eventually(lambda: dashboard.chart.snapshot["width"], "5 minutes")
        assert frames.asked[-1][:2] == ("<b>X</b>", "5 minutes")
        dashboard.stop()

    asyncio.run(watch())


def test_pause_holds_prices_and_bars_and_says_since_when(frames: Frames, make: Callable[..., Dashboard]) -> None:
    dashboard = make()
    asyncio.run(dashboard.refresh())
    dashboard.pause.value = True
    frames.price, frames.bars["AAPL"] = 200.0, make_bars("AAPL", 9)
    before = dashboard.board.rows, drawn(dashboard.chart)
    asyncio.run(dashboard.refresh())
    assert (dashboard.board.rows, drawn(dashboard.chart)) == before
    assert dashboard.strip.notice["text"].startswith("Paused since ")
    dashboard.pause.value = False
    asyncio.run(dashboard.refresh())
    assert dashboard.board.rows[0]["price"] == 200.0
    assert dashboard.strip.notice == {}


def test_what_was_asked_for_before_a_pause_does_not_come_after_it(frames: Frames, make: Callable[..., Dashboard]) -> None:
    async def watch() -> None:
        dashboard = make()
        dashboard.stop()
        await dashboard.refresh()
        frames.price, frames.bars["AAPL"] = 200.0, make_bars("AAPL", 9)
        before = dashboard.board.rows, drawn(dashboard.chart)
        loading = asyncio.create_task(dashboard.refresh())
        await asyncio.sleep(0)  # the load has begun
        dashboard.pause.value = True
        await loading
        assert (dashboard.board.rows, drawn(dashboard.chart)) == before

    asyncio.run(watch())


def test_without_postgres_the_last_picture_stays_and_is_called_old(frames: Frames, make: Callable[..., Dashboard]) -> None:
    async def watch() -> None:
        dashboard = make()
        await eventually(lambda: len(dashboard.board.rows), 2)
        before = drawn(dashboard.chart)
        frames.fault = UnavailableError("cannot use PostgreSQL: no answer")
        await eventually(lambda: dashboard.strip.notice.get("kind"), "down")
        first_words = dashboard.strip.notice["text"].split(" New York")[0]
        assert first_words.startswith("PostgreSQL: down since ")
        assert (drawn(dashboard.chart), dashboard.chart.aged, dashboard.board.aged) == (before, True, True)
        assert [stage["state"] for stage in dashboard.strip.stages] == ["unknown", "unknown", "unknown", "down"]
        await asyncio.sleep(0.05)  # several refreshes later it still says since the first
        assert dashboard.strip.notice["text"].split(" New York")[0] == first_words
        frames.fault = None
        await eventually(lambda: dashboard.strip.notice, {})
        assert not dashboard.chart.aged
        assert [stage["state"] for stage in dashboard.strip.stages] == ["running"] * 4
        dashboard.stop()

    asyncio.run(watch())


def test_opened_without_postgres_it_names_every_stage_and_the_way_out(frames: Frames, make: Callable[..., Dashboard]) -> None:
    dashboard = make()
    frames.fault = UnavailableError("cannot use PostgreSQL: no answer")
    asyncio.run(dashboard.refresh())
    assert [(stage["title"], stage["state"]) for stage in dashboard.strip.stages] == [
        ("Feed", "unknown"),
        ("Kafka", "unknown"),
        ("Spark", "unknown"),
        ("PostgreSQL", "down"),
    ]
    assert "`stocks up`" in dashboard.strip.stages[3]["detail"] and dashboard.strip.stages[3]["since"]
    assert dashboard.strip.notice["text"].startswith("PostgreSQL: down since ")


def test_a_stream_that_is_down_says_what_to_do_and_the_market_stays_named(frames: Frames, make: Callable[..., Dashboard]) -> None:
    frames.beat_age = dt.timedelta(seconds=60)
    dashboard = make()
    asyncio.run(dashboard.refresh())
    details = {stage["stage"]: stage["detail"] for stage in dashboard.strip.stages}
    assert "`stocks stream`" in details["spark"]
    assert details["kafka"] == "not known while Spark is down"
    assert dashboard.strip.banner["title"] == "SIMULATED MARKET — no Finnhub key"


def test_any_other_fault_is_said_in_words_and_survived(
    frames: Frames, make: Callable[..., Dashboard], caplog: pytest.LogCaptureFixture
) -> None:
    async def watch() -> None:
        dashboard = make()
        frames.fault = KeyError("no such column")
        await eventually(lambda: dashboard.strip.notice.get("kind"), "fault")
        assert "KeyError: 'no such column'" in dashboard.strip.notice["text"]
        frames.fault = None
        await eventually(lambda: dashboard.strip.notice, {})
        dashboard.stop()

    asyncio.run(watch())
    assert "could not load" in caplog.text


def stage_states(ages: dict[str, tuple[str, int]]) -> dict[str, tuple[str, object]]:
    """State and since of each stage at 15:00, given what it said last and how many seconds ago."""
    now = dt.datetime(2026, 3, 2, 15, 0, tzinfo=dt.UTC)
    said = [
        {"stage": stage, "state": state, "detail": "", "since": START, "beat_at": now - dt.timedelta(seconds=age)}
        for stage, (state, age) in ages.items()
    ]
    return {
        row["stage"]: (row["state"], row["since"] / 1000 - now.timestamp() if row["state"] in ("down", "unknown") else None)
        for row in stage_rows(pd.DataFrame(said), now)
    }


def test_a_stage_that_does_not_beat_is_down_since_its_last_beat() -> None:
    assert stage_states({"feed": ("running", 1), "kafka": ("running", 6), "spark": ("running", 2)}) == {
        "feed": ("running", None),
        "kafka": ("down", -6.0),
        "spark": ("running", None),
    }


@pytest.mark.parametrize(("spark", "shown"), [(("running", 6), ("down", -6.0)), (("stopped", 6), ("stopped", None))])
def test_without_the_stream_that_tells_of_them_feed_and_kafka_are_unknown(spark: tuple[str, int], shown: tuple[str, object]) -> None:
    states = stage_states({"feed": ("running", 7), "kafka": ("running", 6), "spark": spark})
    assert states == {"feed": ("unknown", -7.0), "kafka": ("unknown", -6.0), "spark": shown}


def test_a_second_dashboard_replaces_the_first(make: Callable[..., Dashboard]) -> None:
    async def watch() -> None:
        first = make()
        await eventually(lambda: len(first.board.rows), 2)
        second = make()
        assert not first.is_running
        assert first.strip.notice["kind"] == "stopped"
        await eventually(lambda: len(second.board.rows), 2)
        second.stop()
        assert not second.is_running

    asyncio.run(watch())


def test_a_dashboard_that_nobody_looks_at_rests_until_somebody_does(frames: Frames, make: Callable[..., Dashboard]) -> None:
    async def watch() -> None:
        dashboard = make(idle_seconds=0.05)
        await eventually(lambda: len(dashboard.board.rows), 2)
        asked = -1
        async with asyncio.timeout(5):
            while asked != len(frames.asked):
                asked = len(frames.asked)
                await asyncio.sleep(0.1)
        frames.price = 300.0
        dashboard.strip._handle_custom_msg({"kind": "alive"}, [])
        await eventually(lambda: dashboard.board.rows[0]["price"], 300.0)
        dashboard.stop()

    asyncio.run(watch())


def test_symbols_that_were_not_given_are_those_with_prices(frames: Frames, make: Callable[..., Dashboard]) -> None:
    dashboard = make(symbols=None)
    asyncio.run(dashboard.refresh())
    assert set(dashboard.symbol.options) == set(frames.bars)
    asyncio.run(dashboard.refresh())
    assert dashboard.chart.snapshot["symbol"] == dashboard.symbol.value


def test_only_widths_that_the_window_divides_are_offered(make: Callable[..., Dashboard]) -> None:
    assert [width for _, width in make(window="1 minute").width.options] == ["1 minute", "5 minutes", "15 minutes", "1 hour"]
    assert [width for _, width in make(window="4 minutes").width.options] == ["4 minutes", "1 hour"]


@pytest.mark.parametrize("piece", [1, 7, 30])
def test_snapshot_and_tail_are_the_whole_picture_however_the_bars_come(piece: int) -> None:
    chart = Chart()
    every = make_bars("AAPL", 240)
    chart.show_bars("AAPL", "10 seconds", "10 s", bar_rows(every.head(20)), whole=True)
    for end in range(20 + piece, 241, piece):
        chart.show_bars("AAPL", "10 seconds", "10 s", bar_rows(every.iloc[end - piece : end]), whole=False)
        assert drawn(chart) == closes(every.head(end))
        assert len(chart.tail["bars"]) <= LONGEST_TAIL


def test_bars_that_are_gone_after_a_rebuild_leave_the_chart() -> None:
    chart = Chart()
    chart.show_bars("AAPL", "10 seconds", "10 s", bar_rows(make_bars("AAPL", 20)), whole=True)
    rebuilt = make_bars("AAPL", 20).drop(index=[7, 8])
    chart.show_bars("AAPL", "10 seconds", "10 s", bar_rows(rebuilt), whole=True)
    assert drawn(chart) == closes(rebuilt)


def test_what_is_unknown_of_a_bar_is_none_not_nan() -> None:
    bars = make_bars("AAPL", 1).assign(vwap=float("nan"))
    assert bar_rows(bars)[0][6] is None
    assert bar_rows(bars.head(0)) == []


def test_the_board_has_the_freshness_of_a_live_feed_and_its_gaps(frames: Frames, make: Callable[..., Dashboard]) -> None:
    load, opens = frames.load_prices, START + pd.Timedelta(days=1)

    def load_live_prices() -> pd.DataFrame:
        return load().assign(freshness=["CLOSED", "LIVE"], fresh_since=START, opens_at=[opens, pd.NaT])

    frames.load_prices = load_live_prices  # type: ignore[method-assign]
    gaps = pd.DataFrame([{"source": "finnhub-ws", "started_at": START, "ended_at": pd.NaT, "reason": "silent"}])
    dashboard = make(load_gaps=lambda: gaps)
    asyncio.run(dashboard.refresh())
    first, second = dashboard.board.rows
    assert (first["freshness"], first["fresh_since"], first["opens_at"]) == ("CLOSED", START.value // 10**6, opens.value // 10**6)
    assert (second["freshness"], second["opens_at"]) == ("LIVE", None)
    assert dashboard.board.gaps == [{"source": "finnhub-ws", "reason": "silent", "started_at": START.value // 10**6, "ended_at": None}]


def test_a_simulated_market_has_no_freshness(make: Callable[..., Dashboard]) -> None:
    dashboard = make()
    asyncio.run(dashboard.refresh())
    assert {row["freshness"] for row in dashboard.board.rows} == {None} and dashboard.board.gaps == []


def say_drawn(dashboard: Dashboard, *, seen: bool = True) -> None:
    """Say what the page says when it has painted what was sent last."""
    dashboard.strip._handle_custom_msg({"kind": "drawn", "stamp": dashboard.strip.shown["stamp"], "seen": seen}, [])


# So long between two polls that nothing in a test comes of one.
NO_POLL = 600.0


async def show_first_commit(frames: Frames, make: Callable[..., Dashboard]) -> tuple[Told, Dashboard]:
    """Return a dashboard that listens and has drawn the first commit, and who tells it of the next ones."""
    told = Told(frames)
    told.tell()
    dashboard = make(commits=told, refresh_seconds=NO_POLL)
    await eventually(lambda: (told.is_heard, dashboard.strip.shown.get("batch")), (True, 0))
    say_drawn(dashboard)
    return told, dashboard


def test_a_commit_that_is_told_of_is_shown_at_once(frames: Frames, make: Callable[..., Dashboard]) -> None:
    async def watch() -> None:
        told, dashboard = await show_first_commit(frames, make)
        frames.price, frames.bars["AAPL"] = 105.5, make_bars("AAPL", 6)
        told.tell()
        await eventually(lambda: dashboard.strip.shown["batch"], 1)
        assert {row["price"] for row in dashboard.board.rows} == {105.5}
        assert drawn(dashboard.chart) == closes(frames.bars["AAPL"])
        assert frames.asked[-1][2] < 30, "only the bars that a commit changes are loaded"
        dashboard.stop()
        await eventually(lambda: told.is_heard, False)

    asyncio.run(watch())


def test_a_page_that_has_not_drawn_is_sent_the_latest_not_the_backlog(frames: Frames, make: Callable[..., Dashboard]) -> None:
    async def watch() -> None:
        told, dashboard = await show_first_commit(frames, make)
        sent: list[int] = []
        dashboard.strip.observe(lambda change: sent.append(change["new"]["batch"]), "shown")
        told.tell()
        await eventually(lambda: sent, [1])
        for _ in range(20):
            told.tell()
            await asyncio.sleep(0)
        asked = len(frames.asked)
        await asyncio.sleep(0.05)  # nothing may happen meanwhile
        assert (sent, len(frames.asked)) == ([1], asked)
        say_drawn(dashboard)
        await eventually(lambda: sent, [1, 21])
        dashboard.stop()

    asyncio.run(watch())


def test_without_the_telling_connection_it_polls_and_listens_again_when_it_is_back(frames: Frames, make: Callable[..., Dashboard]) -> None:
    async def watch() -> None:
        told = Told(frames)
        told.is_away = True
        dashboard = make(commits=told)
        await eventually(lambda: len(dashboard.board.rows), 2)
        frames.price = 107.5
        await eventually(lambda: dashboard.board.rows[0]["price"], 107.5)
        told.is_away = False
        await eventually(lambda: told.is_heard, True)
        told.is_away = True
        told.lose()
        await eventually(lambda: told.is_heard, False)
        frames.price = 108.5
        await eventually(lambda: dashboard.board.rows[0]["price"], 108.5)
        told.is_away = False
        await eventually(lambda: told.is_heard, True)
        dashboard.stop()

    asyncio.run(watch())


def test_the_strip_says_how_long_a_tick_takes_to_the_table_and_to_the_screen(frames: Frames, make: Callable[..., Dashboard]) -> None:
    async def watch() -> None:
        told = Told(frames)
        told.tell()
        dashboard = make(commits=told)
        await eventually(lambda: dashboard.strip.latency.get("table"), {"p50": 230.0, "p99": 410.0})
        assert dashboard.strip.latency["screen"] == {}, "no page has drawn a commit yet"
        say_drawn(dashboard)
        told.tell()
        await eventually(lambda: dashboard.strip.shown["batch"], 1)
        say_drawn(dashboard)
        await eventually(lambda: "p99" in dashboard.strip.latency["screen"], True)
        table, screen = dashboard.strip.latency["table"], dashboard.strip.latency["screen"]
        assert 100 < table["p50"] <= screen["p50"], "its last tick was seen 100 ms before the commit"
        assert table["p99"] <= screen["p99"], "of the same ticks"
        stages = [part["stage"] for part in dashboard.strip.latency["parts"]]
        assert stages == ["spark", "postgres", *["screen"] * 4]
        dashboard.stop()

    asyncio.run(watch())


def test_the_last_price_changes_the_change_by_as_much(frames: Frames) -> None:
    frame = frames.load_prices().assign(change=1.5, change_pct=100 * 1.5 / 100.0)
    rows = with_last_prices(price_rows(frame), price_rows(frame.assign(price=103.0, symbol=["AAPL", "NEW"])))
    assert (rows[0]["price"], rows[0]["change"], rows[0]["change_pct"]) == (103.0, 3.0, 3.0)
    assert [row["symbol"] for row in rows] == list(frames.bars)  # what is new on the board comes with the next poll
    assert rows[1]["price"] == frames.price
