"""The stream: Spark reads the topic in micro-batches, aggregates each, and hands the few rows to the sink.

Spark keeps no state between batches and its checkpoint is a bookmark that is thrown away: every query starts at the
offsets that the sink holds. So a query that fails is replaced by a new one, and nothing is read twice or left out. It
knows neither PostgreSQL nor services: the sink and the runtime are given. Called by pipeline.py, notebooks and tests.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psutil
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkRuntimeError, StreamingQueryException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from pipeline_lib.bars import (
    SESSION_CONFIG,
    bar_of_row,
    bar_sums,
    count_partitions,
    merge_parts,
    parse_plain,
    parse_ticks,
    read_stamps,
    select_dead,
    select_rest,
    select_unseen,
    window_bars,
    window_parts,
)
from pipeline_lib.config import duration_ms
from pipeline_lib.errors import (
    MessageError,
    OffsetsMovedError,
    PipelineError,
    QueryLostError,
    SparkLostError,
    UnavailableError,
)
from pipeline_lib.records import Batch, DeadLetter, check_size, decode_tick

# Dead letters are fetched in pieces of about this many, 4 kB each at most.
LETTERS_A_PIECE = 2_000

# Two: the cores of a small machine. The default of 200 makes every micro-batch take seconds.
SHUFFLE_PARTITIONS = 2

# A fault without a word of its own may pass, but not for ever: so many queries in a row that commit nothing.
MAX_FRUITLESS_QUERIES = 5
MAX_BACKOFF_SECONDS = 10.0

KEPT_PROGRESS = 500

# The checkpoint is a bookmark that nothing depends on, so a micro-batch does not wait until it is written: a thread of Spark's
# writes it beside, once in a while. Spark offers this to sinks of its own, since with others a checkpoint that lags may repeat
# batches; here a batch that comes again adds nothing. The last option is how it is told that the sink can bear it.
_BOOKMARK_BESIDE = {
    "asyncProgressTrackingEnabled": "true",
    "asyncProgressTrackingCheckpointIntervalMs": "1000",
    "_asyncProgressTrackingOverrideSinkSupportCheck": "true",
}


class SparkRuntime(NamedTuple):
    """What Spark needs of this machine: the Java it runs on, the connector's jars, its log, and where its temporary files go.

    ``options`` are more options for that Java.
    """

    java_home: Path
    jars: tuple[Path, ...]
    log: Path
    scratch: Path
    options: tuple[str, ...] = ()


class Sink(Protocol):
    """Where bars go: the part of store.Store that the stream needs."""

    def load_offsets(self) -> dict[int, int]:
        """Return the next offset of each partition that has been consumed from."""

    def commit_batch(self, batch: Batch, watermark_delay_ms: int) -> Any:
        """Commit all of a batch or nothing; raises OffsetsMovedError if its filter was not by the stored offsets."""

    def finish_progress(self, run_id: str, batch_id: int, spark_progress: str) -> None:
        """Add Spark's own account of a batch that no later batch follows."""


class Plan(NamedTuple):
    """What a stream is to do. Durations are in Spark's words, as in the settings.

    ``start_offsets`` is asked at each start of a query: the stored next offset of each partition that the topic has, or
    TopicError if the topic is not the one that they belong to, or does not hold them any more. ``list_partitions`` is asked
    in each micro-batch, after it was read: the topic's partitions, or TopicError if it is another by now. ``max_offsets``
    bounds a micro-batch, and so the first one after a stop; the messages are never all held at once. ``release`` gives back
    what the two questions have kept open, when the stream has ended.
    """

    servers: str
    topic: str
    start_offsets: Callable[[], dict[int, int]]
    list_partitions: Callable[[], set[int]]
    release: Callable[[], None]
    window_ms: int
    watermark_delay: str
    trigger: str
    max_offsets: int
    checkpoints: Path


def load_messages(session: SparkSession, servers: str, topic: str) -> DataFrame:
    """Return what is in the topic now as a batch DataFrame: key, value, topic, partition, offset, timestamp, timestampType."""
    return session.read.format("kafka").option("kafka.bootstrap.servers", servers).option("subscribe", topic).load()


def open_session(master: str, runtime: SparkRuntime) -> SparkSession:
    """Return the Spark session of this process, started if there is none; it logs to a file and prints nothing."""
    try:
        runtime.log.parent.mkdir(parents=True, exist_ok=True)
        log_configuration = _log_configuration(runtime.log)
        # A Java that is killed leaves its blocks and unpacked libraries behind: not in the system's folder, where they would stay.
        scratch = _new_folder(runtime.scratch, "session")
    except OSError as error:
        raise UnavailableError(
            f"cannot start Spark: {error.strerror or error} in {runtime.scratch.parent}; free or open that disk, or set PIPELINE_HOME"
        ) from error
    os.environ["JAVA_HOME"] = str(runtime.java_home)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # A first small Java only says how the second one is started.
    os.environ.setdefault("SPARK_LAUNCHER_OPTS", "-Xshare:auto -XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    java_options = " ".join(
        (
            "-XX:+UseParallelGC",
            f"-Dlog4j2.configurationFile={log_configuration.as_uri()}",
            f'-Djava.io.tmpdir="{scratch.absolute().as_posix()}"',
            *runtime.options,
        )
    )
    configuration = SparkConf(loadDefaults=False).setMaster(master).setAppName("stocks")
    configuration.setAll(
        [
            *_jar_settings(master, runtime.jars),
            ("spark.driver.extraJavaOptions", java_options),
            ("spark.driver.memory", "1g"),
            ("spark.driver.host", "127.0.0.1"),
            ("spark.driver.bindAddress", "127.0.0.1"),
            ("spark.ui.enabled", "false"),
            ("spark.ui.showConsoleProgress", "false"),
            ("spark.sql.shuffle.partitions", str(SHUFFLE_PARTITIONS)),
            ("spark.sql.adaptive.enabled", "false"),  # which plans anew between stages; a micro-batch has two, of a few rows
            ("spark.sql.streaming.numRecentProgressUpdates", "20"),
            *SESSION_CONFIG.items(),
        ]
    )
    try:
        if SparkContext._gateway is None:
            with runtime.log.open("ab") as log:
                # Its own standard error: a notebook would show it in whichever cell runs.
                SparkContext(conf=configuration, gateway=launch_gateway(configuration, {"stderr": log}))
        return SparkSession.builder.config(conf=configuration).getOrCreate()
    except (Py4JError, ConnectionError, PySparkRuntimeError) as error:
        if isinstance(error, Py4JJavaError):
            raise
        raise SparkLostError(f"cannot start Spark: its Java has ended ({_first_line(error)}); see {runtime.log}, and start anew") from error


def _jar_settings(master: str, jars: tuple[Path, ...]) -> list[tuple[str, str]]:
    """Return how the jars reach Spark: on this machine by its class path, whose classes an archive can hold; else they are sent."""
    if not jars:
        return []
    if master.startswith("local"):
        return [("spark.driver.extraClassPath", os.pathsep.join(str(jar) for jar in jars))]
    return [("spark.jars", ",".join(str(jar) for jar in jars))]


def end_session(session: SparkSession, seconds: float) -> None:
    """Stop the session, and wait until its Java has ended by itself."""
    gateway: Any = session.sparkContext._gateway
    session.stop()
    gateway.shutdown()
    # Java ends when its standard input does.
    with contextlib.suppress(OSError):
        gateway.proc.stdin.close()
    gateway.proc.wait(seconds)


def _log_configuration(log: Path) -> Path:
    text = (Path(__file__).parent / "spark-log4j2.properties").read_text("utf-8")
    configuration = log.with_suffix(".log4j2.properties")
    configuration.write_text(text.replace("LOG_FILE", log.as_posix()), "utf-8")
    return configuration


class Stream:
    """One stream: a thread that keeps a query running until it is stopped, or has caught up.

    ``state`` is one of stopped, running, waiting (for Kafka or the sink to come back) and failed; ``error`` says why.
    """

    def __init__(
        self, session: SparkSession, plan: Plan, sink: Sink, *, console: bool = False, report: Callable[[str], None] | None = None
    ) -> None:
        self.plan, self.sink = plan, sink
        self.state = "stopped"
        self.error: PipelineError | None = None
        self.committed_rows = self.committed_batches = self.dead_letters = 0
        self.progress: deque[dict[str, Any]] = deque(maxlen=KEPT_PROGRESS)
        self.last_batch: Batch | None = None  # as it was committed, without its dead letters
        self._session, self._console = session, console
        self._report = report or (lambda line: None)
        self._stopping, self._first_commit = threading.Event(), threading.Event()
        self._in_batch = threading.Lock()
        self._thread: threading.Thread | None = None
        self._offsets: dict[int, int] = {}
        self._run_id, self._last_batch_id = "", -1
        self._query: StreamingQuery | None = None
        self._sums: tuple[Column, ...] | None = None
        self._batch_error: BaseException | None = None

    # starting and stopping

    def start(self, *, until_caught_up: bool = False) -> Stream:
        """Start reading; with `until_caught_up` it ends when it has read what is in the topic now."""
        self._stopping.clear()
        self._first_commit.clear()
        self.state, self.error = "running", None
        self._thread = threading.Thread(target=self._keep_running, args=(until_caught_up,), name="stream", daemon=True)
        self._thread.start()
        return self

    def wait(self, seconds: float | None = None) -> bool:
        """Return whether the stream has ended within that time. Raises the error that ended it, if one did."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
        if self.error is not None:
            raise self.error
        return True

    def wait_for_commit(self, seconds: float) -> bool:
        """Return whether something has been committed since the start, waiting at most that long."""
        return self._first_commit.wait(seconds)

    def stop(self) -> None:
        """End the stream after the micro-batch in hand; what it committed stays, what it did not is read next time."""
        self._stopping.set()
        with self._in_batch:
            query = self._query
        # Not while holding the lock: Spark waits for a callback that has just begun, and that one waits for the lock.
        # Where the Java of Spark has died there is no query left to stop; the thread has said so.
        with contextlib.suppress(Py4JError, ConnectionError):
            if query is not None and query.isActive:
                query.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self.state != "failed":
            self.state = "stopped"

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # the thread

    def _keep_running(self, until_caught_up: bool) -> None:
        try:
            self._run_queries(until_caught_up)
        finally:
            self.plan.release()

    def _run_queries(self, until_caught_up: bool) -> None:
        """Run one query after another, as long as each is ended by what may pass."""
        fruitless = 0
        backoff = 0.5
        while not self._stopping.is_set():
            rows_before = self.committed_batches
            try:
                self._run_query(until_caught_up)
                break
            except PipelineError as error:
                failure = error
            except Exception as error:
                # Whatever it is, it ends this stream with its own words instead of a dead thread.
                self._fail(self._explain_unforeseen(error))
                return
            if self._stopping.is_set():
                break
            if self.committed_batches > rows_before:
                fruitless, backoff = 0, 0.5
            fruitless += 1
            if not failure.retriable or (isinstance(failure, QueryLostError) and fruitless >= MAX_FRUITLESS_QUERIES):
                self._fail(failure)
                return
            self.state = "waiting"
            self._report(f"stream waits {backoff:.1f} s and starts anew: {failure}")
            self._stopping.wait(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
        self.state = "stopped"

    def _explain_unforeseen(self, error: Exception) -> PipelineError:
        """Return the error that ends the stream: where Java has died, whatever it was that met it, a new process may do."""
        gateway = self._session.sparkContext._gateway
        java = getattr(gateway, "proc", None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # What is not an answer of Java's has come of a closed connection; the process may need a moment more to end.
            if java is not None and java.wait(2) is not None:
                return SparkLostError(f"cannot go on with the stream: the Java of Spark has ended ({_first_line(error)}); start anew")
        if isinstance(error, Py4JError | ConnectionError) and not isinstance(error, Py4JJavaError):
            return SparkLostError(f"cannot go on with the stream: the Java of Spark does not answer ({_first_line(error)}); start anew")
        return PipelineError(f"cannot go on with the stream: {_first_line(error)}; see the log of Spark")

    def _fail(self, error: PipelineError) -> None:
        self.state, self.error = "failed", error

    def _run_query(self, until_caught_up: bool) -> None:
        """Run one query, from the stored offsets and with a folder of its own, to its end."""
        self._offsets = self.plan.start_offsets()
        self._run_id, self._last_batch_id = uuid.uuid4().hex[:12], -1
        self._batch_error = None
        folder = _new_checkpoint(self.plan.checkpoints, self._run_id)
        try:
            with self._in_batch:
                if self._stopping.is_set():
                    return
                self._query = self._start_query(folder, until_caught_up)
            self.state = "running"
            while not self._query.awaitTermination(1):
                pass
        except StreamingQueryException as error:
            if self._stopping.is_set():
                return
            raise self._explain(error) from error
        finally:
            self._finish_progress()
            shutil.rmtree(folder, ignore_errors=True)

    def _start_query(self, folder: Path, until_caught_up: bool) -> StreamingQuery:
        plan = self.plan
        starts = {plan.topic: {str(number): offset for number, offset in sorted(self._offsets.items())}}  # every partition has to be named
        messages = (
            self._session.readStream.format("kafka")
            .option("kafka.bootstrap.servers", plan.servers)
            .option("subscribe", plan.topic)
            .option("startingOffsets", json.dumps(starts))
            .option("maxOffsetsPerTrigger", plan.max_offsets)
            .option("failOnDataLoss", "true")
            .option("kafkaConsumer.pollTimeoutMs", 20_000)
            .option("kafka.request.timeout.ms", 10_000)
            .option("kafka.default.api.timeout.ms", 15_000)
            .load()
        )
        parts, self._sums = prepare_messages(messages, plan.window_ms), bar_sums()
        writer = parts.writeStream.foreachBatch(self._on_batch).option("checkpointLocation", str(folder)).queryName("bars_" + self._run_id)
        if until_caught_up:
            return writer.trigger(availableNow=True).start()
        return writer.options(**_BOOKMARK_BESIDE).trigger(processingTime=plan.trigger).start()

    def _explain(self, error: StreamingQueryException) -> PipelineError:
        if isinstance(self._batch_error, PipelineError):
            return self._batch_error
        said = _first_line(self._batch_error or error)
        text = str(error)
        if "No space left on device" in text and not self._batch_error:
            return UnavailableError(_checkpoint_fault(self.plan.checkpoints, "no space left on device"))
        if "kafka" in text and ("Timeout" in text or "disconnect" in text.lower() or "No resolvable bootstrap" in text):
            return UnavailableError(
                f"cannot read topic {self.plan.topic!r} at {self.plan.servers}: {said}; is Kafka running? (`stocks status`)"
            )
        return QueryLostError(f"cannot go on with the query: {said}; see the log of Spark")

    # a micro-batch

    def _on_batch(self, parts: DataFrame, batch_id: int) -> None:
        with self._in_batch:
            if self._stopping.is_set():
                raise PipelineError("the stream is being stopped: this batch is read next time")
            try:
                self._commit(parts, batch_id)
            except BaseException as error:
                self._batch_error = error
                raise

    def _commit(self, parts: DataFrame, batch_id: int) -> None:
        for _ in range(3):
            began, started_at = time.monotonic(), dt.datetime.now(dt.UTC)
            filtered_by = dict(self._offsets)
            unseen, rows = parts, merge_parts(parts, self._sums).collect()
            # Only a batch that comes again has messages to leave out. Offsets in the plan would make each micro-batch's code a
            # new one, which Java has to compile and to warm up to.
            if any(row["first_offset"] < filtered_by.get(row["partition"], 0) for row in rows):
                unseen = select_unseen(parts, filtered_by)
                rows = merge_parts(unseen, self._sums).collect()
            if not rows:
                return
            rows, rest = self._look_again(rows, unseen)
            counts = count_partitions(rows)
            batch = Batch(
                run_id=self._run_id,
                batch_id=batch_id,
                started_at=started_at,
                filtered_by=filtered_by,
                bars=[bar_of_row(row, self.plan.window_ms) for row in rows if row["symbol"] is not None],
                counts=counts,
                dead_letters=fetch_dead_letters(rest, sum(count.dead for count in counts)) if rest else (),
                aggregate_ms=round((time.monotonic() - began) * 1000),
                previous_progress=self._spark_progress(batch_id - 1),
                stamps=read_stamps(rows),
            )
            # All has been read. If the topic is the same one now, it was the same one then.
            if self.plan.list_partitions() - filtered_by.keys():
                raise QueryLostError(f"topic {self.plan.topic!r} has got more partitions: a new query reads them from their start")
            try:
                result = self.sink.commit_batch(batch, duration_ms(self.plan.watermark_delay))
            except OffsetsMovedError as error:
                self._report(str(error))
                self._offsets = self.sink.load_offsets()
                continue
            self._note(batch, result)
            return
        raise UnavailableError("cannot commit the batch: the stored offsets moved three times; stop the other stream on this database")

    def _look_again(self, rows: list[Row], parts: DataFrame) -> tuple[list[Row], DataFrame | None]:
        """Return the rows with those messages told apart that the short way could not read, and these, parsed in the long way.

        Costs a second pass over the batch, so it is made only where the first one has met any.
        """
        unread = sum(row["messages"] for row in rows if row["symbol"] is None)
        if not unread:
            return rows, None
        ticks = parse_ticks(select_rest(parts))
        read = window_bars(ticks, self.plan.window_ms).collect()
        if (found := sum(row["messages"] for row in read)) != unread:
            raise QueryLostError(f"cannot read the batch twice alike: {unread} messages were to be looked at again, {found} were there")
        return [row for row in rows if row["symbol"] is not None] + read, ticks

    def _note(self, batch: Batch, result: Any) -> None:
        self._offsets = {**self._offsets, **result.next_offsets}
        self._last_batch_id = batch.batch_id
        self.last_batch = batch._replace(dead_letters=())
        self.committed_rows += result.input_rows
        self.committed_batches += 1
        self.dead_letters += result.dead_letters
        self.progress.append(
            {
                "batch_id": batch.batch_id,
                "input_rows": result.input_rows,
                "dead_letters": result.dead_letters,
                "bars": result.bars,
                "late_ticks": result.late_ticks,
                "aggregate_ms": batch.aggregate_ms,
                "commit_ms": result.commit_ms,
            }
        )
        self._first_commit.set()
        if self._console:
            for line in format_batch(batch):
                self._report(line)

    def _spark_progress(self, batch_id: int) -> str | None:
        """Return Spark's account of a batch as JSON, if it is the last one that Spark knows of."""
        # Straight from Java: `lastProgress` asks it for each value by itself, a hundred questions in each micro-batch.
        last = self._query._jsq.lastProgress() if self._query is not None else None
        return str(last.json()) if last is not None and last.batchId() == batch_id else None

    def _finish_progress(self) -> None:
        progress = self._spark_progress(self._last_batch_id) if self._last_batch_id >= 0 else None
        # Spark's account of the last batch is worth having, and not worth an error of its own.
        with contextlib.suppress(PipelineError):
            if progress is not None:
                self.sink.finish_progress(self._run_id, self._last_batch_id, progress)


def prepare_messages(messages: DataFrame, window_ms: int) -> DataFrame:
    """Return what each message adds to its bar, in the short way: what the query does before it hands on a micro-batch."""
    return window_parts(parse_plain(messages), window_ms)


def fetch_dead_letters(ticks: DataFrame, count: int) -> Iterator[DeadLetter]:
    """Yield the dead letters of parsed messages, each with its reason, in pieces that fit in memory.

    Costs a second pass over the batch, so it is made only where the first one has counted any.
    """
    if not count:
        return
    pieces = -(-count // LETTERS_A_PIECE)
    for row in select_dead(ticks).repartition(pieces, "partition", "offset").toLocalIterator():
        key = None if row["key"] is None else bytes(row["key"])
        value = None if row["value"] is None else bytes(row["value"])
        yield DeadLetter(
            partition=row["partition"],
            offset=row["offset"],
            timestamp=row["timestamp"],
            reason=find_reason(value, key, row["length"], row["timestamp"]),
            key=key,
            value=value,
            value_length=row["length"],
            value_sha256=None if row["sha256"] is None else bytes(row["sha256"]),
        )


def find_reason(value: bytes | None, key: bytes | None, length: int | None, timestamp: int) -> str:
    """Return why a message is no tick, in the words of records.decode_tick."""
    try:
        check_size(length)
        decode_tick(value, key, timestamp)
    except MessageError as error:
        return str(error)
    return "refused by Spark's parser alone: please report this message as a fault of the grammar"


def format_batch(batch: Batch) -> Iterator[str]:
    """Yield the lines that show what a micro-batch writes: the debug output of the stream."""
    messages = sum(count.good + count.dead for count in batch.counts)
    yield f"batch {batch.batch_id}: {messages} messages, {len(batch.bars)} bars, {sum(count.dead for count in batch.counts)} dead letters"
    for bar in sorted(batch.bars, key=lambda bar: (bar.window_start, bar.symbol)):
        start = dt.datetime.fromtimestamp(bar.window_start / 1000, dt.UTC)
        yield (
            f"  {start:%Y-%m-%d %H:%M:%S} {bar.symbol:<8} open {bar.open:<10.4f} high {bar.high:<10.4f} low {bar.low:<10.4f} "
            f"close {bar.close:<10.4f} volume {bar.volume:<12,.0f} ticks {bar.tick_count}"
        )


def _new_checkpoint(checkpoints: Path, run_id: str) -> Path:
    """Return a fresh folder for one query. Raises UnavailableError if there can be none for now: a full disk may be freed."""
    try:
        return _new_folder(checkpoints, "query", run_id)
    except OSError as error:
        raise UnavailableError(_checkpoint_fault(checkpoints, error.strerror or str(error))) from error


def _checkpoint_fault(checkpoints: Path, said: str) -> str:
    return f"cannot write Spark's checkpoint in {checkpoints}: {said}; free or open that disk, and the stream goes on by itself"


def _new_folder(parent: Path, kind: str, name: str = "") -> Path:
    """Return a fresh folder of this process, and remove those of its kind whose processes are gone."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f"{kind}-*-*"):
        pid = old.name.split("-")[1]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    folder = parent / f"{kind}-{os.getpid()}-{name or uuid.uuid4().hex[:6]}"
    folder.mkdir()
    return folder


def remove_checkpoints(checkpoints: Path) -> None:
    """Remove the folder of checkpoints, under running queries too; each of them fails at its next write, and is replaced.

    Renamed first, so that it goes away at one instant and nothing is written into what is left of it.
    """
    removed = checkpoints.with_name(f"{checkpoints.name}-removed-{uuid.uuid4().hex[:6]}")
    with contextlib.suppress(FileNotFoundError):  # no query has written since it was removed before
        shutil.rmtree(checkpoints.rename(removed))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
