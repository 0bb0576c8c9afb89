"""The stages put together: what the command line, the notebooks and the tests start.

Stages know only what they are given; this is the module that gives it to them. It holds no logic of any stage.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from pipeline_lib import audit, topics
from pipeline_lib.binding import Binding, gap_words
from pipeline_lib.config import Settings
from pipeline_lib.database import create_database, drop_database
from pipeline_lib.errors import MessageError, PipelineError, TopicError, UnavailableError
from pipeline_lib.producer import FULL_SPEED_LINGER_MS, LINGER_MS, MAX_IN_FLIGHT, Producer, PublishReport, publish_ticks
from pipeline_lib.recompute import Scope
from pipeline_lib.records import FeedStatus, Gap, Message, Tick, decode_status, decode_tick, decode_value, encode_key, from_ms, status_topic
from pipeline_lib.services import start_services
from pipeline_lib.session import open_spark as open_spark
from pipeline_lib.sources import Source
from pipeline_lib.sources.market_hours import NEW_YORK
from pipeline_lib.status_beat import StatusBeat, now_ms
from pipeline_lib.store import Store
from pipeline_lib.verify import VerifyReport

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from pipeline_lib.stream import Stream

log = logging.getLogger(__name__)

Report = Callable[[str], None]

BEAT_SECONDS = 2.0
# A feed whose status is older is down; one that runs and brings nothing for so long is silent.
FEED_DOWN_SECONDS = 6.0
FEED_SILENT_SECONDS = 30.0


def servers_of(settings: Settings) -> str:
    """Return Kafka's address. Raises UnavailableError if the settings have none yet."""
    if settings.kafka_bootstrap_servers is None:
        raise UnavailableError("cannot reach Kafka: no address is known; start it with `stocks up`, or set KAFKA_BOOTSTRAP_SERVERS")
    return settings.kafka_bootstrap_servers


def open_store(settings: Settings) -> Store:
    """Return the store of the settings' database and topic; nothing is connected yet. Raises UnavailableError without an address."""
    if settings.database_url is None:
        raise UnavailableError("cannot reach PostgreSQL: no address is known; start it with `stocks up`, or set DATABASE_URL")
    return Store(settings.database_url.get_secret_value(), settings.kafka_topic)


# The feed


def produce(
    settings: Settings,
    source: Source,
    progress: Callable[[PublishReport], None] | None = None,
    *,
    stopping: threading.Event | None = None,
    report: Report = lambda line: None,
) -> PublishReport:
    """Publish all that the source yields, and tell the status topic how the feed is; return what became of the ticks.

    The topics are created if there are none. An interrupt ends the source, not the delivery of what was accepted; nor does
    `stopping`, which bounds how long a broker that is away is waited for. `report` is told when it is. Raises ClockError if
    the broker's clock is another than ours.
    """
    servers = servers_of(settings)
    topics.create_topic(servers, settings.kafka_topic)
    beside = status_topic(settings.kafka_topic)
    topics.create_topic(servers, beside, partitions=1)
    # What is made or read as fast as it is taken ends by itself, and nobody waits for one of its ticks.
    at_full_speed = source.finite and (settings.chosen_source == "simulated" or settings.speed == "max")
    linger_ms = FULL_SPEED_LINGER_MS if at_full_speed else LINGER_MS
    with Producer(servers, settings.kafka_topic, linger_ms=linger_ms, stopping=stopping) as producer:
        _go_on(settings, source, producer)
        detail = source.name if source.reason in source.name else f"{source.name}; {source.reason}"
        now = now_ms()
        status = FeedStatus(state="running", source=settings.chosen_source, detail=detail, since=now, at=now)
        with StatusBeat(producer, status, beside, health=source.health, report=report):
            return publish_ticks(producer, source, progress)


def _go_on(settings: Settings, source: Source, producer: Producer) -> None:
    """Let a tape leave out what the topic holds of it already; other sources give every tick an id that is new."""
    from pipeline_lib.sources.replay import Replay
    from pipeline_lib.sources.resume import Span, TopicSearch

    if not isinstance(source, Replay):
        return
    servers, topic = servers_of(settings), settings.kafka_topic
    spans = {part: Span(found.earliest, found.latest) for part, found in topics.read_offsets(servers, topic).items()}

    def read(wanted: dict[int, Span]) -> Iterator[Message]:
        starts, ends = {part: span.start for part, span in wanted.items()}, {part: span.end for part, span in wanted.items()}
        return topics.read_messages(servers, topic, starts, ends)

    if all(span.start == span.end for span in spans.values()):
        return
    search = TopicSearch(source.ticks(), lambda symbol: topics.partition_of(encode_key(symbol), len(spans)), spans, bound=MAX_IN_FLIGHT + 1)
    while wanted := search.wanted():
        search.take(read(wanted))
    published = search.published()
    moved_time = None
    if published.last is not None:
        part, offset, _ = published.last
        moved_time = decode_value(next(read({part: Span(offset, offset + 1)})).value).event_time
    source.go_on(published, moved_time, producer.flush)


def fill_topic(settings: Settings, source: Source) -> int:
    """Return how many messages the topic holds, after publishing what the source yields if it held none."""
    servers = servers_of(settings)
    topics.create_topic(servers, settings.kafka_topic)
    if not _messages_in(settings):
        produce(settings, source)
    return _messages_in(settings)


def _messages_in(settings: Settings) -> int:
    ranges = topics.read_offsets(servers_of(settings), settings.kafka_topic)
    return sum(found.latest - found.earliest for found in ranges.values())


class Feed:
    """A source that is published from a thread of its own, until it ends or the context is left.

    Leaving the context waits until all that was accepted is acknowledged, or the broker is away for ten seconds, and raises
    what went wrong.
    """

    def __init__(self, settings: Settings, source: Source) -> None:
        self.report: PublishReport | None = None  # what became of the ticks up to now
        self._settings, self._source = settings, source
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def _run(self) -> None:
        try:
            self._note(produce(self._settings, self._source, self._note, stopping=self._stopping))
        except BaseException as error:
            self._error = error

    def _note(self, report: PublishReport) -> None:
        self.report = report

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._source.close()
        self._thread.join()
        if self._error is not None:
            raise self._error


# The stream


def bind(settings: Settings, store: Store, *, accept_gap: bool = False, report: Report | None = None) -> Binding:
    """Return the tie between the store's database and its topic, made if there was none, and checked.

    The topic of a database that is tied to none is created. With `accept_gap`, what retention has removed unread is recorded
    as done without. Raises SchemaError if the database belongs to another topic or window, or its tables were altered,
    TopicError if the topic is not what the stored offsets were made from, ClockError if clocks are apart.
    """
    store.create_tables()
    # What it has kept open is given back for now, and opened again when it is asked.
    with contextlib.closing(Binding(store, servers_of(settings), settings.window_ms)) as binding:
        if accept_gap and (gaps := binding.accept_gaps()) and report is not None:
            report(f"stream: goes on without what retention has removed: {gap_words(gaps)}")
        binding.start_offsets()
    return binding


def open_stream(settings: Settings, session: SparkSession, store: Store, *, console: bool = False, report: Report | None = None) -> Stream:
    """Return a stream from the settings' topic into the store, bound and checked, not started yet. Raises what `bind` raises."""
    from pipeline_lib.stream import Plan, Stream

    binding = bind(settings, store)
    plan = Plan(
        servers=servers_of(settings),
        topic=settings.kafka_topic,
        start_offsets=binding.start_offsets,
        list_partitions=binding.list_partitions,
        release=binding.close,
        window_ms=settings.window_ms,
        watermark_delay=settings.watermark_delay,
        trigger=settings.trigger,
        max_offsets=settings.max_offsets_per_trigger,
        checkpoints=settings.checkpoint_folder,
    )
    return Stream(session, plan, store, console=console, report=report)


def stream_until_caught_up(settings: Settings, session: SparkSession, report: Report | None = None) -> Stream:
    """Return the ended stream that has read all that is in the topic now."""
    store = open_store(settings)
    with store.only_stream():
        stream = open_stream(settings, session, store, report=report).start(until_caught_up=True)
        try:
            stream.wait()
        finally:
            stream.stop()
    store.close()
    return stream


@contextlib.contextmanager
def running_stream(settings: Settings, session: SparkSession, report: Report | None = None) -> Iterator[Stream]:
    """Yield a stream that runs; leaving the context stops it after the micro-batch in hand.

    Raises AlreadyRunningError if another stream has this database.
    """
    store = open_store(settings)
    try:
        with store.only_stream(), open_stream(settings, session, store, report=report) as stream:
            yield stream.start()
    finally:
        store.close()


class Heartbeat:
    """Writes the last word of feed, Kafka and Spark into PostgreSQL every two seconds, from a thread of its own.

    The dashboard reads PostgreSQL alone, so what it is to say of the other stages has to be there.
    """

    def __init__(self, settings: Settings, stream: Stream) -> None:
        self._settings, self._stream = settings, stream
        self._store = open_store(settings)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._tail: topics.Tail | None = None
        self._feed: FeedStatus | None = None
        self._heard: list[FeedStatus] = []
        self._last_news = (0, time.monotonic())
        self._rows = (0, time.monotonic())

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._tail is not None:
            self._tail.close()
        # Where PostgreSQL is away, or refuses, there is nobody to tell that the stream has stopped.
        with contextlib.suppress(PipelineError):
            self._store.beat("spark", "stopped", "the stream was stopped")
        self._store.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for beat in (self._beat_spark, self._beat_kafka, self._beat_feed):
                try:
                    beat()
                except UnavailableError:
                    pass  # nothing can be recorded while PostgreSQL is away; readers see that it is
                except PipelineError as error:
                    log.warning("cannot record how the stages are: %s", error)
            self._stopping.wait(BEAT_SECONDS)

    def _beat_kafka(self) -> None:
        servers, topic = servers_of(self._settings), self._settings.kafka_topic
        try:
            lag = topics.read_lag(servers, topic, self._store.load_offsets())
            state, detail = "running", f"{sum(lag.values()):,} messages behind, {len(lag)} partitions"
            if self._tail is None:
                with contextlib.suppress(TopicError):  # no feed has run yet
                    self._tail = topics.Tail(servers, status_topic(topic))
            for message in self._tail.poll(100) if self._tail else []:
                with contextlib.suppress(MessageError):  # an unreadable status leaves the last one, which grows old
                    self._heard.append(decode_status(message.value))
        except UnavailableError as error:
            state, detail = "down", str(error)
            if self._tail is not None:
                self._tail.close()
                self._tail = None
        except TopicError as error:
            state, detail = "down", str(error)
        self._store.beat("kafka", state, detail)

    def _hear_feed(self, status: FeedStatus) -> None:
        """Keep what the feed says of its symbols and gaps, and that it was away, if it was."""
        before, self._feed = self._feed, status
        if before is not None and before.symbols is not None and status.symbols is not None and status.at > before.at:
            away = status.at - before.at
            if before.state == "stopped" or away > FEED_DOWN_SECONDS * 1_000:
                reason = "the feed was stopped" if before.state == "stopped" else "the feed gave no sign of life"
                self._store.keep_gap(Gap("feed", before.at, status.at, reason))
        self._store.keep_feed_status(status)

    def _beat_feed(self) -> None:
        while self._heard:
            self._hear_feed(self._heard[0])
            self._heard.pop(0)  # not before it is kept
        feed, now = self._feed, time.time()
        if feed is None:
            return
        if feed.acknowledged != self._last_news[0]:
            self._last_news = (feed.acknowledged, time.monotonic())
        age = now - feed.at / 1000
        detail = feed_words(feed)
        if feed.state == "stopped":
            self._store.beat("feed", "stopped", feed.detail, from_ms(feed.at))
        elif age > FEED_DOWN_SECONDS:
            self._store.beat(
                "feed", "down", f"{feed.detail}; no sign of life for {age:.0f} s: start it with `stocks produce`", from_ms(feed.at)
            )
        elif time.monotonic() - self._last_news[1] > FEED_SILENT_SECONDS:
            self._store.beat("feed", "silent", f"{detail}; nothing new for {time.monotonic() - self._last_news[1]:.0f} s")
        else:
            self._store.beat("feed", feed.state, detail, from_ms(feed.since))

    def _beat_spark(self) -> None:
        stream = self._stream
        rows, at = self._rows
        self._rows = stream.committed_rows, time.monotonic()
        rate = (self._rows[0] - rows) / max(self._rows[1] - at, 0.001)
        detail = f"{self._settings.spark_master}, {rate:,.0f} messages/s, {stream.committed_batches:,} micro-batches"
        state = {"failed": "down"}.get(stream.state, stream.state)
        self._store.beat("spark", state, f"{detail}; {stream.error}" if stream.error else detail)


def feed_words(status: FeedStatus) -> str:
    """Return what the feed is, whether its market is closed, and what was marked or left out."""
    words = [status.detail]
    symbols = status.symbols or ()
    if symbols and all(each.state in ("CLOSED", "NO DATA") for each in symbols) and (opens := symbols[0].opens_at):
        words.append(f"market closed, opens {from_ms(opens).astimezone(ZoneInfo(NEW_YORK)):%a %H:%M} New York")
    words += [f"{number:,} {name}" for name, number in sorted(status.marks.items()) if name != "unchanged" and number]
    return "; ".join(words)


class Live:
    """Feed, stream and heartbeat in this process, from the moment it is made until `stop`.

    What `stocks run` starts as processes of their own; here a notebook looks on.
    """

    def __init__(self, settings: Settings, session: SparkSession, source: Source) -> None:
        with contextlib.ExitStack() as started:
            self.stream = started.enter_context(running_stream(settings, session))
            started.enter_context(Heartbeat(settings, self.stream))
            self.feed = started.enter_context(Feed(settings, source))
            # Whatever fails or is interrupted before this line stops what was started.
            self._started = started.pop_all()

    def stop(self) -> None:
        """Stop the feed, then the stream; what is stopped already stays so."""
        self._started.close()


# Verify, record


def verify(settings: Settings, scope: Scope = Scope(), processes: int | None = None) -> VerifyReport:  # noqa: B008 - a value
    """Recompute the bars from the topic up to the stored offsets, compare, and return the report.

    `processes` is how many read a large topic: by default one a core. Raises SchemaError if the stored offsets belong to
    another topic than the one that is there.
    """
    with contextlib.closing(open_store(settings)) as store:
        return audit.verify(servers_of(settings), store, scope, processes)


def watch(
    settings: Settings,
    stopping: threading.Event,
    scope: Scope = Scope(),  # noqa: B008 - a value
    every_seconds: float = 5,
    report: Report | None = None,
) -> Iterator[VerifyReport]:
    """Yield the report of each pass of verify, every so many seconds until `stopping` is set; a pass reads what is new alone.

    Where a server is away, `report` is told, and the next pass tries again.
    """
    with contextlib.closing(open_store(settings)) as store:
        passes = audit.Watch(servers_of(settings), store, scope)
        while True:
            try:
                yield passes.next_report()
            except UnavailableError as error:
                if report is not None:
                    report(f"verify waits: {error}")
            if stopping.wait(every_seconds):
                return


class Recording(NamedTuple):
    """What was read of the topic: ticks, and messages that were none."""

    ticks: Iterator[Tick]
    bad: list[str]


def read_topic(settings: Settings) -> Recording:
    """Return the ticks that the topic holds now, in the order in which the broker took them.

    Messages that are no ticks are named in `bad` as they are met: topic, partition, offset and reason.
    """
    servers, topic = servers_of(settings), settings.kafka_topic
    ranges = topics.read_offsets(servers, topic)
    bad: list[str] = []
    # One reader a partition, so that no more than a piece of each is held while they are merged by the broker's clock.
    readers = [topics.read_messages(servers, topic, {part: found.earliest}, {part: found.latest}) for part, found in ranges.items()]

    def ticks() -> Iterator[Tick]:
        for message in heapq.merge(*readers, key=lambda message: (message.timestamp, message.partition, message.offset)):
            try:
                yield decode_tick(message.value, message.key, message.timestamp)
            except MessageError as error:
                bad.append(f"{topic} {message.partition} {message.offset}: {error}")

    return Recording(ticks(), bad)


# A place of one's own


class Place:
    """A topic, a database and a checkpoint folder of one's own on the running services, so that runs can stand side by side.

    ``settings`` point there. Closing it, or leaving it as a context manager, removes them. With a
    `topic` that is not empty, that topic and the settings' own database are used, and stay.
    """

    def __init__(self, settings: Settings, name: str, report: Report | None = None, *, topic: str = "") -> None:
        running = start_services(settings, report)
        self._base_url = open_store(running).url
        self.name = f"{name}-{secrets.token_hex(3)}"
        checkpoints = running.checkpoint_folder / self.name
        if topic:
            self.settings = running.replaced(kafka_topic=topic, checkpoint_dir=checkpoints)
        else:
            url = create_database(self._base_url, self.name)
            self.settings = running.replaced(kafka_topic=f"{self.name}-data", database_url=url, checkpoint_dir=checkpoints)
        self._is_own, self._open = not topic, True

    def close(self) -> None:
        """Remove what is one's own."""
        if not self._open:
            return
        self._open = False
        shutil.rmtree(self.settings.checkpoint_folder, ignore_errors=True)
        if self._is_own:
            for topic in (self.settings.kafka_topic, status_topic(self.settings.kafka_topic)):
                topics.delete_topic(servers_of(self.settings), topic)
            drop_database(self._base_url, self.name)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def log_folder(settings: Settings) -> Path:
    """Return the folder of the stages' logs, made if there is none."""
    folder = settings.pipeline_home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
