"""The page in a real browser: Chromium, Voilà, PostgreSQL and the store. Only the bars are written by a test (page_market)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from page_market import Market
from page_served import Served
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from pipeline_lib.config import Settings
from pipeline_lib.services import postgres, remove_services
from pipeline_lib.services.process import is_free
from pipeline_lib.store import Store
from pipeline_lib.web import serve_dashboard

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",  # of no use as root, which is what a container runs as
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOW = "no Chromium: `apt-get install chromium`, or `playwright install chromium`, or name one in CHROMIUM"


class Watched(NamedTuple):
    """A page that was opened, and all that went wrong on it or left the machine."""

    page: Page
    faults: list[str]


def _launch(playwright: Playwright) -> Browser:
    named = os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
    try:
        return playwright.chromium.launch(executable_path=named, args=FLAGS)
    except PlaywrightError:
        if named:
            raise
        pytest.skip(HOW)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for one module: while Playwright runs, its event loop is this thread's, and other tests want one of their own."""
    with sync_playwright() as playwright:
        browser = _launch(playwright)
        yield browser
        browser.close()


def free_port() -> int:
    return next(port for port in range(18900, 19900) if is_free(port))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("page")
    state = postgres.start(home, print)
    try:
        url = postgres.database_url(home, state)
        settings = Settings.load(database_url=url, pipeline_home=home, dashboard_port=free_port())
        store = Store(url, settings.kafka_topic)
        with Market(store) as market:
            server = serve_dashboard(settings)
            try:
                yield Served(server, market, settings, home)
            finally:
                server.stop()
        store.close()
    finally:
        remove_services(Settings.load(pipeline_home=home))


def watch(context: BrowserContext) -> Watched:
    """Open a page that notes every fault: errors of the console, exceptions, answers 4xx and 5xx, and requests to anywhere else."""
    page, faults = context.new_page(), list[str]()
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("response", lambda response: faults.append(f"{response.status} {response.url}") if response.status >= 400 else None)
    page.on("request", lambda request: faults.append(f"left the machine: {request.url}") if _leaves(request.url) else None)
    page.on("websocket", lambda socket: faults.append(f"left the machine: {socket.url}") if _leaves(socket.url) else None)
    return Watched(page, faults)


def _leaves(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1"


@pytest.fixture
def page(chromium: Browser, served: Served) -> Iterator[Page]:
    """The dashboard, open and drawn; afterwards nothing has gone wrong on it and nothing has left the machine."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(20_000)
    watched = watch(context)
    watched.page.goto(served.server.url)
    watched.page.wait_for_selector(".sp-board tbody tr")
    watched.page.wait_for_selector(".sp-chart[data-bars]")
    yield watched.page
    if not watched.page.is_closed():
        watched.page.goto("about:blank")
    context.close()
    assert watched.faults == []
