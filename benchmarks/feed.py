"""From Finnhub's socket to the topic: so many trades a second, and whether any is lost.

The stand-in for Finnhub is a process of its own, as Kafka is; client, feed and producer are this one. All share the machine.
`python -m benchmarks.feed --rate 5000 --seconds 60`
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from pydantic import SecretStr

from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.pipeline import Feed, Place
from pipeline_lib.records import decode_tick
from pipeline_lib.sources.feed_health import FeedHealth
from pipeline_lib.sources.finnhub import FinnhubFeed
from pipeline_lib.sources.finnhub_quotes import FinnhubQuotes
from pipeline_lib.sources.finnhub_trades import FinnhubTrades
from pipeline_lib.sources.rate_limit import RateLimit

KEY = "stand-in"


class FeedResult(NamedTuple):
    """What was delivered on the socket, what of it is in the topic, and how long it took, in milliseconds."""

    delivered: int
    in_topic: int
    ids: int
    seconds: float
    cpu_seconds: float
    half: float
    most: float

    def __str__(self) -> str:
        return (
            f"{self.delivered:,} trades delivered in {self.seconds:.1f} s ({self.delivered / self.seconds:,.0f}/s), "
            f"{self.in_topic:,} in the topic under {self.ids:,} ids; receipt to broker {self.half:.0f} ms (half), "
            f"{self.most:.0f} ms (99 %); {100 * self.cpu_seconds / self.seconds:.0f} % of a core for feed and producer"
        )


@contextlib.contextmanager
def stand_in(rate: float) -> Iterator[int]:
    """Yield the port of a stand-in that delivers so many trades a second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipeline_lib.cli", "finnhub-stand-in", "--port", str(port), "--rate", str(rate), "--key", KEY]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "SOURCE": "simulated"}, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("FINNHUB_BASE_URL="):
                break
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=20)


def control(port: int, what: str, method: str = "POST") -> dict[str, Any]:
    """Return what the stand-in answers to its control."""
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/stand-in/{what}", method=method), timeout=20) as answer:
        return dict(json.load(answer))


def measure(place: Place, rate: float, seconds: float) -> FeedResult:
    """Return what became of the trades of so many seconds, from the first that was delivered."""
    settings = place.settings
    with stand_in(rate) as port:
        health, key = FeedHealth(settings.symbols), SecretStr(KEY)
        quotes = FinnhubQuotes(key, settings.symbols, base_url=f"http://127.0.0.1:{port}/api/v1", limit=RateLimit(), health=health)
        trades = FinnhubTrades(key, settings.symbols, url=f"ws://127.0.0.1:{port}", health=health)
        with Feed(settings, FinnhubFeed(quotes, trades, health=health)):
            while not control(port, "ledger", "GET")["ledger"]["deliveries"]:
                threading.Event().wait(0.05)
            began, cpu = time.monotonic(), time.process_time()
            threading.Event().wait(seconds)
            assert control(port, "hold")["hold"], "the client has not said that it has all"
            took, cpu = time.monotonic() - began, time.process_time() - cpu
            delivered = control(port, "ledger", "GET")["ledger"]["deliveries"]
    servers, topic = pipeline.servers_of(settings), settings.kafka_topic
    ranges = topics.read_offsets(servers, topic)
    ends = {number: found.latest for number, found in ranges.items()}
    ids, waits = set(), []
    for message in topics.read_messages(servers, topic, dict.fromkeys(ranges, 0), ends):
        tick = decode_tick(message.value, message.key)
        if tick.kind == "trade":
            ids.add(tick.id)
            waits.append(message.timestamp - tick.receipt_time)
    return FeedResult(delivered, len(waits), len(ids), took, cpu, float(np.median(waits)), float(np.percentile(waits, 99)))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and end with status 1 if a trade was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=5_000, help="trades a second")
    parser.add_argument("--seconds", type=float, default=60, help="for how long")
    given = parser.parse_args(arguments)
    with Place(Settings.load(), "bench-feed", print) as place:
        result = measure(place, given.rate, given.seconds)
    print(f"feed: {result}")
    if not result.delivered == result.in_topic == result.ids:
        sys.exit(1)


if __name__ == "__main__":
    main()
