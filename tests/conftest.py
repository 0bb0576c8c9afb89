"""What all tests share: the services, started once for the session, and the versions that a report has to name."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from pyspark.sql import SparkSession

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError
from pipeline_lib.services import service_status, start_services, stop_services
from pipeline_lib.services.jars import jar_version
from pipeline_lib.services.java import find_java
from pipeline_lib.services.postgres import find_binaries


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make test-faults` says to tests/faults; without it each fault is tried once, and the long ones not at all."""
    parser.addoption("--repeats", choices=("short", "full"), default="short", help="how often each fault of tests/faults is tried")
    parser.addoption("--soak-minutes", type=float, default=30.0, help="how long the soak of tests/faults lasts, in a full run")


def pytest_report_header() -> list[str]:
    """Return the versions of everything that the tests run on."""

    def found(find: object) -> str:
        try:
            return str(find())  # type: ignore[operator]
        except PipelineError as error:
            return f"none ({error})"

    return [
        f"Python {platform.python_version()}, Java {found(lambda: find_java().version)} ({found(lambda: find_java().origin)})",
        f"Spark {version('pyspark')}, Kafka {jar_version('kafka_2.13')}, "
        f"PostgreSQL {found(lambda: find_binaries().version)}, kafka-python {version('kafka-python')}",
    ]


@pytest.fixture(scope="session")
def services() -> Iterator[Settings]:
    """The settings in force, with the addresses of services that run; those started here are stopped at the end."""
    settings = Settings.load()
    before = {status.name: status for status in service_status(settings)}
    running = start_services(settings, print)
    yield running
    left_alone = {
        "kafka_bootstrap_servers": running.kafka_bootstrap_servers if before["kafka"].state == "running" else None,
        "database_url": running.database_url if before["postgres"].state == "running" else None,
    }
    stop_services(settings.replaced(**left_alone))


@pytest.fixture(scope="session")
def session() -> Iterator[SparkSession]:
    """The Spark session that the stream would use: one for all tests, since it takes seconds to start."""
    found = pipeline.open_spark(Settings.load())
    yield found
    found.stop()


@pytest.fixture
def place(services: Settings, request: pytest.FixtureRequest) -> Iterator[pipeline.Place]:
    """A topic and a database of the test's own, named after it and removed afterwards."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    with pipeline.Place(services, name) as found:
        yield found
