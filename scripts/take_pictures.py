"""Take the pictures of the dashboard that the README shows, light and dark, from a page that is served now.

Usage: python scripts/take_pictures.py http://127.0.0.1:8866/
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def take_pictures(url: str) -> None:
    """Write docs/images/dashboard-light.png and dashboard-dark.png."""
    browser_path = os.environ.get("CHROMIUM") or next((found for name in BROWSERS if (found := shutil.which(name))), None)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1440, "height": 860}, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(url)
            page.wait_for_selector(".sp-chart[data-bars]", timeout=60_000)
            page.wait_for_function("Number(document.querySelector('.sp-chart').dataset.bars) > 1", timeout=60_000)
            page.wait_for_timeout(2_000)  # the chart draws itself in steps that nothing tells of
            page.screenshot(path=IMAGES / f"dashboard-{scheme}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    take_pictures(sys.argv[1])
