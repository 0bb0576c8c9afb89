"""What the pipeline needs, checked one by one, with the remedy for each fault.

It looks, and changes nothing: no service is started, no topic or table made, no jar fetched. Called by `stocks doctor`.
"""

from __future__ import annotations

import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from pipeline_lib import topics
from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError, TopicError, UnavailableError
from pipeline_lib.services import find_services, process, service_status
from pipeline_lib.services.jars import JARS, check_jars, recorded_sums
from pipeline_lib.services.java import find_java
from pipeline_lib.services.postgres import find_binaries
from pipeline_lib.sources import plan_words
from pipeline_lib.store import Store

OLDEST_PYTHON = (3, 11)
LITTLE_GB, TOO_LITTLE_GB = 5.0, 1.0  # a week of ticks of eight symbols takes far less than one

Verdict = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """One thing that was looked at. ``remedy`` is there if the verdict is not "ok"."""

    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None


def check(settings: Settings) -> list[Check]:
    """Return every check, in the order in which faults should be cured. None of them raises, and none shows a secret."""
    return [
        _check_python(),
        _guarded("Java", _check_java),
        _guarded("jars", _check_jars),
        _guarded("PostgreSQL", _check_postgres),
        _guarded("disk", lambda: _check_disk(settings)),
        *_check_ports(settings),
        _check_key(settings),
        *_check_services(settings),
        _guarded("topic", lambda: _check_topic(settings)),
        _guarded("schema", lambda: _check_schema(settings)),
    ]


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """Return what was found, or the error as a fault: its text ends with the remedy."""
    try:
        return look()
    except UnavailableError as error:
        return Check(name, "warn", str(error), "start the services with `stocks up`, or correct the address")
    except PipelineError as error:
        found, _, remedy = str(error).rpartition("; ")
        return Check(name, "fail", found or remedy, remedy)
    except OSError as error:
        return Check(name, "fail", str(error), "give the folder back its permissions, or set PIPELINE_HOME to another")


def _check_python() -> Check:
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info < OLDEST_PYTHON:
        return Check("Python", "fail", found, "install 3.11 or newer, and run `make install`")
    return Check("Python", "ok", found)


def _check_java() -> Check:
    java = find_java()
    return Check("Java", "ok", f"{java.version}, {java.origin}")


def _check_jars() -> Check:
    present, wanted = check_jars(), recorded_sums()
    if len(present) < len(wanted):
        missing = sorted(set(wanted) - set(present))
        return Check("jars", "fail", f"{len(missing)} of {len(wanted)} are missing, {missing[0]} first", "run `make install`")
    return Check("jars", "ok", f"all {len(present)} have the sha256 on record, in {JARS}")


def _check_postgres() -> Check:
    return Check("PostgreSQL", "ok", f"programs of version {find_binaries().version}")


def _check_disk(settings: Settings) -> Check:
    existing = next(folder for folder in (settings.pipeline_home, *settings.pipeline_home.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e9
    found = f"{free:.1f} GB are free in {existing}"
    if free < LITTLE_GB:
        return Check("disk", "fail" if free < TOO_LITTLE_GB else "warn", found, "free some, or set PIPELINE_HOME to another disk")
    return Check("disk", "ok", found)


def _check_ports(settings: Settings) -> Iterator[Check]:
    for status in service_status(settings):
        state = process.read_state(settings.pipeline_home / status.name)
        if state is None or status.state in ("running", "external"):
            continue
        taken = [port for port in state.ports.values() if not process.is_free(port)]
        if taken:
            yield Check(
                f"ports of {status.name}", "warn", f"{taken} taken by another program", "none is needed: `stocks up` chooses others"
            )
    port = settings.dashboard_port
    if process.is_free(port):
        yield Check("dashboard port", "ok", f"{port} is free")
    else:
        yield Check("dashboard port", "warn", f"{port} is taken, by a dashboard or another program", "end it, or set DASHBOARD_PORT")


def _check_key(settings: Settings) -> Check:
    if settings.finnhub_api_key is not None:
        return Check("key", "ok", f"FINNHUB_API_KEY is set; {plan_words(settings)}")
    if settings.source == "finnhub":
        return Check("key", "fail", "SOURCE is finnhub, and there is no FINNHUB_API_KEY", "put the key into .env, or set SOURCE=simulated")
    return Check("key", "ok", f"there is none: the source is {settings.chosen_source}; for live data put FINNHUB_API_KEY into .env")


def _check_services(settings: Settings) -> Iterator[Check]:
    for status in service_status(settings):
        if status.state == "external":
            yield _check_address(status.name, status.address or "")
        elif status.state == "running":
            yield Check(status.name, "ok", f"{status.version}, running at {status.address}, {status.memory_mb} MB")
        elif status.state == "died":
            yield Check(
                status.name, "fail", f"it ran, and ended without being stopped; its log is {status.log}", "start it again with `stocks up`"
            )
        else:
            yield Check(status.name, "warn", "not running", "start it with `stocks up`")


def _check_address(name: str, address: str) -> Check:
    """Return whether something listens at an address that was given; what listens there is found by the checks after it."""
    for each in address.split(","):
        parts = urlsplit(each if "//" in each else f"//{each}")
        try:
            host, port = parts.hostname or "127.0.0.1", parts.port or (5432 if name == "postgres" else 9092)
            with socket.create_connection((host, port), timeout=3):
                return Check(name, "ok", f"external, {host}:{port} can be reached")
        except (OSError, ValueError) as error:
            reason = error
    setting = "DATABASE_URL" if name == "postgres" else "KAFKA_BOOTSTRAP_SERVERS"
    return Check(name, "fail", f"external, {address} cannot be reached: {reason}", f"start it, or correct {setting}, or remove it")


def _check_topic(settings: Settings) -> Check:
    name = settings.kafka_topic
    if _is_down(settings, "kafka"):
        return Check("topic", "warn", f"{name}: not looked at, Kafka is not running", "start it with `stocks up`")
    servers = settings.kafka_bootstrap_servers or find_services(settings.replaced(database_url="unused:")).kafka_bootstrap_servers
    assert servers is not None
    try:
        topic = topics.describe_topic(servers, name)
    except TopicError:
        return Check("topic", "warn", f"{name} does not exist yet", "`stocks produce` or `stocks run` creates it")
    wrong = [f"{key} is {topic.config.get(key)}" for key, value in topics.TOPIC_CONFIG.items() if topic.config.get(key) != value]
    found = f"{name}, {len(topic.partitions)} partitions, id {topic.id}"
    if wrong:
        return Check(
            "topic", "warn", f"{found}; {', '.join(wrong)}", f"set {topics.TOPIC_CONFIG} with kafka-configs, or name another KAFKA_TOPIC"
        )
    return Check("topic", "ok", found)


def _check_schema(settings: Settings) -> Check:
    if _is_down(settings, "postgres"):
        return Check("schema", "warn", "not looked at, PostgreSQL is not running", "start it with `stocks up`")
    url = settings.database_url or find_services(settings.replaced(kafka_bootstrap_servers="unused:1")).database_url
    assert url is not None
    store = Store(url.get_secret_value(), settings.kafka_topic)
    try:
        if store.check_tables():
            return Check("schema", "ok", "tables and views are what this program creates")
        return Check("schema", "warn", "there are no tables yet", "`stocks stream` or `stocks run` creates them")
    finally:
        store.close()


def _is_down(settings: Settings, name: str) -> bool:
    return any(status.name == name and status.state in ("stopped", "died") for status in service_status(settings))
