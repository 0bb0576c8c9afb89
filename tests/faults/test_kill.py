"""Kill -9 at any instant: after a restart, with no other step, the table is what the topic says."""

from __future__ import annotations

import random
import signal

import pytest
from runs import assert_equal, assert_eventually, open_store, publish, random_ticks
from stages import stage

from pipeline_lib import pipeline
from pipeline_lib.pipeline import Place


@pytest.mark.repeats("kill -9 of the Spark driver, while it catches up", short=0, full=5)
def test_a_stream_killed_half_way_loses_nothing_and_adds_nothing_twice(place: Place, repeat: int) -> None:
    settings = place.settings.replaced(max_offsets_per_trigger=2_000)
    dice = random.Random(repeat)
    publish(settings, random_ticks(repeat, 20_000))
    store = open_store(place)
    store.create_tables()
    enough = dice.randint(1, 14_000)
    with stage(settings, "stream", "--until-caught-up") as process:
        assert_eventually(
            lambda: (store.load_accounts()["good_count"].sum(), process.poll()), lambda seen: seen[0] >= enough or seen[1] is not None
        )
        assert process.poll() is None, process.communicate()[0]
        process.kill()  # the Python of the driver; its JVM is left to find out by itself
    assert 0 < store.load_accounts()["good_count"].sum() < 20_000
    with stage(settings.replaced(max_offsets_per_trigger=50_000), "stream", "--until-caught-up") as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert store.load_accounts()["good_count"].sum() == 20_000
    assert_equal(settings)


@pytest.mark.parametrize("seed", [3])
def test_a_producer_told_to_stop_has_delivered_all_that_it_accepted(place: Place, seed: int) -> None:
    settings = place.settings.replaced(source="simulated", simulated_rate=2_000, simulated_seed=seed)
    with stage(settings, "produce") as process:
        servers, topic = pipeline.servers_of(settings), settings.kafka_topic

        def in_topic() -> int:
            try:
                return sum(found.latest for found in pipeline.topics.read_offsets(servers, topic).values())
            except pipeline.TopicError:
                return 0

        assert_eventually(in_topic, lambda count: count > 500)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert f"{in_topic():,} sent, {in_topic():,} acknowledged" in said
