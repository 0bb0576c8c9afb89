"""Record and replay: a tape holds what came, and played verbatim it makes the same topic, message for message."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import publish, random_ticks, tick

from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.pipeline import Place
from pipeline_lib.records import Message
from pipeline_lib.sources import open_source
from pipeline_lib.sources.tape import write_tape


def messages_of(settings: Settings) -> list[tuple[int, int, bytes | None, bytes | None]]:
    """Return partition, offset, key and value of every message, in that order."""
    servers, topic = pipeline.servers_of(settings), settings.kafka_topic
    ranges = topics.read_offsets(servers, topic)
    ends = {number: found.latest for number, found in ranges.items()}
    found: list[Message] = sorted(topics.read_messages(servers, topic, dict.fromkeys(ranges, 0), ends))
    return [(one.partition, one.offset, one.key, one.value) for one in found]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_tape_recorded_and_replayed_verbatim_gives_the_same_topic_message_for_message(place: Place, tmp_path: Path, suffix: str) -> None:
    more = {"conditions": ["1", "12"], "repeat": "suspected", "source": "finnhub-ws"}
    quote = tick(9_002, kind="quote", volume=None, source="finnhub-rest", day_open=1.5, previous_close=-0.0)
    publish(place.settings, [*random_ticks(3, 2_000), tick(9_001, **more), quote])
    tape = tmp_path / f"tape{suffix}"
    assert write_tape(pipeline.read_topic(place.settings).ticks, tape) == 2_002
    with Place(place.settings, "replayed") as other:
        settings = other.settings.replaced(source="replay", tape=tape, speed="max", verbatim=True)
        report = pipeline.produce(settings, open_source(settings))
        assert report.acknowledged == 2_002
        assert messages_of(other.settings) == messages_of(place.settings)
