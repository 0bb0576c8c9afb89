"""A disk that is full: PostgreSQL's, the broker's, the checkpoint's. Each says so, loses nothing, and goes on when there is room.

Each has a small file system of its own, which is filled to its last byte and emptied again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaError
from ledger import Ledger, live_ticks
from pyspark.sql import SparkSession
from runs import assert_equal, assert_eventually, publish, random_ticks

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.errors import ServiceError
from pipeline_lib.pipeline import Place
from pipeline_lib.services import process, remove_services, service_status, start_services, stop_services

MEGABYTE = 1 << 20


class SmallDisk:
    """A file system of so many megabytes at a folder, with all that was in it."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder, self.filler = folder, folder / "filler"
        owner, aside = folder.stat(), folder.with_name(folder.name + ".aside")
        folder.rename(aside)
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True, text=True)
        if mounted.returncode:
            folder.rmdir()
            aside.rename(folder)
            pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}; run as root, outside of a container")
        subprocess.run(["cp", "-a", f"{aside}/.", folder], check=True)
        shutil.rmtree(aside)
        os.chown(folder, owner.st_uid, owner.st_gid)
        folder.chmod(owner.st_mode & 0o777)

    def fill(self, but: int = 0) -> None:
        """Leave no more than so many bytes."""
        with self.filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (MEGABYTE, 4096, 1):
                with contextlib.suppress(OSError):
                    while shutil.disk_usage(self.folder).free > but:
                        file.write(b"\0" * size)

    def free(self) -> None:
        """Make room again."""
        self.filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Take the file system away, with all that is in it."""
        subprocess.run(["umount", "-l", self.folder], check=True)


@pytest.fixture
def own(services: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Settings whose services are the test's own, to be started by it."""
    made = services.model_copy(update={"pipeline_home": tmp_path, "database_url": None, "kafka_bootstrap_servers": None})
    yield made
    remove_services(made)


def state_of(settings: Settings, name: str) -> str:
    """Return the state of a service."""
    (found,) = [status for status in service_status(settings) if status.name == name]
    return found.state


@pytest.mark.repeats("disk full, PostgreSQL's", short=0)
def test_a_full_disk_of_postgres_is_said_and_waited_out(own: Settings, services: Settings, session: SparkSession) -> None:
    own = own.model_copy(update={"kafka_bootstrap_servers": services.kafka_bootstrap_servers})
    start_services(own)
    stop_services(own)
    state = process.read_state(own.pipeline_home / "postgres")
    assert state is not None
    disk = SmallDisk(Path(state.data), 160)
    said: list[str] = []
    try:
        with Place(own, "disk-postgres") as place, Ledger(place.settings) as ledger:
            ticks = live_ticks(1)
            with pipeline.running_stream(place.settings, session, said.append) as stream:
                ledger.send(next(ticks) for _ in range(500))
                assert_eventually(lambda: stream.committed_rows, lambda rows: rows >= 500)
                disk.fill()
                # A bad message brings some kilobytes into the tables, so that they have to grow.
                ledger.send_bad([(b"x" * 4_000, b"AAPL")] * 4_000)
                ledger.send(next(ticks) for _ in range(500))
                assert_eventually(lambda: stream.state, lambda state: state == "waiting")
                words = assert_eventually(
                    lambda: " ".join(said), lambda words: "No space left on device" in words or "is it running?" in words
                )
                assert stream.committed_rows < len(ledger.entries), words
                disk.free()
                start_services(own)  # as `stocks run` does, or `stocks up`; it finds the server running if that has not ended
                assert_eventually(lambda: stream.committed_rows, lambda rows: rows >= len(ledger.entries))
                ledger.assert_kept(all_of_it=True)
            assert_equal(place.settings)
    finally:
        stop_services(own)
        disk.close()


@pytest.mark.repeats("disk full, the broker's", short=0)
def test_a_full_disk_of_the_broker_loses_nothing_that_was_acknowledged(own: Settings, services: Settings, session: SparkSession) -> None:
    own = own.model_copy(update={"database_url": services.database_url})
    start_services(own)
    stop_services(own)
    disk = SmallDisk(own.pipeline_home / "kafka" / "data", 120)
    try:
        running = start_services(own)
        with Place(running, "disk-broker") as place:
            with pipeline.running_stream(place.settings, session) as stream:
                publish(place.settings, random_ticks(1, 500))
                assert_eventually(lambda: stream.committed_rows, lambda rows: rows >= 500)
                disk.fill(but=2 * MEGABYTE)
                acknowledged = fill_topic(place.settings)
                assert_eventually(lambda: state_of(own, "kafka"), lambda state: state == "died")
                disk.fill()
                with pytest.raises(ServiceError, match=r"cannot start Kafka: the disk of .* is full, 0 MB are left; free some room"):
                    start_services(own)
                disk.free()
                start_services(own)
                publish(place.settings, random_ticks(2, 500))
                assert_eventually(lambda: stream.committed_rows, lambda rows: rows >= 1_000 + acknowledged)
            assert_equal(place.settings)
    finally:
        stop_services(own)
        disk.close()


def fill_topic(settings: Settings) -> int:
    """Publish until the broker takes no more; return how many messages it has acknowledged."""
    servers = pipeline.servers_of(settings)
    with contextlib.closing(KafkaProducer(bootstrap_servers=servers, request_timeout_ms=8_000, delivery_timeout_ms=10_000)) as producer:
        for count in range(500):
            try:
                producer.send(settings.kafka_topic, os.urandom(50_000), b"AAPL").get(12)
            except KafkaError:
                return count
    pytest.fail("the disk has not become full")


@pytest.mark.repeats("disk full, the checkpoint's", short=0)
def test_a_full_disk_of_the_checkpoint_is_said_and_waited_out(place: Place, session: SparkSession) -> None:
    settings = place.settings
    settings.checkpoint_folder.mkdir(parents=True)
    disk = SmallDisk(settings.checkpoint_folder, 4)
    said: list[str] = []
    try:
        with Ledger(settings) as ledger, pipeline.running_stream(settings, session, said.append) as stream:
            ticks = live_ticks(3)
            ledger.send(next(ticks) for _ in range(100))
            assert_eventually(lambda: stream.committed_rows, lambda rows: rows >= 100)
            disk.fill()
            ledger.send(next(ticks) for _ in range(100))
            assert_eventually(lambda: (stream.state, stream.error), lambda seen: seen[0] == "waiting" or seen[1] is not None)
            threading.Event().wait(20)  # more tries than a fault without a word of its own would have
            assert stream.error is None
            assert "cannot write Spark's checkpoint in" in " ".join(said), said
            disk.free()
            ledger.send(next(ticks) for _ in range(100))
            assert_eventually(lambda: stream.committed_rows, lambda rows: rows >= 300)
            ledger.assert_kept(all_of_it=True)
        assert_equal(settings)
    finally:
        disk.close()
