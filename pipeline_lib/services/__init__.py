"""Apache Kafka and PostgreSQL: the ones whose addresses are given, or else real ones on this machine.

Services that are started here outlive the command that starts them, and are found again by every other command, notebook
and test that has the same PIPELINE_HOME. What has an address in the settings is used, and never started or stopped.
Called by the command line, the notebooks and the tests; stages know addresses only.

    settings = start_services(Settings.load())      # starts what does not run, fills in both addresses
    settings = find_services(Settings.load())       # the same, but a service that does not run is an error
    stop_services(Settings.load())                  # ["kafka", "postgres"]
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from pipeline_lib.config import Settings, masked_url
from pipeline_lib.errors import ServiceError
from pipeline_lib.services import kafka, postgres, process
from pipeline_lib.services.locks import hold_lock
from pipeline_lib.services.postgres_user import remove_shelters
from pipeline_lib.services.process import State
from pipeline_lib.services.status import ServiceStatus, local_status

__all__ = [
    "ServiceStatus",
    "find_died",
    "find_services",
    "kill_service",
    "remove_services",
    "service_status",
    "start_services",
    "stop_services",
]

LOCK_SECONDS = 1_000  # the first start may fetch the jars

Report = Callable[[str], None]


def start_services(settings: Settings, report: Report | None = None) -> Settings:
    """Start the services that neither run nor have an address, and return the settings with both addresses.

    Two commands that start at once start one: the second waits, and finds it. Raises ServiceError or InstallError that
    says what is wrong.
    """
    report = report or (lambda line: None)
    home = settings.pipeline_home
    try:
        home.mkdir(parents=True, exist_ok=True)
        with hold_lock(home / "services.lock", LOCK_SECONDS):
            if settings.database_url is None:
                _ensure(postgres, "PostgreSQL", home / "postgres", report)
            if settings.kafka_bootstrap_servers is None:
                _ensure(kafka, "Kafka", home / "kafka", report)
    except OSError as error:
        raise ServiceError(
            f"cannot start the services in {home}: {error}; free or open the disk, or set PIPELINE_HOME to another folder"
        ) from error
    return find_services(settings)


def find_services(settings: Settings) -> Settings:
    """Return the settings with the addresses of the services that run.

    Raises ServiceError that names the one that does not.
    """
    home = settings.pipeline_home
    found: dict[str, str] = {}
    if settings.kafka_bootstrap_servers is None:
        found["kafka_bootstrap_servers"] = _kafka_address(_running("Kafka", home / "kafka"))
    if settings.database_url is None:
        found["database_url"] = postgres.database_url(home, _running("PostgreSQL", home / "postgres"))
    return settings.replaced(**found) if found else settings


def stop_services(settings: Settings) -> list[str]:
    """Stop the services of this PIPELINE_HOME, PostgreSQL last, and return the names of those that ran.

    A service whose address is given is not touched.
    """
    home = settings.pipeline_home
    if not home.exists():
        return []
    stopped = []
    with hold_lock(home / "services.lock", LOCK_SECONDS):
        for name, service, given in (("kafka", kafka, settings.kafka_bootstrap_servers), ("postgres", postgres, settings.database_url)):
            state = process.read_state(home / name)
            if given is not None or state is None or state.born is None:
                continue
            if process.find_process(state.born) is not None:
                service.stop(state.born)
                stopped.append(name)
            process.write_state(home / name, State(born=None, ports=state.ports, version=state.version, data=state.data))
    return stopped


def remove_services(settings: Settings) -> None:
    """Stop the services of this PIPELINE_HOME and delete their data, wherever it lies; what has an address is left alone.

    For tests and benchmarks, which have a PIPELINE_HOME of their own: the data of a server that root started may lie
    outside of it, and would be left over.
    """
    stop_services(settings)
    if settings.kafka_bootstrap_servers is None and (settings.pipeline_home / "kafka").exists():
        shutil.rmtree(settings.pipeline_home / "kafka")
    if settings.database_url is None and (settings.pipeline_home / "postgres").exists():
        remove_shelters(settings.pipeline_home / "postgres")
        shutil.rmtree(settings.pipeline_home / "postgres")


def service_status(settings: Settings) -> list[ServiceStatus]:
    """Return what can be said of Kafka and PostgreSQL now, without starting anything."""
    home = settings.pipeline_home
    statuses = []
    if settings.kafka_bootstrap_servers is not None:
        statuses.append(ServiceStatus(name="kafka", state="external", address=settings.kafka_bootstrap_servers))
    else:
        state = process.read_state(home / "kafka")
        statuses.append(local_status("kafka", home / "kafka" / "kafka.log", state, _kafka_address(state) if state else None))
    if settings.database_url is not None:
        statuses.append(ServiceStatus(name="postgres", state="external", address=masked_url(settings.database_url.get_secret_value())))
    else:
        state = process.read_state(home / "postgres")
        address = masked_url(postgres.database_url(home, state)) if state else None
        statuses.append(local_status("postgres", home / "postgres" / "postgres.log", state, address))
    return statuses


def find_died(settings: Settings) -> list[str]:
    """Return the names of the services of this PIPELINE_HOME that run no more, though nobody stopped them. Cheap enough to ask often."""
    states = {name: process.read_state(settings.pipeline_home / name) for name in _local(settings)}
    return [name for name, state in states.items() if state and state.born and process.find_process(state.born) is None]


def kill_service(settings: Settings, name: str) -> None:
    """Kill a service of this PIPELINE_HOME as `kill -9` does.

    Raises ServiceError if it does not run, or if its address is given: then it is not ours to kill.
    """
    if name not in _local(settings):
        raise ServiceError(f"cannot kill {name}: its address is given, so it is not ours; name none, and one is started that is")
    state = process.read_state(settings.pipeline_home / name)
    found = process.find_process(state.born) if state else None
    if found is None:
        raise ServiceError(f"cannot kill {name}: it does not run; wait until it is started again")
    found.kill()


def _local(settings: Settings) -> list[str]:
    """Return the names of the services that have no address in the settings, and so are ours to run."""
    given = {"kafka": settings.kafka_bootstrap_servers, "postgres": settings.database_url}
    return [name for name, address in given.items() if address is None]


def _ensure(service: ModuleType, name: str, folder: Path, report: Report) -> None:
    """Start the service unless it runs; one that a killed command has just started is waited for."""
    state = process.read_state(folder)
    if state is not None and process.find_process(state.born) is not None and service.wait_ready(folder.parent, state):
        return
    if state is not None and state.born is not None:
        report(f"{name} is not running any more, though nobody stopped it: starting it again with its data")
    started: State = service.start(folder.parent, report)
    report(f"{name} {started.version} on 127.0.0.1:{started.ports['client']}")


def _running(name: str, folder: Path) -> State:
    state = process.read_state(folder)
    if state is None or process.find_process(state.born) is None:
        given = "KAFKA_BOOTSTRAP_SERVERS" if name == "Kafka" else "DATABASE_URL"
        raise ServiceError(f"cannot find {name}: it is not running in {folder.parent}; start it with `stocks up`, or set {given}")
    return state


def _kafka_address(state: State) -> str:
    return f"127.0.0.1:{state.ports['client']}"
