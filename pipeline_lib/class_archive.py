"""An archive of the classes that Spark loads, made once at set-up: with it a stream starts in about two thirds of the time.

Java's own class-data sharing: a run like the stream's is made, and what it loaded is written down when it ends. The archive
belongs to one Java and one Spark; without it, or with another Java, Spark starts as it always did. Called by the set-up
(`python -m pipeline_lib.class_archive`) and by pipeline.py.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import shutil
import sys
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import PipelineError
from pipeline_lib.records import Tick, encode_key, encode_tick
from pipeline_lib.services.java import SHARE, Java, find_java

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

# What Java has to say of archives is for its log, not for the terminal: its standard output is ours.
_QUIET = "-Xlog:disable -Xlog:all=warning:stderr"

WINDOW_MS = 10_000


def archive_of(java: Java) -> Path:
    """Return where the archive for this Java and the installed Spark is, or would be."""
    place = hashlib.sha256(str(java.home).encode()).hexdigest()[:8]
    return SHARE / "classes" / f"spark-{version('pyspark')}-java-{java.version}-{place}.jsa"


def archive_options(java: Java) -> tuple[str, ...]:
    """Return the options that let Spark's Java use the archive; none where there is no archive."""
    archive = archive_of(java)
    return (f'-XX:SharedArchiveFile="{archive.as_posix()}"', _QUIET) if archive.exists() else ()


def make_archive() -> Path:
    """Return the archive, made by a run of Spark like the stream's, of a few seconds, if it was not there."""
    java = find_java()
    archive = archive_of(java)
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="archive-", dir=archive.parent) as folder:
        fresh = Path(folder) / "fresh.jsa"
        _run_spark(java, Path(folder), (f'-XX:ArchiveClassesAtExit="{fresh.as_posix()}"', _QUIET))
        if not fresh.exists():
            raise PipelineError(f"cannot make the archive of Spark's classes: Java {java.version} wrote none")
        fresh.replace(archive)  # at once: a stream may be starting
    return archive


def _run_spark(java: Java, folder: Path, options: tuple[str, ...]) -> None:
    """Load what a stream loads: a session, a batch, a query with a sink; then let Java end by itself."""
    from pyspark.sql import functions as F

    from pipeline_lib.bars import merge_parts
    from pipeline_lib.stream import SparkRuntime, open_session, prepare_messages

    session = open_session("local[2]", SparkRuntime(java.home, (), folder / "spark.log", folder / "spark", options))
    now = round(dt.datetime.now(dt.UTC).timestamp() * 1000)
    tick = Tick(
        schema=1, id="sim-0", kind="trade", symbol="AAPL", price=1.0, volume=1.0, event_time=now, receipt_time=now, source="simulated"
    )
    messages = (
        session.readStream.format("rate")
        .load()
        .select(
            F.lit(encode_key(tick.symbol)).alias("key"),
            F.lit(encode_tick(tick)).alias("value"),
            F.lit(0).alias("partition"),
            F.col("value").alias("offset"),
            "timestamp",
        )
    )
    seen = threading.Event()

    def on_batch(batch: DataFrame, batch_id: int) -> None:
        if merge_parts(batch).collect():
            seen.set()

    query = (
        prepare_messages(messages, WINDOW_MS)
        .writeStream.foreachBatch(on_batch)
        .option("checkpointLocation", str(folder / "checkpoint"))
        .start()
    )
    seen.wait(120)
    query.stop()
    gateway: Any = session.sparkContext._gateway
    session.stop()
    gateway.shutdown()
    # Java ends when its standard input does, and writes the archive then.
    with contextlib.suppress(OSError):
        gateway.proc.stdin.close()
    gateway.proc.wait(120)


def main() -> int:
    """Make the archive in front of a person. It is a gain of time and nothing else, so that it cannot be made is no fault."""
    try:
        make_archive()
    except Exception as error:
        shutil.rmtree(SHARE / "classes", ignore_errors=True)
        print(f"      left out: {str(error).splitlines()[0] if str(error) else type(error).__name__}; Spark starts without", flush=True)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # py4j's threads would wait for a Java that has ended
