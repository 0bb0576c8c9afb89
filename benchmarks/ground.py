"""What a measurement stands on: services of its own, topics loaded with ticks, databases for them.

It measures nothing. All is removed afterwards; a bench that is killed leaves nothing behind either, since the services
live in a folder that a process of its own then removes. Services whose address is given are used, and only topics and
databases of the bench are removed from them. Called by the parts.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.programs import Program
from pipeline_lib import pipeline, topics
from pipeline_lib.config import DEFAULT_SYMBOLS, Settings
from pipeline_lib.database import create_database, drop_database
from pipeline_lib.own_services import OwnServices
from pipeline_lib.records import status_topic
from pipeline_lib.services import start_services
from pipeline_lib.supervise import stage_environment

LOAD_SECONDS = 1_800


class Load(NamedTuple):
    """What a topic is to be filled with. ``per_second`` is how many ticks a second of event time has."""

    ticks: int
    message: str = "small"
    symbols: int = 8
    partitions: int = 4
    per_second: float = 10_000

    def __str__(self) -> str:
        return f"{self.ticks:,} {self.message} ticks, {self.symbols} symbols, {self.partitions} partitions"


class Loaded(NamedTuple):
    """A topic that holds a load: the settings that name it, and the bytes of its messages' values."""

    settings: Settings
    load: Load
    bytes: int


def symbol_names(count: int) -> tuple[str, ...]:
    """Return so many symbols, of which the first are the ones that the pipeline watches by default."""
    return (*DEFAULT_SYMBOLS, *(f"S{number}" for number in range(count)))[:count]


@contextlib.contextmanager
def own_home(name: str = "bench") -> Iterator[Settings]:
    """Yield settings of the simulated market, with a PIPELINE_HOME of their own in which nothing runs yet."""
    given = Settings.load(source="simulated", window="10 seconds")
    own = OwnServices(given.replaced(finnhub_api_key=None), name)
    try:
        yield own.settings
    finally:
        own.close()


@contextlib.contextmanager
def own_services() -> Iterator[Settings]:
    """Yield such settings, with Kafka and PostgreSQL running there, or the given ones."""
    with own_home() as settings:
        yield start_services(settings)


@contextlib.contextmanager
def own_topic(settings: Settings, partitions: int = 4) -> Iterator[Settings]:
    """Yield settings of an empty topic, removed afterwards with all that is in it."""
    servers = pipeline.servers_of(settings)
    topic = f"bench-{secrets.token_hex(3)}-data"
    topics.create_topic(servers, topic, partitions=partitions)
    try:
        yield settings.replaced(kafka_topic=topic)
    finally:
        for name in (topic, status_topic(topic)):
            topics.delete_topic(servers, name)


@contextlib.contextmanager
def own_database(settings: Settings) -> Iterator[Settings]:
    """Yield settings of an empty database for the same topic, so that one topic can be drained again and again."""
    base, name = pipeline.open_store(settings).url, f"bench-{secrets.token_hex(3)}"
    url = create_database(base, name)
    try:
        own = settings.replaced(database_url=url, checkpoint_dir=settings.checkpoint_folder / name)
        yield own
        shutil.rmtree(own.checkpoint_folder, ignore_errors=True)
    finally:
        drop_database(base, name)


@contextlib.contextmanager
def loaded_topic(settings: Settings, load: Load) -> Iterator[Loaded]:
    """Yield a topic that holds the load, written by a process a core."""
    with own_topic(settings, load.partitions) as own, contextlib.ExitStack() as running:
        count = min(os.cpu_count() or 1, load.symbols)
        environment = stage_environment(own.replaced(symbols=symbol_names(load.symbols)))
        writers = [
            running.enter_context(
                Program([sys.executable, "-m", "benchmarks.load", json.dumps([*load, number, count])], environment, f"load-{number}")
            )
            for number in range(count)
        ]
        ended = [writer.wait(LOAD_SECONDS) for writer in writers]
        written = [json.loads(each.said) for each in ended]
        ranges = topics.read_offsets(pipeline.servers_of(own), own.kafka_topic)
        there = sum(found.latest - found.earliest for found in ranges.values())
        if there != load.ticks:
            raise SystemExit(f"cannot measure: the topic holds {there:,} messages, {load.ticks:,} were to be loaded")
        yield Loaded(own, load, sum(each["bytes"] for each in written))
