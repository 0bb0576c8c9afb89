"""The producer: ticks into the topic, each counted until the broker has acknowledged it.

kafka-python's `flush` does not say that a message was delivered, and its buffer has no bound; only a send's future tells.
So every future is kept until it is done, their number is bounded, and what failed for a reason that may pass is sent
again with the same id. It is not a source: ticks come from an iterator. Called by the command line and the notebooks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from kafka import KafkaProducer
from kafka import errors as kafka_errors

from pipeline_lib.errors import PipelineError, UnavailableError
from pipeline_lib.records import FeedStatus, Message, Tick, encode_key, encode_status, encode_tick

if TYPE_CHECKING:
    from pipeline_lib.sources.feed_health import FeedHealth, Health

log = logging.getLogger(__name__)

# Bounds the memory of what is not yet acknowledged: about 20 MB of messages and futures.
MAX_IN_FLIGHT = 20_000

# How long one message may take from send to acknowledgement before it is sent again: Kafka's own default.
DELIVERY_TIMEOUT_MS = 120_000

# Full batches matter at full speed, where 5 ms fill one; a live tick waits for at most this long.
LINGER_MS = 5
BATCH_BYTES = 128 * 1024

STATUS_SECONDS = 2.0
PROGRESS_SECONDS = 0.2


class PublishReport(NamedTuple):
    """What became of the ticks: every one sent is acknowledged, failed, or still in flight."""

    sent: int
    acknowledged: int
    failed: int
    resent: int
    seconds: float

    @property
    def rate(self) -> float:
        """Acknowledged ticks per second."""
        return self.acknowledged / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        resent = f", {self.resent:,} sent again" if self.resent else ""
        return f"{self.sent:,} sent, {self.acknowledged:,} acknowledged{failed}{resent}, {self.rate:,.0f} ticks/s"


class Producer:
    """Publishes to one topic, idempotent and acknowledged by all replicas. Use it as a context manager."""

    def __init__(self, servers: str, topic: str) -> None:
        self.topic = topic
        self._started = time.monotonic()
        self._sent = self._acknowledged = self._failed = self._resent = 0
        self._in_flight: deque[tuple[Any, bytes | None, bytes | None]] = deque()
        try:
            self._kafka = KafkaProducer(
                bootstrap_servers=servers.split(","),
                bootstrap_timeout_ms=10_000,
                enable_idempotence=True,
                acks="all",
                linger_ms=LINGER_MS,
                batch_size=BATCH_BYTES,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                allow_auto_create_topics=False,
                max_request_size=1024 * 1024,
            )
        except kafka_errors.KafkaError as error:
            raise UnavailableError(f"cannot publish to Kafka at {servers}: {error}; is it running? (`stocks status`)") from error

    def publish(self, tick: Tick) -> None:
        """Accept a tick: from here on it is sent until it is acknowledged, or counted as failed.

        Waits while the bound of unacknowledged messages is reached. Raises PipelineError for a failure that another try
        cannot mend, such as a missing right.
        """
        self.publish_message(encode_key(tick.symbol), encode_tick(tick))

    def publish_message(self, key: bytes | None, value: bytes | None) -> None:
        """Accept a message as it is, tick or not: what a notebook or a test needs to see a bad one through."""
        self._send(key, value)
        self._sent += 1

    def _send(self, key: bytes | None, value: bytes | None) -> None:
        self._in_flight.append((self._hand_over(key, value), key, value))
        while self._in_flight and (self._in_flight[0][0].is_done or len(self._in_flight) > MAX_IN_FLIGHT):
            self._settle(*self._in_flight.popleft())

    def _settle(self, future: Any, key: bytes | None, value: bytes | None) -> None:
        try:
            future.get(timeout=DELIVERY_TIMEOUT_MS / 1000 + 10)
            self._acknowledged += 1
        except kafka_errors.KafkaError as error:
            if not _may_pass(error):
                self._failed += 1
                raise PipelineError(f"cannot publish to {self.topic!r}: {error}; check the topic and the rights of this user") from error
            self._resent += 1
            self._in_flight.append((self._hand_over(key, value), key, value))

    def _hand_over(self, key: bytes | None, value: bytes | None) -> Any:
        """Return the future of a message given to Kafka's client, which may have to wait for room or for the broker."""
        try:
            return self._kafka.send(self.topic, key=key, value=value)
        except kafka_errors.KafkaError as error:
            if _may_pass(error):
                raise UnavailableError(f"cannot publish to {self.topic!r}: {error}; is Kafka running? (`stocks status`)") from error
            raise PipelineError(f"cannot publish to {self.topic!r}: {error}; correct the message or the topic") from error

    def publish_bytes(self, key: bytes | None, value: bytes | None) -> Message:
        """Return the message that the broker took: these bytes as they are, a tick or not; in no count of ticks."""
        try:
            taken = self._kafka.send(self.topic, key=key, value=value).get(timeout=DELIVERY_TIMEOUT_MS / 1000 + 10)
        except kafka_errors.KafkaError as error:
            raise PipelineError(f"cannot publish to {self.topic!r}: {error}; is Kafka running? (`stocks status`)") from error
        return Message(taken.partition, taken.offset, taken.timestamp, key, value)

    def flush(self) -> None:
        """Wait until every accepted tick is acknowledged."""
        self._kafka.flush()
        while self._in_flight:
            self._settle(*self._in_flight.popleft())

    def send_status(self, topic: str, status: FeedStatus) -> None:
        """Send the feed's state to the status topic; the next one replaces it, so nobody waits for this one."""
        try:
            self._kafka.send(topic, value=encode_status(status))
        except kafka_errors.KafkaError as error:
            log.warning("cannot tell how the feed is: %s", error)

    @property
    def report(self) -> PublishReport:
        """The counts up to now."""
        return PublishReport(self._sent, self._acknowledged, self._failed, self._resent, time.monotonic() - self._started)

    def close(self) -> None:
        """Wait for what was accepted, then disconnect."""
        try:
            self.flush()
        finally:
            self._kafka.close()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _may_pass(error: kafka_errors.KafkaError) -> bool:
    """Return whether another try can succeed: Kafka's own word, and its time-outs and lost connections."""
    return bool(error.retriable) or isinstance(error, kafka_errors.KafkaTimeoutError | kafka_errors.KafkaConnectionError)


def publish_ticks(producer: Producer, ticks: Iterable[Tick], progress: Callable[[PublishReport], None] | None = None) -> PublishReport:
    """Return the report of publishing all ticks; `progress` is told it several times a second and at the end.

    An interrupt (Ctrl-C) ends the ticks, not the delivery: what was accepted is acknowledged before this returns.
    """
    told = time.monotonic()
    try:
        for tick in ticks:
            producer.publish(tick)
            if progress and (now := time.monotonic()) - told > PROGRESS_SECONDS:
                told = now
                progress(producer.report)
    except KeyboardInterrupt:
        pass
    producer.flush()
    if progress:
        progress(producer.report)
    return producer.report


def publish_bytes(servers: str, topic: str, key: bytes | None, value: bytes | None) -> Message:
    """Return the message that the broker took: these bytes as they are, a tick or not."""
    with Producer(servers, topic) as producer:
        return producer.publish_bytes(key, value)


class StatusBeat:
    """Tells the status topic, every two seconds and from a thread of its own, how the feed is.

    `say` changes what is told, and `health`, if the source has one, is asked each time; leaving the context tells that
    the feed has stopped.
    """

    def __init__(self, producer: Producer, topic: str, source: str, detail: str, health: FeedHealth | None = None) -> None:
        now = _now_ms()
        self._producer, self._topic, self._health = producer, topic, health
        self._detail = detail
        self._status = FeedStatus(state="running", source=source, detail=detail, since=now, at=now)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="feed-status", daemon=True)

    def say(self, state: str, detail: str) -> None:
        """Change what is told of the feed."""
        since = self._status.since if state == self._status.state else _now_ms()
        self._status = msgspec.structs.replace(self._status, state=state, detail=detail, since=since)

    def _tell(self) -> None:
        if self._health is not None:
            self._take_in(self._health.status())
        told = msgspec.structs.replace(self._status, at=_now_ms(), acknowledged=self._producer.report.acknowledged)
        self._producer.send_status(self._topic, told)

    def _take_in(self, health: Health) -> None:
        """Let the next status tell what the feed's health is."""
        if self._status.state != "stopped":
            detail = health.detail or self._detail
            self.say("waiting", f"{detail}; {health.waiting_for}") if health.waiting_for else self.say("running", detail)
        gaps = health.gaps
        if self._status.state == "stopped":
            # Nothing is missed by a feed that does not run any more: what lasted has ended with it.
            gaps = tuple(msgspec.structs.replace(gap, ended_at=gap.ended_at or max(gap.started_at, _now_ms())) for gap in gaps)
        self._status = msgspec.structs.replace(self._status, symbols=health.symbols, gaps=gaps, marks=health.marks)

    def _beat(self) -> None:
        self._tell()
        while not self._stopping.wait(STATUS_SECONDS):
            self._tell()

    def __enter__(self) -> StatusBeat:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()
        self.say("stopped", self._status.detail)
        self._tell()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
