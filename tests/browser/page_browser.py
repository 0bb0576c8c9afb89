"""Chromium, and a page in it whose every fault is noted."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright
from playwright.sync_api import Error as PlaywrightError

from pipeline_lib.services.process import is_free

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


def launch(playwright: Playwright) -> Browser:
    """Return the browser that is found on this machine; skips the test, saying how to get one, if there is none."""
    named = os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
    try:
        return playwright.chromium.launch(executable_path=named, args=FLAGS)
    except PlaywrightError:
        if named:
            raise
        pytest.skip(HOW)


def free_port() -> int:
    """Return a port for a page."""
    return next(port for port in range(18900, 19900) if is_free(port))


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
