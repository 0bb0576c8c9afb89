"""A live run is the same notebook with two parameters changed, and the key is in nothing that it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_runs import CELL_SECONDS, NOTEBOOKS, run_python

from pipeline_lib.config import Settings
from pipeline_lib.finnhub_stand_in import FinnhubStandIn, Plan
from pipeline_lib.sources.simulated import SimulatedMarket
from pipeline_lib.supervise import stage_environment

SENTINEL = "sentinel8key8that8nobody8may8see"


@pytest.mark.parametrize("name", ["01_produce_market_data.ipynb", "02_inspect_kafka.ipynb"])
def test_a_live_run_shows_no_key(services: Settings, name: str, tmp_path: Path) -> None:
    market = SimulatedMarket(services.symbols, seed=5, rate=100)
    with FinnhubStandIn(SENTINEL, market=market, plan=Plan(per_minute=1_200)) as stand_in:
        settings = services.replaced(
            finnhub_api_key=SENTINEL,
            finnhub_base_url=stand_in.rest_url,
            finnhub_websocket_url=stand_in.websocket_url,
            finnhub_calls_per_minute=1_200,
        )
        environment = {**stage_environment(settings), "XDG_STATE_HOME": str(tmp_path / "state")}
        options = [
            "--no-progress-bar",
            "--execution-timeout",
            str(CELL_SECONDS),
            "-k",
            "python3",
            "-p",
            "SOURCE",
            "finnhub",
            "-p",
            "TICKS",
            "300",
        ]
        run_python(["-m", "papermill", *options, str(NOTEBOOKS / name), str(tmp_path / name)], cwd=tmp_path, **environment)
        assert len(stand_in.ledger.polls) > 0
    text = (tmp_path / name).read_text("utf-8")
    assert "finnhub-" in text  # what came is shown
    assert [str(path) for path in tmp_path.rglob("*") if path.is_file() and SENTINEL.encode() in path.read_bytes()] == []
