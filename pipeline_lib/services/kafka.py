"""Apache Kafka on this machine: broker and controller in one process, on the loopback only.

It starts and stops the real broker and knows nothing about topics (that is `pipeline_lib.topics`). Its folder,
`PIPELINE_HOME/kafka`, holds `data/`, `tmp/`, `server.properties` (written anew at every start), `kafka.log` and `state.json`.
Called by `services` alone, which holds the lock.
"""

from __future__ import annotations

import base64
import shutil
import socket
import struct
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

from pipeline_lib.errors import ServiceError
from pipeline_lib.services import process
from pipeline_lib.services.jars import HERE, broker_classpath, jar_version
from pipeline_lib.services.java import find_java
from pipeline_lib.services.process import Born, Program, State

NAME = "Kafka"
START_SECONDS = 60  # it needs one or two; a first start on a busy machine ten

JVM_OPTIONS = (
    "-Xmx512m",  # enough for a few dozen partitions; the log itself is in the page cache, outside the heap
    "-XX:+UseSerialGC",  # two cores are shared with Spark: no threads for a collector of so small a heap
    "-XX:+ExitOnOutOfMemoryError",  # a broker that is half alive answers nobody, a dead one is started again
    "-XX:ErrorFile=jvm-crash.log",
    "-Djava.awt.headless=true",
)

# The file is read as Latin-1 and a comma divides folders, so it holds no path but a relative one.
PROPERTIES = """\
# Written by `stocks up` at every start; changes made here are lost.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CLIENT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENT://127.0.0.1:{client}
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
controller.listener.names=CONTROLLER
log.dirs=data

# One node: nothing can be kept twice.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# One partition each for Kafka's own topics, instead of 50: they are a thousand files otherwise.
offsets.topic.num.partitions=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.num.partitions=1

# A topic is created on purpose, with its partitions and retention stated, never by a misspelt name.
auto.create.topics.enable=false
num.partitions=3
# A group of one is not kept waiting for members that do not come.
group.initial.rebalance.delay.ms=0
# No time that a producer states is refused: a tape of 2013 is good.
log.message.timestamp.before.max.ms=9223372036854775807
log.message.timestamp.after.max.ms=9223372036854775807

num.network.threads=2
num.io.threads=4
# After a kill -9 the controller takes the new broker for a double until the dead one's session has ended: 9 s by default.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# The default would take a quarter of the heap for compacting Kafka's own topics, which hold next to nothing here.
log.cleaner.dedupe.buffer.size=8388608
"""


def start(home: Path, report: Callable[[str], None]) -> State:
    """Start the broker and return its state once it answers requests; called when it does not run.

    Raises ServiceError with the telling line of its log if it does not come up, InstallError if Java or a jar is missing.
    """
    folder = home / "kafka"
    folder.mkdir(parents=True, exist_ok=True)
    classpath = broker_classpath(report)
    java = str(find_java().executable)
    former = process.read_state(folder)
    ports = process.choose_ports(("client", "controller"), former.ports if former else {}, report)
    (folder / "server.properties").write_text(PROPERTIES.format(**ports), encoding="ascii")
    run = [
        java,
        *JVM_OPTIONS,
        f"-Djava.io.tmpdir={_fresh_temporary_folder(folder)}",
        f"-Dlog4j2.configurationFile={(HERE / 'kafka-log4j2.xml').as_posix()}",
        "-cp",
        classpath,
    ]
    if not (folder / "data" / "meta.properties").exists():  # the formatter writes it last
        _format(folder, run)
    logged = process.log_size(folder / "kafka.log")
    (folder / "console.log").unlink(missing_ok=True)
    born = process.spawn(Program([*run, "kafka.Kafka", "server.properties"], folder, folder / "console.log"))
    state = State(born=born, ports=ports, version=jar_version("kafka_2.13"), data=str(folder / "data"))
    process.write_state(folder, state)  # before it is ready: if we are killed now, the next command finds it
    if not wait_ready(home, state):
        process.write_state(folder, State(born=None, ports=ports, version=state.version, data=state.data))
        said = process.full_disk(folder / "data") or _telling_line(folder, logged)
        raise ServiceError(f"cannot start {NAME}: {said}; see {home.name}/kafka/kafka.log")
    return state


def wait_ready(home: Path, state: State) -> bool:
    """Return True once the server answers requests, False if it is dead.

    Raises ServiceError, and leaves it alone, if it is alive and does nothing in time.
    """
    assert state.born is not None
    if process.wait_until(lambda: answers(state.ports["client"]), state.born, START_SECONDS):
        return True
    if process.find_process(state.born) is None:
        return False
    raise ServiceError(
        f"cannot use {NAME}: process {state.born.pid} runs, and does not answer after {START_SECONDS} s; "
        f"see {home.name}/kafka/kafka.log, and end it with `stocks down`"
    )


def stop(born: Born) -> None:
    """Stop the broker; it writes out what it holds, and a kill after 20 s would lose nothing either."""
    process.stop(born)


def answers(port: int) -> bool:
    """Return whether a broker answers a request (ApiVersions, version 0) on this port of the loopback.

    The port alone is open earlier than the broker serves.
    """
    request = struct.pack(">hhih", 18, 0, 1, -1)  # API key, version, correlation id, no client id
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.makefile("rb").read(10)
    except OSError:
        return False
    if len(answer) < 10:
        return False
    _, correlation_id, error_code = struct.unpack(">iih", answer)
    return correlation_id == 1 and error_code == 0


def _format(folder: Path, run: list[str]) -> None:
    """Give the data folder the identity of a new cluster."""
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
    command = [*run, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", "server.properties"]
    try:
        formatted = subprocess.run(
            command, cwd=folder, env=process.service_environment(), capture_output=True, text=True, errors="replace", timeout=START_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"cannot format Kafka's folder: {error}") from error
    if formatted.returncode != 0:
        said = (formatted.stderr + formatted.stdout).strip().splitlines() or ["it says nothing"]
        raise ServiceError(f"cannot format Kafka's folder: {said[-1][:300]}; see {folder.parent.name}/kafka/kafka.log")


def _fresh_temporary_folder(folder: Path) -> str:
    """Return an empty folder for what Java unpacks, such as lz4's library: a killed one leaves it behind."""
    temporary = folder / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    return temporary.absolute().as_posix()


def _telling_line(folder: Path, since: int) -> str:
    words = ("ERROR", "FATAL", "Exception")
    line = process.telling_line(folder / "kafka.log", words, since)
    return line if any(word in line for word in words) else process.telling_line(folder / "console.log", ("Error", "Exception", "error"))
