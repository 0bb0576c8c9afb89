"""The jars of the broker and of Spark's Kafka connector: fetched once a venv, and checked against committed checksums.

`jars.xml` names them, `jars.sha256` holds their sums, Apache Ivy (which pyspark carries) fetches them. They lie in the
venv's share folder, so that every PIPELINE_HOME of one venv uses the same. Nothing is resolved: the list is complete.
Called by the set-up, `kafka`, the stream (`connector_jars`) and `doctor` (`check_jars`).
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from pipeline_lib.errors import InstallError
from pipeline_lib.services.java import SHARE, find_java
from pipeline_lib.services.locks import hold_lock

Report = Callable[[str], None]
Set = Literal["broker", "connector"]

HERE = Path(__file__).parent
JARS = SHARE / "jars"

FETCH_SECONDS = 900  # how long a second command waits for one that is fetching
SILENT_SECONDS = 300  # the largest jar has 9 MB: a line that needs longer for it has to be called dead
# Java waits without end for a server that does not answer, unless it is told not to.
CONNECT_OPTIONS = ("-Dsun.net.client.defaultConnectTimeout=20000", "-Dsun.net.client.defaultReadTimeout=60000")
NO_NETWORK = "You probably access the destination server through a proxy"  # what Ivy says when it finds no host
UNREACHABLE = "the public repository cannot be reached"


class _Stamp(msgspec.Struct):
    """What was checked: the list of sums, and size and modification time of each jar at that moment."""

    sums: str
    jars: dict[str, tuple[int, int]]


def recorded_sums() -> dict[str, str]:
    """Return the sha256 on record of every jar, by its name "broker/kafka_2.13-4.3.1.jar"."""
    lines = (HERE / "jars.sha256").read_text().splitlines()
    return {name: total for total, name in (line.split(maxsplit=1) for line in lines)}


def jar_version(artifact: str, of: Set = "broker") -> str:
    """Return the version of an artifact on record: "4.3.1" for "kafka_2.13"."""
    start = f"{of}/{artifact}-"
    found = [name for name in recorded_sums() if name.startswith(start) and name[len(start)].isdigit()]
    return found[0].removeprefix(start).removesuffix(".jar")


def broker_classpath(report: Report | None = None, folder: Path = JARS) -> str:
    """Return the class path of the broker; fetches the jars if they are not there."""
    fetch_jars(report, folder)
    return os.pathsep.join(str(folder / name) for name in recorded_sums() if name.startswith("broker/"))


def connector_jars(report: Report | None = None, folder: Path = JARS) -> list[Path]:
    """Return the jars that Spark needs to read Kafka, for `spark.jars`; fetches them if they are not there."""
    fetch_jars(report, folder)
    return [folder / name for name in recorded_sums() if name.startswith("connector/")]


def fetch_jars(report: Report | None = None, folder: Path = JARS) -> None:
    """Make sure that every jar lies in the folder, with its sum on record; the second call reads nothing but the names.

    Raises InstallError if one cannot be had, or has another sum.
    """
    if _is_stamped(folder):
        return
    try:
        with hold_lock(folder.with_name(f"{folder.name}.lock"), FETCH_SECONDS):
            if _is_stamped(folder):
                return
            present = check_jars(folder)
            missing = [name for name in recorded_sums() if name not in present]
            if missing:
                _fetch(len(missing), folder, report or (lambda line: None))
            _write_stamp(folder)
    except OSError as error:
        raise InstallError(_disk_fault(error, folder)) from error


def check_jars(folder: Path = JARS) -> list[str]:
    """Return the names of the jars that are present; every one of them was read and has its sum on record.

    Raises InstallError that names the first one that differs.
    """
    present = []
    for name, recorded in recorded_sums().items():
        jar = folder / name
        if not jar.is_file():
            continue
        _compare(jar, recorded)
        present.append(name)
    return present


def _compare(jar: Path, recorded: str) -> None:
    with jar.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != recorded:
        raise InstallError(
            f"cannot use {jar}: its sha256 is {found}, the one on record is {recorded}; delete the file and run `make install`, "
            "and if it comes again, do not trust where it came from"
        )


def _is_stamped(folder: Path) -> bool:
    try:
        stamp = msgspec.json.decode((folder / "checked.json").read_bytes(), type=_Stamp)
        return stamp == _stamp(folder)
    except (OSError, msgspec.DecodeError):
        return False  # no stamp, a broken one, or a jar is missing: the long way decides


def _stamp(folder: Path) -> _Stamp:
    jars = {}
    for name in recorded_sums():
        status = (folder / name).stat()
        jars[name] = (status.st_size, status.st_mtime_ns)
    return _Stamp(hashlib.sha256((HERE / "jars.sha256").read_bytes()).hexdigest(), jars)


def _write_stamp(folder: Path) -> None:
    fresh = folder / f"checked.json.{os.getpid()}"
    fresh.write_bytes(msgspec.json.encode(_stamp(folder)))
    fresh.replace(folder / "checked.json")


def _fetch(missing: int, folder: Path, report: Report) -> None:
    """Fetch all jars beside the folder and move them in; Ivy keeps there what an interrupted call has fetched."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    total = len(recorded_sums())
    report(f"jars: fetching {missing} of {total} (54 MB)")
    done = 0
    last = ""
    for line in _run_ivy(part):
        if NO_NETWORK in line:
            last = UNREACHABLE
            break
        if "[SUCCESSFUL ]" in line:
            done += 1
            report(f"jars: {done} of {total} fetched, {line.split('#')[-1].split('!')[0].replace(';', ' ')}")
        last = line
    fetched = part / "jars"
    for name, recorded in recorded_sums().items():
        if not (fetched / name).is_file():
            what = "the jars" if last == UNREACHABLE else f"the jar {name}"
            raise InstallError(
                f"cannot fetch {what}: {last}; check the network (https_proxy is honoured) and run `make install` again, "
                f"or copy {folder} from a machine that has it"
            )
        _compare(fetched / name, recorded)
    for name in recorded_sums():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (fetched / name).replace(folder / name)
    shutil.rmtree(part)


def _run_ivy(part: Path) -> Iterator[str]:
    """Yield what Ivy says, line by line; end it when it is silent for too long or when nobody reads on."""
    command = [
        *(str(find_java().executable), "-Xmx256m", *CONNECT_OPTIONS, *_proxy_options()),
        *(f"-Divy.default.ivy.user.dir={part / 'ivy'}", "-cp", _ivy_classpath(), "org.apache.ivy.Main"),
        *("-settings", str(HERE / "jars-settings.xml"), "-ivy", str(HERE / "jars.xml"), "-confs", "broker", "connector"),
        *("-retrieve", f"{part.as_posix()}/jars/[conf]/[artifact]-[revision].[ext]"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=part) as ivy:
        assert ivy.stdout is not None
        try:
            while True:
                watch = threading.Timer(SILENT_SECONDS, ivy.kill)
                watch.start()
                try:
                    line = ivy.stdout.readline()
                finally:
                    watch.cancel()
                if not line:
                    break
                if line.strip(" .:\t\n"):
                    yield line.strip()
        finally:
            ivy.kill()


def _ivy_classpath() -> str:
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise InstallError("cannot fetch the jars: the package pyspark, which carries Apache Ivy, is not installed; run `make install`")
    jars = Path(spec.origin).parent / "jars"
    return os.pathsep.join(str(jar) for pattern in ("ivy-*.jar", "commons-cli-*.jar") for jar in jars.glob(pattern))


def _proxy_options() -> list[str]:
    """Return the proxy of the environment in Java's words: Java does not read https_proxy by itself."""
    proxy = urlsplit(urllib.request.getproxies().get("https", ""))
    if proxy.hostname is None:
        return []
    return [f"-Dhttps.proxyHost={proxy.hostname}", f"-Dhttps.proxyPort={proxy.port or 8080}"]


def _disk_fault(error: OSError, folder: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"cannot keep the jars in {folder}: the disk is full; free 200 MB and run `make install` again"
    return f"cannot keep the jars in {folder}: {error.strerror or error}; make the folder writable and run `make install` again"


def main() -> int:
    """Fetch the jars in front of a person, and return the exit code: what the set-up calls."""
    in_place = sys.stdout.isatty()

    def show(line: str) -> None:
        number = next((int(word) for word in line.split() if word.isdigit()), 0)
        if in_place:
            print(f"\r      {line[:70]:<70}", end="", flush=True)
        elif number % 10 == 0:
            print(f"      {line}", flush=True)

    try:
        fetch_jars(show)
    except InstallError as error:
        print(f"\n{error}" if in_place else error, file=sys.stderr)
        return 1
    if in_place:
        print("\r" + " " * 78 + "\r", end="")
    return 0
