"""Make the archive of Spark's classes: a run of the whole line, a few seconds on services of its own, and what it loaded is kept.

Java's own class-data sharing writes it when the run ends. Called by the set-up: `python -m pipeline_lib.record_classes`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from pipeline_lib import pipeline
from pipeline_lib.class_archive import QUIET, archive_of
from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError
from pipeline_lib.own_services import OwnServices
from pipeline_lib.services import start_services
from pipeline_lib.services.jars import connector_jars
from pipeline_lib.services.java import SHARE, find_java
from pipeline_lib.sources import open_source
from pipeline_lib.stream import SparkRuntime, end_session, open_session

TICKS = 1_000
END_SECONDS = 120.0


def record_classes(home: Path) -> Path:
    """Return the archive, made by a run whose services and files are in `home`, if it was not there."""
    java, jars = find_java(), tuple(connector_jars(None))
    archive = archive_of(java, jars)
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    fresh = archive.with_suffix(f".{os.getpid()}")
    own = OwnServices(Settings.load(pipeline_home=home, source="simulated", simulated_rate=100_000), "line")
    try:
        settings = start_services(own.settings)
        pipeline.produce(settings, open_source(settings, ticks=TICKS))
        options = (f'-XX:ArchiveClassesAtExit="{fresh.as_posix()}"', QUIET)
        session = open_session(settings.spark_master, SparkRuntime(java.home, jars, home / "spark.log", home / "spark", options))
        with pipeline.running_stream(settings, session) as stream:
            if not stream.wait_for_commit(END_SECONDS):
                raise PipelineError("cannot make the archive of Spark's classes: the stream committed nothing")
        end_session(session, END_SECONDS)
        if not fresh.exists():
            raise PipelineError(f"cannot make the archive of Spark's classes: Java {java.version} wrote none")
        fresh.replace(archive)  # at once: a stream may be starting
    finally:
        own.close()
        fresh.unlink(missing_ok=True)
    return archive


def main() -> int:
    """Make the archive in front of a person. It is a gain of time and nothing else, so that it cannot be made is no fault."""
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)  # a set-up has nothing to do with whatever they name
    with tempfile.TemporaryDirectory(prefix="stocks-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / ".pipeline"
        home.mkdir()
        os.chdir(folder)  # nor has it with the settings of the project: this folder is one of its own
        try:
            record_classes(home)
        except Exception as error:
            shutil.rmtree(SHARE / "classes", ignore_errors=True)
            print(f"      left out: {str(error).splitlines()[0] if str(error) else type(error).__name__}; Spark starts without", flush=True)
        finally:
            os.chdir("/")
    return 0


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)  # py4j's threads would wait for a Java that has ended
