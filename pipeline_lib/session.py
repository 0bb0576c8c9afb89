"""Spark's session of this process, with the Java, the jars and the archive of classes that it needs.

It imports little, so that Spark, which takes seconds to start, can be started before the rest is even imported. Called by
the command line, the notebooks, the tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline_lib import class_archive
from pipeline_lib.config import Settings
from pipeline_lib.services import jars, java

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Report = Callable[[str], None]


def open_spark(settings: Settings, report: Report | None = None) -> SparkSession:
    """Return the Spark session of this process, started if there is none."""
    from pipeline_lib.stream import SparkRuntime, open_session

    home, found = settings.pipeline_home, java.find_java()
    connector = tuple(jars.connector_jars(report))
    options = class_archive.archive_options(found, connector)
    return open_session(settings.spark_master, SparkRuntime(found.home, connector, home / "logs" / "spark.log", home / "spark", options))


class StartingSpark:
    """A session that a thread of its own is starting, while the process does what else there is to do."""

    def __init__(self, settings: Settings, report: Report | None = None) -> None:
        self._settings, self._report = settings, report
        self._session: SparkSession | None = None
        self._error: BaseException | None = None
        # A process that has to end does not wait for it: Java ends with the process.
        self._thread = threading.Thread(target=self._run, name="spark", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._session = open_spark(self._settings, self._report)
        except BaseException as error:
            self._error = error

    def wait(self) -> SparkSession:
        """Return the session once it is there. Raises what kept it from starting."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._session is not None
        return self._session
