"""The page as it is served to the browser tests, and what is behind it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from page_market import Market

from pipeline_lib.config import Settings
from pipeline_lib.services import postgres
from pipeline_lib.services.process import read_state
from pipeline_lib.web import DashboardServer


class Served(NamedTuple):
    """The page, what feeds it, and the database between them."""

    server: DashboardServer
    market: Market
    settings: Settings
    home: Path


def stop_postgres(home: Path) -> None:
    state = read_state(home / "postgres")
    assert state is not None
    if state.born is not None:
        postgres.stop(state.born)
