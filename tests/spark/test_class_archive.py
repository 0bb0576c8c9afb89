"""The archive of Spark's classes: used where there is one for this Java, and never missed."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import SparkSession

from pipeline_lib.class_archive import archive_of, archive_options
from pipeline_lib.services.jars import connector_jars
from pipeline_lib.services.java import Java, find_java


def test_another_java_has_another_archive_and_without_one_spark_starts_as_ever() -> None:
    other = Java(Path("/nowhere"), Path("/nowhere/bin/java"), "17.0.1", "made up")
    jars = tuple(connector_jars())
    assert len({archive_of(java, some) for java in (other, find_java()) for some in (jars, jars[1:])}) == 4
    assert archive_options(other, jars) == ()


def test_spark_starts_from_the_archive_that_the_set_up_made(session: SparkSession) -> None:
    given = session.sparkContext.getConf().get("spark.driver.extraJavaOptions")
    assert given is not None
    assert ("-XX:SharedArchiveFile" in given) == archive_of(find_java(), tuple(connector_jars())).exists()
