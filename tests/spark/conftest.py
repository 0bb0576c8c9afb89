"""One Spark session for all tests that need one: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from pipeline_lib import pipeline
from pipeline_lib.config import Settings


@pytest.fixture(scope="session")
def session() -> Iterator[SparkSession]:
    """The Spark session that the stream would use."""
    found = pipeline.open_spark(Settings.load())
    yield found
    found.stop()
