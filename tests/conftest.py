"""What all tests share: the services, started once for the session, and the versions that a report has to name."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version

import pytest

from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError
from pipeline_lib.services import service_status, start_services, stop_services
from pipeline_lib.services.jars import jar_version
from pipeline_lib.services.java import find_java
from pipeline_lib.services.postgres import find_binaries


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
