"""The feed killed at any instant: a tape goes on where it stopped, and a live source never gives an id twice.

The model is the tape itself, as a plain list: after the last life the topic holds each of its ticks once.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest
from runs import assert_eventually, publish, random_ticks
from test_kill import stage

from pipeline_lib import pipeline, status_beat, topics
from pipeline_lib.config import Settings
from pipeline_lib.errors import ClockError, TopicError
from pipeline_lib.pipeline import Place
from pipeline_lib.records import Tick, decode_status, decode_tick, status_topic
from pipeline_lib.sources import open_source
from pipeline_lib.sources.tape import write_tape
from pipeline_lib.status_beat import CLOCK_TOLERANCE_SECONDS, check_clocks

TICKS = 30_000


def count_messages(settings: Settings) -> int:
    try:
        return sum(found.latest for found in topics.read_offsets(pipeline.servers_of(settings), settings.kafka_topic).values())
    except TopicError:
        return 0


def read_ticks(settings: Settings) -> dict[int, list[Tick]]:
    """Return the ticks of each partition, in order."""
    servers, topic = pipeline.servers_of(settings), settings.kafka_topic
    ends = {number: found.latest for number, found in topics.read_offsets(servers, topic).items()}
    found: dict[int, list[Tick]] = {number: [] for number in ends}
    for message in topics.read_messages(servers, topic, dict.fromkeys(ends, 0), ends):
        found[message.partition].append(decode_tick(message.value, message.key))
    return found


def run_until(settings: Settings, enough: int) -> None:
    """Run the feed, and kill it when the topic holds so many messages."""
    with stage(settings, "produce") as process:
        assert_eventually(lambda: (count_messages(settings), process.poll()), lambda seen: seen[0] >= enough or seen[1] is not None)
        process.kill()


@pytest.mark.repeats("kill -9 of the producer of a tape", full=5)
def test_a_tape_killed_again_and_again_is_published_once_over_all_lives(place: Place, repeat: int, tmp_path: Path) -> None:
    dice = random.Random(repeat)
    others, tape = random_ticks(repeat, 1_000), [each for each in random_ticks(repeat, TICKS + 1_000) if int(each.id[4:]) >= 1_000]
    write_tape(tape, tmp_path / "tape.jsonl")
    settings = place.settings.replaced(source="replay", tape=tmp_path / "tape.jsonl", speed="max", move_to_now=True)
    publish(settings, others[:500])
    for enough in sorted(dice.randint(501, TICKS) for _ in range(dice.choice([1, 2]))):
        run_until(settings, enough)
        publish(settings, [each for each in others[500:] if dice.random() < 0.5])  # others come in between
    with stage(settings, "produce") as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    found = {number: [each for each in ticks if each.source == "replay"] for number, ticks in read_ticks(settings).items()}
    assert Counter(each.id for ticks in found.values() for each in ticks) == Counter(each.id for each in tape)
    for ticks in found.values():
        assert [int(each.id[4:]) for each in ticks] == sorted(int(each.id[4:]) for each in ticks)
    recorded = {each.id: each.event_time for each in tape}
    assert len({each.event_time - recorded[each.id] for ticks in found.values() for each in ticks}) == 1  # moved as one


@pytest.mark.repeats("a tape that was published whole", full=1)
def test_a_tape_is_published_once_more_only_when_that_is_asked_for(place: Place, repeat: int, tmp_path: Path) -> None:
    tape = random_ticks(repeat, 2_000)
    write_tape(tape, tmp_path / "tape.parquet")
    settings = place.settings.replaced(source="replay", tape=tmp_path / "tape.parquet", speed="max")
    publish(settings, tape)
    said: list[str] = []
    source = open_source(settings, report=said.append)
    assert pipeline.produce(settings, source).sent == 0
    assert "nothing is left of the tape" in said[0] and "--again 1" in said[0]
    for _ in range(2):  # the repetition, too, is published once
        pipeline.produce(settings, open_source(settings.replaced(again=1)))
    ids = [each.id for ticks in read_ticks(settings).values() for each in ticks]
    assert sorted(ids) == sorted([each.id for each in tape] + [f"again1-{each.id}" for each in tape])


@pytest.mark.repeats("kill -9 of the producer of a live source", short=0, full=5)
def test_a_live_source_killed_and_started_again_gives_no_id_twice_and_keeps_what_it_said(place: Place, repeat: int) -> None:
    settings = place.settings.replaced(source="simulated", simulated_rate=3_000, simulated_seed=repeat)
    dice = random.Random(repeat)
    for _ in range(2):
        run_until(settings, count_messages(settings) + dice.randint(1_000, 10_000))
    ids = [each.id for ticks in read_ticks(settings).values() for each in ticks]
    assert len(set(ids)) == len(ids)
    beside = topics.peek_messages(pipeline.servers_of(settings), status_topic(settings.kafka_topic), 1_000)
    lives: dict[int, int] = {}
    for status in (decode_status(message.value) for message in beside):
        lives[status.since] = max(status.acknowledged, lives.get(status.since, 0))
    assert sum(lives.values()) <= len(ids)


def test_a_feed_whose_clock_is_apart_from_the_brokers_is_refused_with_both_times() -> None:
    now, far = 1_763_900_000_000, round(CLOCK_TOLERANCE_SECONDS * 1_000)
    for broker_at in (now - far, now, now + 50, now + 50 + far):  # an answer that took 50 ms
        check_clocks(now, now + 50, broker_at)
    with pytest.raises(ClockError, match=r"12:13:20 UTC, the broker's at 2025-11-23 12:13:26.*ahead; set the one that is wrong"):
        check_clocks(now, now + 50, now + 50 + far + 1_000)
    with pytest.raises(ClockError, match="behind"):
        check_clocks(now, now + 50, now - far - 1)


def test_a_feed_whose_clock_is_apart_publishes_no_tick_and_says_why_on_the_status_topic(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_beat, "now_ms", lambda: time.time_ns() // 1_000_000 + 60_000)
    settings = place.settings.replaced(source="simulated")
    with pytest.raises(ClockError, match="behind"):
        pipeline.produce(settings, open_source(settings, ticks=10))
    assert count_messages(settings) == 0
    said = decode_status(topics.peek_messages(pipeline.servers_of(settings), status_topic(settings.kafka_topic), 1)[0].value)
    assert said.state == "stopped" and "set the one that is wrong" in said.detail
