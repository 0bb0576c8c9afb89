"""The notebooks run: each alone, held to its stored outputs by nbval, and those of one topic in a chain under papermill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat

from pipeline_lib.config import Settings
from pipeline_lib.pipeline import Place, open_store, verify
from pipeline_lib.services import service_status

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CELL_SECONDS = 300
CHAIN_TICKS = 5_000
SENTINEL = "sentinel9key9that9nobody9may9see"


def run_python(arguments: list[str], cwd: Path, **environment: str) -> None:
    """Run this Python with the arguments; what it says is shown if its exit status is not 0."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def left_behind(settings: Settings) -> list[str]:
    """Return the names of what notebooks have made on the services and not removed."""
    from pipeline_lib.topics import list_topics

    store = open_store(settings)
    databases = store.query("select datname from pg_database")["datname"].tolist()
    store.close()
    assert settings.kafka_bootstrap_servers is not None
    return [name for name in (*databases, *list_topics(settings.kafka_bootstrap_servers)) if name.startswith("notebook-")]


def test_stored_outputs_are_what_a_run_shows(services: Settings, notebook: Path) -> None:
    before = left_behind(services)
    options = ["--nbval", f"--nbval-cell-timeout={CELL_SECONDS}", "--nbval-kernel-name=python3", "-p", "no:cacheprovider", "-q"]
    run_python(["-m", "pytest", *options, str(notebook)], cwd=NOTEBOOKS.parent)
    assert left_behind(services) == before, "a place of its own is removed"


def test_one_topic_goes_through_all_of_them_in_order(services: Settings, tmp_path: Path) -> None:
    """Run from another folder, as papermill may be: the caller's, not the notebook's."""
    before = [(status.name, status.pid) for status in service_status(services)]
    with Place(services, "chain") as place:
        settings = place.settings
        assert settings.database_url is not None and settings.kafka_bootstrap_servers is not None
        own = {
            "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
            "DATABASE_URL": settings.database_url.get_secret_value(),
            "PIPELINE_HOME": str(settings.pipeline_home.absolute()),
            "FINNHUB_API_KEY": SENTINEL,  # which nothing asks for here, and nothing may show
        }
        for notebook in sorted(NOTEBOOKS.glob("0[0-5]*.ipynb")):  # 06 breaks a pipeline of its own, and has no part in this topic
            parameters = {"TOPIC": settings.kafka_topic, "TICKS": CHAIN_TICKS, "WINDOW": "10 seconds", "WATCH_BATCHES": 3}
            known = nbformat.read(notebook, as_version=4)
            (cell,) = [cell for cell in known.cells if "parameters" in cell.metadata.get("tags", [])]
            given = [part for name, value in parameters.items() if f"{name} = " in cell.source for part in ("-p", name, str(value))]
            options = ["--no-progress-bar", "--execution-timeout", str(CELL_SECONDS), "-k", "python3"]
            run_python(["-m", "papermill", *options, *given, str(notebook), str(tmp_path / notebook.name)], cwd=tmp_path, **own)
            if notebook.name >= "03":
                assert verify(settings).equal, notebook.name
        assert [path.name for path in tmp_path.glob("*.ipynb") if SENTINEL in path.read_text("utf-8")] == []
        store = open_store(settings)
        bars = store.query("select symbol, sum(tick_count)::bigint as ticks, max(window_start) as latest from stock_aggregates group by 1")
        accounts, letters = store.load_accounts(), store.load_dead_letters()
        store.close()
        assert set(bars["symbol"]) == set(settings.symbols)
        assert bars["ticks"].sum() == accounts["good_count"].sum() >= 2 * CHAIN_TICKS
        assert len(letters) == accounts["dead_letter_count"].sum() == 2, "one bad message of notebook 02, one of 03"
        assert (bars["latest"].dt.year > 2025).all(), "the live dashboard's ticks are there as well"
    assert [(status.name, status.pid) for status in service_status(services)] == before, "the services are the same processes as before"
