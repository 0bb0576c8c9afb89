"""Everything in PostgreSQL made again from the topic; and the topic, where it has gone, made again from a tape.

The new tables are filled by the stream itself, in a schema of their own beside the ones in use, compared with the topic by
`verify`, and put in the place of the old ones in one transaction. Until then readers are undisturbed, and whatever happens
the old tables are as they were: what a killed rebuild has left is cleared by the next one. Called by the command line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib import audit, pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError, TapeError, TopicError, UnavailableError
from pipeline_lib.producer import FULL_SPEED_LINGER_MS, Producer, publish_ticks
from pipeline_lib.records import Tick, encode_key, encode_tick
from pipeline_lib.sources.tape import Tape
from pipeline_lib.verify import VerifyReport

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# A reader who keeps a transaction open holds the old tables; each try waits for some seconds.
SWAP_TRIES = 6

Report = Callable[[str], None]


def rebuild(
    settings: Settings, open_session: Callable[[], SparkSession], *, accept_loss: bool = False, report: Report = print
) -> VerifyReport:
    """Make all tables again from what the topic holds, and return the report of verify, made before they were put in place.

    Raises AlreadyRunningError while a stream writes to this database, and PipelineError, with the old tables as they were, if
    the new ones are not what the topic says or, unless `accept_loss`, hold fewer ticks than the old ones were made of.
    """
    servers = pipeline.servers_of(settings)
    held = sum(found.latest - found.earliest for found in topics.read_offsets(servers, settings.kafka_topic).values())
    if not held and not accept_loss:
        raise TopicError(
            f"cannot rebuild: topic {settings.kafka_topic!r} holds no messages; make it again from a tape: `stocks rebuild --tape FILE`"
        )
    with contextlib.closing(pipeline.open_store(settings)) as old, contextlib.closing(old.beside()) as new, new.only_stream():
        had = old.count_ticks()
        new.clear_schema()
        report(f"rebuild: {held:,} messages of {settings.kafka_topic} -> {settings.window} bars, beside the tables in use")
        with pipeline.open_stream(settings, open_session(), new, report=report) as stream:
            stream.start(until_caught_up=True).wait()
        verdict = audit.verify(servers, new)
        if not verdict.equal:
            raise PipelineError(
                f"cannot rebuild: the new tables are not what the topic says ({verdict}; {'; '.join(verdict.account_faults)}); "
                "the old ones are as they were; please report this as a fault"
            )
        report(f"rebuild: {verdict}")
        made = new.count_ticks() or 0
        if had is not None and had > made and not accept_loss:
            raise PipelineError(
                f"cannot rebuild: the tables in use were made of {had:,} ticks, the topic holds {made:,} of them; rebuild from a "
                "tape that has them all (`--tape FILE`, into an empty topic), or do without the rest: `--accept-loss`"
            )
        for left in reversed(range(SWAP_TRIES)):
            try:
                new.swap_tables()
                break
            except UnavailableError as error:
                if not left:
                    raise
                report(f"rebuild waits to swap the tables: {error}")
    return verdict


def fill_topic(settings: Settings, path: Path, report: Report = print) -> int:
    """Make the topic of a tape, message for message, and return how many messages were missing.

    A topic that holds the beginning of the tape, as after an interruption, gets the rest. Raises TopicError if it holds
    anything else.
    """
    servers, topic = pipeline.servers_of(settings), settings.kafka_topic
    tape = Tape(path)
    topics.create_topic(servers, topic)
    held = _count_held(servers, topic, tape)
    missing = tape.total - tape.bad.count - sum(held.values())
    if missing:
        report(f"rebuild: {missing:,} ticks of {path.name} -> {topic}")
        with Producer(servers, topic, linger_ms=FULL_SPEED_LINGER_MS) as producer:
            published = publish_ticks(producer, _after(tape, held))
        if published.failed:
            raise UnavailableError(f"cannot make the topic of {path.name}: {published}; rebuild again, and it goes on")
        # Nobody else may have published meanwhile: it has to be the same topic.
        _count_held(servers, topic, tape)
    if tape.bad.count:
        raise TapeError(
            f"cannot rebuild from {path.name}: {tape.bad.count} of its lines are no ticks, the first {tape.bad.first}; record it again"
        )
    return missing


def _count_held(servers: str, topic: str, tape: Tape) -> dict[int, int]:
    """Return how many of the tape's messages each partition holds. Raises TopicError if it holds others."""
    ranges = topics.read_offsets(servers, topic)
    way_out = (
        "make the tables of what it holds: `stocks rebuild` without --tape; or name another topic in KAFKA_TOPIC and an empty database"
    )
    if shortened := [part for part, found in ranges.items() if found.earliest]:
        raise TopicError(f"cannot make topic {topic!r} of the tape: partition {shortened[0]} has lost its first messages; {way_out}")
    readers = {part: topics.read_messages(servers, topic, {part: 0}, {part: found.latest}) for part, found in ranges.items()}
    held = dict.fromkeys(ranges, 0)
    for part, tick in _placed(tape, len(ranges)):
        message = next(readers[part], None)
        if message is not None:
            if (message.key, message.value) != (encode_key(tick.symbol), encode_tick(tick)):
                raise TopicError(
                    f"cannot make topic {topic!r} of the tape: partition {part}, offset {message.offset} holds something else than "
                    f"the tape's {tick.id}; {way_out}"
                )
            held[part] += 1
    for part, reader in readers.items():
        if (message := next(reader, None)) is not None:
            raise TopicError(
                f"cannot make topic {topic!r} of the tape: partition {part} holds more than the tape, from offset {message.offset} on; "
                f"{way_out}"
            )
    return held


def _placed(tape: Tape, partitions: int) -> Iterator[tuple[int, Tick]]:
    """Yield each tick of the tape with its partition."""
    places: dict[str, int] = {}
    for tick in tape:
        if tick.symbol not in places:
            places[tick.symbol] = topics.partition_of(encode_key(tick.symbol), partitions)
        yield places[tick.symbol], tick


def _after(tape: Tape, held: dict[int, int]) -> Iterator[Tick]:
    """Yield the ticks that the topic does not hold yet."""
    left = dict(held)
    for part, tick in _placed(tape, len(held)):
        if left[part]:
            left[part] -= 1
        else:
            yield tick
