"""The same dashboard in a cell of JupyterLab, and the panel of notebook 06."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from page_browser import free_port, watch
from page_served import Served
from playwright.sync_api import Browser, expect

CELL = """\
import os
from pipeline_lib.dashboard import Dashboard
from pipeline_lib.store import Store
store = Store(os.environ["DATABASE_URL"], "stock-market-data")
dashboard = Dashboard(load_bars=store.load_bars, load_prices=store.load_prices, load_stages=store.load_stages)
dashboard"""

# The panel of notebook 06 on its own: who is killed by it is the notebook's affair, that its buttons reach the kernel is this test's.
PANEL = """\
from pipeline_lib.panel import FaultPanel
killed, reasons = [], {"kafka": "its address is given", "feed": "", "spark": "", "postgres": ""}
row = {"since": 0, "seen": None, "detail": "", "returns": 0}
states = lambda: [{**row, "stage": name, "state": "down" if name in killed else "running", "spared": why} for name, why in reasons.items()]
FaultPanel(lambda: {"stages": states(), "counts": {"bars": 1234}, "fault": ""}, killed.append, store.load_stages)"""


@pytest.fixture(scope="module")
def lab(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a JupyterLab that has one notebook, on the database of the page."""
    folder: Path = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (CELL, "print('other cells run', 6 * 7)", PANEL)]
    nbformat.write(notebook, folder / "live.ipynb")
    port = free_port()
    assert served.settings.database_url is not None
    options = [
        f"--port={port}",
        "--ip=127.0.0.1",
        "--no-browser",
        "--allow-root",
        "--IdentityProvider.token=",
        "--ServerApp.port_retries=0",
    ]
    environment = {
        **os.environ,
        "DATABASE_URL": served.settings.database_url.get_secret_value(),
        # No settings of the person who runs the tests, and no question whether Lab may fetch its news.
        **{
            name: str(folder / name)
            for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
        },
    }
    with (folder / "lab.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, "--LabApp.news_url=", f"--ServerApp.root_dir={folder}"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        address = f"http://127.0.0.1:{port}/lab/tree/live.ipynb"
        _wait_for(address, process, folder / "lab.log")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)


def test_in_jupyterlab_it_lives_lets_others_run_is_replaced_by_a_rerun_and_buttons_reach_the_kernel(chromium: Browser, lab: str) -> None:
    context = chromium.new_context(viewport={"width": 1440, "height": 1200})
    context.set_default_timeout(60_000)
    watched = watch(context)
    page = watched.page
    page.goto(lab)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    # The notebook's own indicator is idle before there is a kernel; the status bar names the kernel too.
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expect(page.locator(".jp-CodeCell >> nth=1 >> .jp-InputPrompt")).to_have_text("[2]:")
    page.wait_for_selector(".sp-chart[data-bars]", state="attached")
    expect(page.locator(".jp-OutputArea-output", has_text="other cells run 42")).to_be_visible()
    close = page.get_attribute(".sp-chart", "data-close")
    page.wait_for_function("(before) => document.querySelector('.sp-chart').dataset.close !== before", arg=close)

    page.click(".jp-CodeCell >> nth=0 >> .jp-InputArea-editor")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".jp-CodeCell >> nth=0 >> .jp-InputPrompt")).to_have_text("[4]:")
    page.wait_for_selector(".sp-chart[data-bars]", state="attached")
    expect(page.locator(".sp-dashboard")).to_have_count(1)
    page.locator(".widget-dropdown select").nth(0).select_option("NVDA")
    page.wait_for_selector(".sp-chart[data-symbol=NVDA]", state="attached")

    row = page.locator(".sp-fault-row")
    expect(page.locator(".sp-count[data-count=bars]")).to_have_text("1,234")
    expect(row.locator(".sp-kill:visible")).to_have_count(3)
    expect(page.locator(".sp-fault-row[data-stage=kafka]")).to_contain_text("its address is given")
    row.get_by_role("button", name="kill -9 Spark").click()
    expect(page.locator(".sp-fault-row[data-state=down]")).to_have_count(1)
    expect(page.locator(".sp-fault-row[data-stage=spark]")).to_contain_text("down since")
    context.close()
    assert [fault for fault in watched.faults if "sp-" in fault or "widget" in fault.lower() or "left the machine" in fault] == []
