"""The producer: ticks into the topic, each counted until the broker has acknowledged it.

kafka-python's `flush` does not say that a message was delivered, and its buffer has no bound; only the future of its batch
tells. So every message is kept with it until it is done, and their number and bytes are bounded. A failure that may pass
leaves open what the broker has taken: the client is thrown away, the topic is read from the last acknowledged message on, and
only what is not there is sent, by a new client, in the old order and with the old ids. It is not a source: ticks come from an
iterator. Called by the command line and the notebooks.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from kafka import errors as kafka_errors
from kafka.producer.future import FutureProduceResult

from pipeline_lib import topics
from pipeline_lib.batch_client import BatchClient, error_of
from pipeline_lib.errors import PipelineError, UnavailableError
from pipeline_lib.records import FeedStatus, Message, Tick, encode_key, encode_status, encode_tick

log = logging.getLogger(__name__)

# Bounds the memory of what is not yet acknowledged: about 10 MB of messages. It also is how far back from
# the last message in the topic a killed producer may have left holes.
MAX_IN_FLIGHT = 20_000
# A tick has at most a kilobyte; a bad message may have a thousand.
MAX_BYTES_IN_FLIGHT = 32 * 1024 * 1024

# How long one message may take from send to acknowledgement before it is looked for in the topic: Kafka's own default.
DELIVERY_TIMEOUT_MS = 120_000

# How long one that is told to stop waits for a broker that acknowledges nothing.
STOP_SECONDS = 10.0
# A message that is unacknowledged for so long waits for Kafka; less is an election or a long collection of garbage.
PATIENCE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 2.0
# A broker that was frozen first does what it was asked before: what it has taken is looked for after so long.
SETTLE_SECONDS = 1.0

# How long a batch waits for more: a live tick hardly at all, and a tape at full speed until a request is worth its price.
LINGER_MS = 5
FULL_SPEED_LINGER_MS = 25
# One request takes a full batch of each of four partitions.
BATCH_BYTES = 256 * 1024
MAX_REQUEST_BYTES = 4 * BATCH_BYTES

PROGRESS_SECONDS = 0.2

# A message in flight: the future of its batch, None if Kafka's client would not take it; its place there; key and value.
_Message = tuple[FutureProduceResult | None, int, bytes | None, bytes | None]

# Kafka does not call them retriable, since the client that met them is of no use any more; a new one is. The first is
# what a client says of messages that it has left when it is closed.
_PASSING = (
    kafka_errors.IllegalStateError,
    kafka_errors.OutOfOrderSequenceNumberError,
    kafka_errors.UnknownProducerIdError,
    kafka_errors.InvalidProducerEpochError,
)


class PublishReport(NamedTuple):
    """What became of the ticks: every one sent is acknowledged, failed, or still in flight.

    Of those whose first acknowledgement never came, `found` were in the topic all the same, and `resent` were not.
    """

    sent: int
    acknowledged: int
    failed: int
    resent: int
    seconds: float
    found: int = 0

    @property
    def rate(self) -> float:
        """Acknowledged ticks per second."""
        return self.acknowledged / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        failed = f", {self.failed:,} not delivered" if self.failed else ""
        resent = f", {self.resent:,} sent again" if self.resent else ""
        found = f", {self.found:,} found in the topic" if self.found else ""
        return f"{self.sent:,} sent, {self.acknowledged:,} acknowledged{failed}{resent}{found}, {self.rate:,.0f} ticks/s"


class _StopError(Exception):
    """The time that a stopping producer waits for the broker is over."""


class Producer:
    """Publishes to one topic, idempotent and acknowledged by all replicas. Use it as a context manager.

    A broker that is away is waited for, for as long as it takes; once `stopping` is set, for ten seconds. What is not
    acknowledged by then counts as failed.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        linger_ms: int = LINGER_MS,
        delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS,
        stopping: threading.Event | None = None,
    ) -> None:
        self.topic = topic
        self._servers, self._linger_ms, self._delivery_timeout_ms = servers, linger_ms, delivery_timeout_ms
        self._stopping = stopping or threading.Event()
        self._started = time.monotonic()
        self._sent = self._acknowledged = self._failed = self._resent = self._found = 0
        # In the order of acceptance, which a message keeps when it is sent again.
        self._in_flight: deque[_Message] = deque()
        self._bytes = 0
        # Of each partition, the offset from which on an unacknowledged message may lie.
        self._unsure_from: dict[int, int] | None = None
        self._lock = threading.RLock()
        self._broken: PipelineError | None = None
        self._has_given_up = False
        self._stop_seen: tuple[int, float] | None = None
        self._oldest: tuple[FutureProduceResult | None, int] = (None, 0)
        self._lost_at: int | None = None
        self._client: BatchClient | None = self._connect()

    def _connect(self) -> BatchClient:
        # A batch that is larger than the topic takes is cut in two by Kafka's client, and its future is never done.
        most = int(topics.describe_topic(self._servers, self.topic).config["max.message.bytes"])
        try:
            return BatchClient(
                self.topic,
                bootstrap_servers=self._servers.split(","),
                bootstrap_timeout_ms=5_000,
                enable_idempotence=True,
                acks="all",
                linger_ms=self._linger_ms,
                batch_size=min(BATCH_BYTES, most),
                delivery_timeout_ms=self._delivery_timeout_ms,
                request_timeout_ms=min(30_000, self._delivery_timeout_ms // 2),
                max_block_ms=10_000,
                allow_auto_create_topics=False,
                max_request_size=MAX_REQUEST_BYTES,
            )
        except kafka_errors.KafkaError as error:
            raise UnavailableError(f"cannot publish to Kafka at {self._servers}: {error}; is it running? (`stocks status`)") from error

    def publish(self, tick: Tick) -> None:
        """Accept a tick: from here on it is sent until it is acknowledged, or counted as failed.

        Waits while the bound of unacknowledged messages is reached. Raises PipelineError for a failure that another try
        cannot mend, such as a missing right.
        """
        self.publish_message(encode_key(tick.symbol), encode_tick(tick))

    def publish_message(self, key: bytes | None, value: bytes | None) -> None:
        """Accept a message as it is, tick or not: what a notebook or a test needs to see a bad one through."""
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._has_given_up:
                self._sent, self._failed = self._sent + 1, self._failed + 1
                return
            if self._unsure_from is None:
                self._started = time.monotonic()
                self._unsure_from = {part: found.latest for part, found in topics.read_offsets(self._servers, self.topic).items()}
            self._in_flight.append(self._hand_over(key, value))
            self._sent += 1
            self._bytes += _size(key, value)
            oldest = self._in_flight[0][0]
            if oldest is None or oldest.is_done or self._is_full():
                self._settle(self._is_full)

    def _is_full(self) -> bool:
        return len(self._in_flight) > MAX_IN_FLIGHT or self._bytes > MAX_BYTES_IN_FLIGHT

    def flush(self) -> None:
        """Wait until every accepted tick is acknowledged."""
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._settle(lambda: True)

    def tend(self) -> int | None:
        """Settle what is done, also while no tick comes; return since when Kafka is waited for, None if it is not.

        To be called every few seconds, from another thread than the one that publishes.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            except PipelineError as error:
                self._broken = error  # the thread that publishes is told
            finally:
                self._lock.release()
        if self._lost_at is not None:
            return self._lost_at
        try:
            oldest = self._in_flight[0][0]
        except IndexError:
            oldest = None
        if oldest is not self._oldest[0]:
            self._oldest = (oldest, _now_ms())
        since = self._oldest[1]
        return None if _is_done(oldest) or _now_ms() - since < PATIENCE_SECONDS * 1_000 else since

    def _settle(self, waits: Callable[[], bool] = lambda: False) -> None:
        """Settle what is done, from the oldest message on, and while it `waits` also what is not done yet."""
        try:
            while self._in_flight and (_is_done(self._in_flight[0][0]) or waits()):
                self._settle_oldest()
                self._count_acknowledged()
        except _StopError:
            self._give_up()

    def _count_acknowledged(self) -> None:
        """Count the oldest messages that are acknowledged, up to one that is not."""
        in_flight, unsure_from = self._in_flight, self._unsure_from
        assert unsure_from is not None
        while in_flight:
            future, place, key, value = in_flight[0]
            if future is None or not future.is_done or error_of(future, place) is not None:
                return
            in_flight.popleft()
            self._acknowledged += 1
            self._bytes -= _size(key, value)
            unsure_from[future.topic_partition.partition] = future.value[0] + place + 1

    def _settle_oldest(self) -> None:
        """Wait for the batch of the oldest message; recover from what it has failed with, or raise that."""
        future, place, key, value = self._in_flight[0]
        error = None if future is None else self._wait_for(future, place)
        if future is None or (error is not None and _may_pass(error)):
            self._recover()
        elif error is not None:
            self._in_flight.popleft()
            self._bytes -= _size(key, value)
            self._failed += 1
            raise PipelineError(f"cannot publish to {self.topic!r}: {error}; check the topic and the rights of this user") from error

    def _wait_for(self, future: FutureProduceResult, place: int) -> kafka_errors.KafkaError | None:
        """Return what a message of this batch has failed with, None if the broker has acknowledged it."""
        # The client fails what it cannot deliver by the time-out; the margin is for a client that has died.
        deadline = time.monotonic() + self._delivery_timeout_ms / 1_000 + 10
        while not future.is_done:
            if time.monotonic() > deadline:
                return kafka_errors.KafkaTimeoutError("Kafka's client does not answer")
            self._check_stopping()
            if future.wait(0.5) and not future.is_done:
                return kafka_errors.KafkaTimeoutError("the batch was too large for the topic, and was cut in two")
        return error_of(future, place)

    def _hand_over(self, key: bytes | None, value: bytes | None) -> _Message:
        """Return a message given to Kafka's client, with no future if it cannot take it for now."""
        if self._client is None:
            return None, 0, key, value
        try:
            return *self._client.add(key, value), key, value
        except kafka_errors.KafkaError as error:
            if _may_pass(error):
                return None, 0, key, value
            raise PipelineError(f"cannot publish to {self.topic!r}: {error}; correct the message or the topic") from error

    # after a failure

    def _recover(self) -> None:
        """Send again, in order, those unacknowledged messages that are not in the topic; wait until it can be read."""
        self._lost_at = self._lost_at or _now_ms()
        pause = 0.5
        while True:
            self._discard_client()
            try:
                self._send_missing()
                break
            except UnavailableError as error:
                log.debug("Kafka is waited for: %s", error)
            self._check_stopping()
            if self._stopping.wait(pause):
                time.sleep(0.5)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)
        self._lost_at = None

    def _send_missing(self) -> None:
        assert self._unsure_from is not None
        topics.read_offsets(self._servers, self.topic)
        time.sleep(SETTLE_SECONDS)  # nothing can be asked whether that is done
        ranges = topics.read_offsets(self._servers, self.topic)
        ends = {part: found.latest for part, found in ranges.items()}
        starts = {part: max(found.earliest, self._unsure_from.get(part, 0)) for part, found in ranges.items()}
        missing = self._find_missing(starts, ends)
        self._client = self._connect()
        unacknowledged = sum(not _is_acknowledged(future, place) for future, place, _, _ in self._in_flight)
        self._acknowledged += len(self._in_flight) - len(missing)
        self._found += unacknowledged - len(missing)
        self._resent += len(missing)
        self._unsure_from = ends
        self._bytes = sum(_size(key, value) for key, value in missing)
        self._in_flight = deque(self._hand_over(key, value) for key, value in missing)

    def _find_missing(self, starts: dict[int, int], ends: dict[int, int]) -> list[tuple[bytes | None, bytes | None]]:
        """Return the unacknowledged messages that the topic does not hold between these offsets, in order."""
        wanted, there = Counter((key, value) for _, _, key, value in self._in_flight), Counter[tuple[bytes | None, bytes | None]]()
        for message in topics.read_messages(self._servers, self.topic, starts, ends):
            if (it := (message.key, message.value)) in wanted:
                there[it] += 1
        unsure = [(key, value) for future, place, key, value in self._in_flight if not _is_acknowledged(future, place)]
        # What has an acknowledgement of its own is no proof for another message of the same bytes.
        there -= wanted - Counter(unsure)
        missing = []
        for it in unsure:
            if there[it] > 0:
                there[it] -= 1
            else:
                missing.append(it)
        return missing

    def _discard_client(self) -> None:
        """Throw the client away with all that it has not delivered: nothing is sent by it any more, and every future is done."""
        client, self._client = self._client, None
        if client is None:
            return
        # close() alone waits for the broker, or raises where there is none.
        client._sender.force_close()
        client._sender.join(self._delivery_timeout_ms / 1_000)
        with contextlib.suppress(kafka_errors.KafkaError):
            client.close(timeout=0)

    def _check_stopping(self) -> None:
        """Raise _StopError if this producer is to stop, and the broker has acknowledged nothing for ten seconds since."""
        if not self._stopping.is_set():
            return
        if self._stop_seen is None or self._stop_seen[0] != self._acknowledged:
            self._stop_seen = self._acknowledged, time.monotonic()
        elif time.monotonic() - self._stop_seen[1] > STOP_SECONDS:
            raise _StopError

    def _give_up(self) -> None:
        self._has_given_up = True
        self._discard_client()
        self._failed += len(self._in_flight)
        self._in_flight.clear()
        self._bytes = 0

    # beside the ticks

    def publish_bytes(self, key: bytes | None, value: bytes | None) -> Message:
        """Return the message that the broker took: these bytes as they are, a tick or not; in no count of ticks."""
        return self._take_in(self.topic, key, value)

    def publish_status(self, topic: str, status: FeedStatus) -> Message:
        """Return the message that the broker took of the feed's state, on the status topic."""
        return self._take_in(topic, None, encode_status(status))

    def _take_in(self, topic: str, key: bytes | None, value: bytes | None) -> Message:
        try:
            if self._client is None:
                raise kafka_errors.KafkaTimeoutError("there is no connection")
            taken = self._client.send(topic, key=key, value=value).get(timeout=self._delivery_timeout_ms / 1_000 + 10)
        except kafka_errors.KafkaError as error:
            what = UnavailableError if _may_pass(error) else PipelineError
            raise what(f"cannot publish to {topic!r}: {error}; is Kafka running? (`stocks status`)") from error
        return Message(taken.partition, taken.offset, taken.timestamp, key, value)

    def send_status(self, topic: str, status: FeedStatus) -> None:
        """Send the feed's state to the status topic; the next one replaces it, so nobody waits for this one."""
        if (client := self._client) is None:
            return
        try:
            client.send(topic, value=encode_status(status))
        except kafka_errors.KafkaError as error:
            log.debug("cannot tell how the feed is: %s", error)

    @property
    def report(self) -> PublishReport:
        """The counts up to now."""
        seconds = time.monotonic() - self._started
        return PublishReport(self._sent, self._acknowledged, self._failed, self._resent, seconds, self._found)

    def stop(self) -> None:
        """Wait for the broker no longer than ten seconds from now on, from whichever thread."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for what was accepted, then disconnect."""
        try:
            self.flush()
            if self._client is not None:
                with contextlib.suppress(kafka_errors.KafkaError):
                    self._client.flush(timeout=STOP_SECONDS)  # the last word on the feed's state
        finally:
            self._discard_client()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is KeyboardInterrupt or self._broken is not None:
            self._discard_client()  # whoever interrupts a second time does not wait any more
        else:
            self.close()


def _is_done(future: FutureProduceResult | None) -> bool:
    # None: Kafka's client would not take the message.
    return future is None or bool(future.is_done)


def _size(key: bytes | None, value: bytes | None) -> int:
    return (len(key) if key else 0) + (len(value) if value else 0)


def _is_acknowledged(future: FutureProduceResult | None, place: int) -> bool:
    return future is not None and future.is_done and error_of(future, place) is None


def _may_pass(error: kafka_errors.KafkaError) -> bool:
    """Return whether another try can succeed: Kafka's own word, and its time-outs, lost connections and closed clients."""
    return bool(error.retriable) or isinstance(error, _PASSING)


def publish_ticks(producer: Producer, ticks: Iterable[Tick], progress: Callable[[PublishReport], None] | None = None) -> PublishReport:
    """Return the report of publishing all ticks; `progress` is told it several times a second and at the end.

    An interrupt (Ctrl-C) ends the ticks, not the delivery: what was accepted is acknowledged before this returns, unless
    the broker is away for more than ten seconds from then on.
    """
    told = time.monotonic()
    try:
        for tick in ticks:
            producer.publish(tick)
            if progress and (now := time.monotonic()) - told > PROGRESS_SECONDS:
                told = now
                progress(producer.report)
    except KeyboardInterrupt:
        producer.stop()
    producer.flush()
    if progress:
        progress(producer.report)
    return producer.report


def publish_bytes(servers: str, topic: str, key: bytes | None, value: bytes | None) -> Message:
    """Return the message that the broker took: these bytes as they are, a tick or not."""
    with Producer(servers, topic) as producer:
        return producer.publish_bytes(key, value)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
