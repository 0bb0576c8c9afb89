"""The archive of the classes that Spark loads, made once at set-up: with it a stream starts in about two thirds of the time.

It belongs to one Java, one Spark and its jars; without it, or with another Java, Spark starts as it always did. Where it is, and how
Java is told of it; record_classes makes it. Called by both that and session.py.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from pipeline_lib.services.java import SHARE, Java

# What Java has to say of archives is for its log, not for the terminal: its standard output is ours.
QUIET = "-Xlog:disable -Xlog:all=warning:stderr"


def archive_of(java: Java, jars: tuple[Path, ...]) -> Path:
    """Return where the archive for this Java, the installed Spark and these jars is, or would be."""
    place = hashlib.sha256("\n".join(str(path) for path in (java.home, *jars)).encode()).hexdigest()[:8]
    return SHARE / "classes" / f"spark-{version('pyspark')}-java-{java.version}-{place}.jsa"


def archive_options(java: Java, jars: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the options that let Spark's Java use the archive; none where there is no archive."""
    archive = archive_of(java, jars)
    return (f'-XX:SharedArchiveFile="{archive.as_posix()}"', QUIET) if archive.exists() else ()
