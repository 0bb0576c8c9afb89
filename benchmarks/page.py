"""From `make run` to the first live bar on the page, at the second start. Called by `python -m benchmarks page`.

The whole runs in a PIPELINE_HOME of its own, the page in a headless Chromium that is up before. The first start makes the
database and the topic and is not measured. A bar is live while it is not finished: between the two runs it is waited until
every bar of the first has been finished by the clock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, sync_playwright

from benchmarks.ground import own_home
from benchmarks.machine import busy_percent
from benchmarks.programs import Program
from benchmarks.verify import check_table
from pipeline_lib.config import Settings
from pipeline_lib.services import start_services, stop_services
from pipeline_lib.services.process import choose_ports
from pipeline_lib.supervise import stage_environment

ROOT = Path(__file__).parents[1]
MOST_SECONDS = 180.0
# A window and the delay of the watermark, each of ten seconds, and some.
UNTIL_FINISHED_SECONDS = 25.0

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
LIVE_BAR = "() => document.querySelector('.sp-legend-time')?.textContent.includes('not finished')"


def measure(repeats: int) -> list[dict[str, Any]]:
    """Return one row a second start; none, with a word why, where there is no Chromium."""
    try:
        with open_page() as page, own_home("bench-page") as home:
            settings = home.replaced(dashboard_port=choose_ports(("page",), {}, print)["page"])
            rows = []
            run(settings, page)
            for number in range(repeats):
                time.sleep(UNTIL_FINISHED_SECONDS)
                rows.append({"busy_before_percent": busy_percent(), **run(settings, page)})
                print(f"page: run {number + 1} of {repeats}: first live bar after {rows[-1]['live_bar_seconds']:.1f} s", flush=True)
            check_run(settings)
            return rows
    except PlaywrightError as error:
        if "Executable doesn't exist" not in str(error):
            raise
        print("page: not measured, since there is no Chromium: `apt-get install chromium`, or name one in CHROMIUM", flush=True)
        return []


@contextlib.contextmanager
def open_page() -> Iterator[Page]:
    """Yield an empty page of a Chromium on this machine. Raises PlaywrightError if there is none."""
    named = os.environ.get("CHROMIUM") or next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=named, args=list(FLAGS))
        try:
            yield browser.new_page(viewport={"width": 1440, "height": 900})
        finally:
            browser.close()


def run(settings: Settings, page: Page) -> dict[str, float]:
    """Return the seconds from the start of `make run` until its page answered, and until a live bar was on it."""
    command = [sys.executable, "-m", "benchmarks.leash", "make", "--no-print-directory", "-C", str(ROOT), "run"]
    address = f"http://127.0.0.1:{settings.dashboard_port}/"
    with Program(command, stage_environment(settings), "make run") as program:
        wait_for_answer(f"{address}voila/static/voila.js", program)
        answered = time.monotonic() - program.began
        page.goto(address, wait_until="commit")
        page.wait_for_function(LIVE_BAR, polling=20, timeout=1_000 * MOST_SECONDS)
        row = {"page_seconds": answered, "live_bar_seconds": time.monotonic() - program.began}
        page.goto("about:blank")  # which gives the kernel back
        program.stop()
    return row


def wait_for_answer(url: str, program: Program) -> None:
    """Return once somebody answers there. Ends the bench if the program has ended, or after three minutes."""
    deadline = time.monotonic() + MOST_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError as error:
            program.check()
            if time.monotonic() > deadline:
                raise SystemExit(f"cannot measure the page: {error} after {MOST_SECONDS:.0f} s; {program.said}") from error
        time.sleep(0.05)


def check_run(settings: Settings) -> None:
    """End the bench if the table of the runs is wrong."""
    check_table(start_services(settings))
    stop_services(settings)
