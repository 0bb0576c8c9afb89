"""What a person sees of the page, and what they must never see."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import msgspec
import pytest
from page_served import Served, stop_postgres
from playwright.sync_api import Browser, Page, expect

from pipeline_lib.errors import SettingsError
from pipeline_lib.records import FeedStatus, Gap, SymbolFreshness
from pipeline_lib.services import postgres
from pipeline_lib.store import Store
from pipeline_lib.web import serve_dashboard

BOARD_PRICES = "[...document.querySelectorAll('.sp-board tbody tr')].map((row) => row.children[1].textContent).join()"
CANVAS = """(() => {
  const found = [...document.querySelectorAll('.sp-canvas canvas')].sort((a, b) => b.width * b.height - a.width * a.height)[0];
  return found.toDataURL();
})()"""


def eventually(get: Callable[[], object], expected: object, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while (last := get()) != expected:
        assert time.monotonic() < deadline, f"expected {expected!r}, last saw {last!r}"
        time.sleep(0.1)


def kernel_of(page: Page) -> str:
    return str(page.evaluate("JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId"))


def kernel_lives(served: Served, kernel: str) -> bool:
    try:
        with urllib.request.urlopen(f"{served.server.url}api/kernels/{kernel}") as answer:
            return bool(json.load(answer)["id"] == kernel)
    except urllib.error.HTTPError as error:
        with error:
            assert error.code == 404
        return False


def test_prices_and_candles_change_untouched(page: Page) -> None:
    prices, candles = page.evaluate(BOARD_PRICES), page.evaluate(CANVAS)
    page.wait_for_function(f"(before) => {BOARD_PRICES} !== before", arg=prices)
    page.wait_for_function(f"(before) => {CANVAS} !== before", arg=candles)


def test_chosen_symbol_is_the_one_drawn(page: Page, served: Served) -> None:
    first_close = float(page.get_attribute(".sp-chart", "data-close") or "nan")
    page.select_option(".widget-dropdown select >> nth=0", "NFLX")
    page.wait_for_selector(".sp-chart[data-symbol=NFLX]")
    expect(page.locator(".sp-legend-symbol")).to_have_text("NFLX")
    expect(page.locator(".sp-board tr[data-symbol=NFLX]")).to_have_attribute("aria-current", "true")
    close = float(page.get_attribute(".sp-chart", "data-close") or "nan")
    assert close > 2 * first_close  # Netflix trades near 880 in this market, Apple near 226


def test_a_click_on_the_board_chooses(page: Page) -> None:
    page.click(".sp-board tr[data-symbol=TSLA]")
    page.wait_for_selector(".sp-chart[data-symbol=TSLA]")
    assert page.eval_on_selector(".widget-dropdown select", "(select) => select.selectedOptions[0].text") == "TSLA"


def test_a_wider_bar_draws_fewer(page: Page) -> None:
    narrow = int(page.get_attribute(".sp-chart", "data-bars") or 0)
    page.select_option(".widget-dropdown select >> nth=1", "5 min")
    page.wait_for_selector(".sp-chart[data-width='5 minutes']")
    assert 0 < int(page.get_attribute(".sp-chart", "data-bars") or 0) <= narrow / 20
    expect(page.locator(".sp-legend-width")).to_have_text("5 min")


def test_pause_holds_the_picture_and_says_so(page: Page) -> None:
    page.click(".sp-controls button")
    expect(page.locator(".sp-notice")).to_contain_text("Paused since")
    clock, prices = page.inner_text(".sp-clock"), page.evaluate(BOARD_PRICES)
    page.wait_for_function("(before) => document.querySelector('.sp-clock').textContent !== before", arg=clock)
    assert page.evaluate(BOARD_PRICES) == prices
    page.click(".sp-controls button")
    expect(page.locator(".sp-notice")).to_be_hidden()
    page.wait_for_function(f"(before) => {BOARD_PRICES} !== before", arg=prices)


def test_how_long_a_tick_takes_stands_on_the_page_and_on_demand_where_the_time_goes(page: Page) -> None:
    latency = page.locator(".sp-latency")
    expect(latency.locator(".sp-to-table")).to_contain_text(re.compile(r"tick to table [\d,.]+ m?s / [\d,.]+ m?s"))
    expect(latency.locator(".sp-to-screen")).to_contain_text(re.compile(r"to screen [\d,.]+ m?s / [\d,.]+ m?s"))
    expect(latency.locator("tbody")).to_be_hidden()
    latency.locator("summary").click()
    expect(latency.locator("tbody tr[data-stage=postgres]").first).to_contain_text("merge")
    expect(latency.locator("tbody tr[data-stage=screen]")).to_have_count(4)
    page.click(".sp-title")
    expect(latency.locator("tbody")).to_be_hidden()


def test_every_commit_is_drawn_by_a_page_that_keeps_up(page: Page, served: Served) -> None:
    assert served.settings.database_url is not None
    store = Store(served.settings.database_url.get_secret_value(), served.settings.kafka_topic)
    (commit,) = store.load_commits()
    page.wait_for_function("(batch) => Number(document.querySelector('.sp-strip').dataset.batch) > batch", arg=commit.batch_id)
    store.close()


def test_a_simulated_market_cannot_be_taken_for_a_real_one(page: Page) -> None:
    banner = page.locator(".sp-banner")
    expect(banner).to_be_visible()
    expect(banner).to_contain_text("SIMULATED MARKET — no Finnhub key")


def test_a_stage_that_dies_is_named_and_its_return_too(page: Page, served: Served) -> None:
    spark = page.locator(".sp-stage[data-stage=spark]")
    expect(spark).to_have_attribute("data-state", "running")
    served.market.silent.add("spark")
    try:
        expect(spark).to_have_attribute("data-state", "down", timeout=8_000)
        expect(spark).to_contain_text(re.compile(r"since \d\d:\d\d:\d\d"))
        expect(page.locator(".sp-stage[data-stage=kafka]")).to_have_attribute("data-state", "running")
    finally:
        served.market.silent.discard("spark")
    expect(spark).to_have_attribute("data-state", "running")


def test_without_postgres_the_page_keeps_its_picture_and_says_since_when(page: Page, served: Served) -> None:
    prices = page.locator(".sp-board tbody tr")
    count = prices.count()
    stop_postgres(served.home)
    try:
        expect(page.locator(".sp-notice")).to_contain_text(re.compile(r"PostgreSQL: down since \d\d:\d\d:\d\d"), timeout=5_000)
        expect(page.locator(".sp-stage[data-stage=postgres]")).to_have_attribute("data-state", "down")
        assert prices.count() == count > 0
        assert "sp-aged" in (page.get_attribute(".sp-chart", "class") or "")
        assert int(page.get_attribute(".sp-chart", "data-bars") or 0) > 0
    finally:
        postgres.start(served.home, print)
    expect(page.locator(".sp-notice")).to_be_hidden()
    expect(page.locator(".sp-stage[data-stage=postgres]")).to_have_attribute("data-state", "running")


def test_a_closed_market_says_so_with_its_end_and_a_live_one_since_when(page: Page, served: Served) -> None:
    assert served.settings.database_url is not None
    board, store = page.locator(".sp-board"), Store(served.settings.database_url.get_secret_value(), served.settings.kafka_topic)
    now = time.time_ns() // 1_000_000
    closed = now - 3_600_000
    symbols = (
        SymbolFreshness("AAPL", "CLOSED", closed, closed, closed, now + 3 * 86_400_000),
        SymbolFreshness("MSFT", "LIVE", now - 60_000, now, now),
        SymbolFreshness("NEWX", "NO DATA", now - 60_000),
    )
    gap = Gap("finnhub-ws", now - 40_000, now - 3_000, "the socket was silent")
    status = FeedStatus(state="running", source="finnhub", detail="Finnhub", since=now, at=now + 60_000, symbols=symbols, gaps=(gap,))
    try:
        store.keep_feed_status(status)
        row = board.locator("tr[data-symbol=AAPL]")
        expect(row).to_have_attribute("data-freshness", "closed")
        expect(row).to_contain_text(re.compile(r"CLOSED since (\w{3} )?\d\d:\d\d New York, opens \w{3} \d\d:\d\d"))
        expect(board.locator("tr[data-symbol=MSFT]")).to_contain_text(re.compile(r"LIVE since .*\d\d:\d\d:\d\d"))
        expect(board.locator("tr[data-symbol=NEWX]")).to_contain_text("NO DATA since")
        expect(board.locator(".sp-gaps")).to_contain_text("finnhub-ws: the socket was silent")
    finally:
        store.keep_feed_status(msgspec.structs.replace(status, at=now + 61_000, symbols=None))
        store.close()
    expect(board.locator("tr[data-symbol=AAPL]")).to_have_attribute("data-freshness", "")


def test_the_view_is_kept_while_bars_come(page: Page) -> None:
    box = page.locator(".sp-canvas").bounding_box()
    assert box is not None
    latest = page.get_attribute(".sp-chart", "data-to")
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 2 / 3, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_function("(before) => document.querySelector('.sp-chart').dataset.to < before", arg=latest)
    view = "({from: document.querySelector('.sp-chart').dataset.from, to: document.querySelector('.sp-chart').dataset.to})"
    seen, count = page.evaluate(view), page.get_attribute(".sp-chart", "data-bars")
    page.wait_for_function("(before) => document.querySelector('.sp-chart').dataset.bars !== before", arg=count)
    assert page.evaluate(view) == seen


def test_a_closed_page_gives_its_kernel_back(page: Page, served: Served) -> None:
    kernel = kernel_of(page)
    assert kernel_lives(served, kernel)
    with page.expect_event("close"):
        page.close(run_before_unload=True)
    eventually(lambda: kernel_lives(served, kernel), False, timeout=10)


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(21, 27, 35)")])
def test_light_and_dark_follow_the_browser(page: Page, scheme: str, ground: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    expect(page.locator(".sp-pane").first).to_have_css("background-color", ground)


def test_a_phone_shows_all_without_scrolling_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".sp-board").scroll_into_view_if_needed()
    expect(page.locator(".sp-board")).to_be_in_viewport()


def test_the_page_answers_to_no_strangers_name(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.settings.dashboard_port)
    connection.request("GET", "/", headers={"Host": "evil.example"})
    assert connection.getresponse().status == 403
    connection.close()


def test_a_taken_port_is_one_line_with_the_way_out(served: Served) -> None:
    with pytest.raises(SettingsError, match=r"port \d+ is not free .* set DASHBOARD_PORT to another"):
        serve_dashboard(served.settings)


def test_no_source_and_no_secret_is_on_the_page(chromium: Browser, page: Page, served: Served) -> None:
    html = page.content()
    assert served.settings.database_url is not None
    password = served.settings.database_url.get_secret_value().split(":")[2].split("@")[0]
    assert password not in html
    assert "open_dashboard" not in html
