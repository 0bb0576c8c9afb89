"""A sentinel key goes through the live feed and every fault, as a process of its own; then it is looked for everywhere.

Where it may be: in the settings' own places, the environment and `.env`, and in what is sent to Finnhub.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pyspark.sql import SparkSession
from runs import assert_eventually

from pipeline_lib import pipeline, topics
from pipeline_lib.finnhub_stand_in import REST_FAULTS, SOCKET_FAULTS, Answer, FinnhubStandIn, Plan
from pipeline_lib.records import status_topic
from pipeline_lib.schema import TABLES
from pipeline_lib.sources.simulated import SimulatedMarket
from pipeline_lib.supervise import stage_environment

SENTINEL = "sentinel7key7that7nobody7may7see"
SYMBOLS = ("AAPL", "MSFT", "NONE")
FATAL = ("401", "403", "slow")  # the first two end the feed, so they come at its end; a time-out takes long
TELLING = Answer(500, {"error": f"what is {SENTINEL}?"})


def command_lines() -> str:
    """Return the command lines of all processes."""
    return "\n".join(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each file below a folder, by its name and what is in it."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_socket():
            yield str(path), path.read_bytes()


def rows_of(place: pipeline.Place) -> dict[str, str]:
    """Return all rows of each table, as text."""
    store = pipeline.open_store(place.settings)
    tables = {name: store.query(f"select t::text as row from {name} t")["row"].str.cat(sep="\n") for name in TABLES}
    store.close()
    return tables


def messages_of(place: pipeline.Place, topic: str) -> bytes:
    """Return all keys and values of a topic."""
    servers = pipeline.servers_of(place.settings)
    ranges = topics.read_offsets(servers, topic)
    ends = {number: found.latest for number, found in ranges.items()}
    starts = {number: found.earliest for number, found in ranges.items()}
    return b"\n".join((each.key or b"") + (each.value or b"") for each in topics.read_messages(servers, topic, starts, ends))


def test_the_key_is_found_nowhere_after_every_fault(
    place: pipeline.Place, session: SparkSession, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    market = SimulatedMarket(SYMBOLS[:2], seed=3, rate=40)
    plan = Plan(per_minute=1_200)
    with FinnhubStandIn(SENTINEL, market=market, plan=plan) as stand_in, pipeline.running_stream(place.settings, session) as stream:
        settings = place.settings.replaced(
            finnhub_api_key=SENTINEL,
            finnhub_base_url=stand_in.rest_url,
            finnhub_websocket_url=stand_in.websocket_url,
            finnhub_calls_per_minute=plan.per_minute,
            finnhub_socket_symbols=1,
            symbols=SYMBOLS,
            source="finnhub",
        )
        environment = {**stage_environment(settings), "XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONDEVMODE": "1"}
        seen = ""
        with pipeline.Heartbeat(place.settings, stream), (tmp_path / "feed.log").open("wb") as log:
            feed = subprocess.Popen(
                [sys.executable, "-m", "pipeline_lib.cli", "produce"], env=environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                assert_eventually(lambda: len(stand_in.ledger.polls) > 3 and bool(stand_in.subscribed), bool, seconds=60)
                seen += command_lines()
                for name in SOCKET_FAULTS:
                    stand_in.fault(name, seconds=0.5)
                    threading.Event().wait(0.3)
                for fault in (TELLING, *(name for name in REST_FAULTS if name not in FATAL)):
                    stand_in.faults.extend([fault, None])  # a good answer between two, so that the waits do not grow
                assert_eventually(lambda: not stand_in.faults, bool, seconds=120)
                store = pipeline.open_store(place.settings)
                assert_eventually(lambda: len(store.load_gaps()) > 0 and len(store.load_freshness()) > 0, bool, seconds=30)
                assert set(store.load_freshness()["symbol"]) == set(SYMBOLS)
                store.close()
                seen += command_lines()
                stand_in.faults.append(Answer(403, {"error": f"not with {SENTINEL}"}))
                assert feed.wait(60) == 2
            finally:
                feed.kill()
                feed.wait()
    refused = subprocess.run(
        [sys.executable, "-m", "pipeline_lib.cli", "doctor"],
        env={**environment, "SPARK_MASTER": "local[1]"},
        cwd=tmp_path,
        capture_output=True,
    )
    log = (tmp_path / "feed.log").read_bytes()
    assert b"not with ***" in log and b"what is ***?" in log  # it was said, and masked
    found = {
        "command lines": seen.encode(),
        "doctor": refused.stdout + refused.stderr,
        "our own output": "".join(capfd.readouterr()).encode(),
        "data": messages_of(place, place.settings.kafka_topic),
        "status": messages_of(place, status_topic(place.settings.kafka_topic)),
        **{name: rows.encode() for name, rows in rows_of(place).items()},
        **dict(files_below(tmp_path)),
        **dict(files_below(place.settings.pipeline_home / "logs")),
    }
    assert [name for name, text in found.items() if SENTINEL.encode() in text or SENTINEL in name] == []
    assert found["data"] and found["status"] and found["feed_gaps"] and found["symbol_freshness"] and found["doctor"]
    assert any("finnhub-calls" in name for name in found)
