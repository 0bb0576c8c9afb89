"""The page in a real browser: Chromium, Voilà, PostgreSQL and the store. Only the bars are written by a test (page_market)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from page_browser import free_port, launch, watch
from page_market import Market
from page_served import Served
from playwright.sync_api import Browser, Page, sync_playwright

from pipeline_lib.config import Settings
from pipeline_lib.services import postgres, remove_services
from pipeline_lib.store import Store
from pipeline_lib.web import serve_dashboard


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for one module: while Playwright runs, its event loop is this thread's, and other tests want one of their own."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


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
