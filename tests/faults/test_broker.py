"""The broker away while a feed and a stream run: both wait, nothing is lost, and nothing is there twice.

The broker is one of the test's own, killed by its number. The model is the list of ticks that the producer has accepted.
"""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pyspark.sql import SparkSession
from runs import assert_equal, assert_eventually, random_ticks
from test_kill import stage
from test_producer import count_messages, read_ticks

from pipeline_lib import pipeline, topics
from pipeline_lib.config import Settings
from pipeline_lib.pipeline import Place
from pipeline_lib.producer import Producer, PublishReport
from pipeline_lib.records import Tick
from pipeline_lib.services import remove_services, service_status, start_services, stop_services
from pipeline_lib.sources.tape import write_tape

# kafka-python leaves the socket of a connection that it did not get to the collector of garbage.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# Instead of two minutes, so that a broker that is away for longer than that is not waited for that long here.
DELIVERY_TIMEOUT_MS = 2_000


@pytest.fixture(scope="module")
def own_broker(services: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings with a broker of this module's own, not started yet, and the PostgreSQL of all tests."""
    folder = tmp_path_factory.mktemp("own-broker")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
        patch.chdir(folder)  # away from the project's .env
        own = services.replaced(kafka_bootstrap_servers=None, pipeline_home=folder / "home")
    assert own.kafka_bootstrap_servers is None
    yield own
    remove_services(own)


@pytest.fixture
def own_place(own_broker: Settings) -> Iterator[Place]:
    """A topic on the module's broker, and a database."""
    with Place(own_broker, "broker") as place:
        yield place
    gc.collect()  # while the warning is expected


def broker(own_broker: Settings) -> psutil.Process:
    (status,) = [status for status in service_status(own_broker) if status.name == "kafka"]
    assert status.pid is not None
    return psutil.Process(status.pid)


def kill(own_broker: Settings) -> None:
    victim = broker(own_broker)
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)


def freeze(own_broker: Settings) -> None:
    broker(own_broker).suspend()


def bring_back(own_broker: Settings) -> None:
    (status,) = [status for status in service_status(own_broker) if status.name == "kafka"]
    if status.pid is not None:
        psutil.Process(status.pid).resume()  # of one that is not frozen it changes nothing
    start_services(own_broker)


class OwnFeed:
    """Publishes ticks at an even pace from a thread of its own; `accepted` is what the producer has taken."""

    def __init__(self, settings: Settings, ticks: list[Tick]) -> None:
        self.accepted: list[Tick] = []
        self.reports: list[PublishReport] = []
        self.waited = False
        self._ticks, self._ended = ticks, threading.Event()
        self._producer = Producer(pipeline.servers_of(settings), settings.kafka_topic, delivery_timeout_ms=DELIVERY_TIMEOUT_MS)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._producer:
            for tick in self._ticks:
                if self._ended.wait(0.0005):
                    break
                self._producer.publish(tick)
                self.accepted.append(tick)
        self.reports.append(self._producer.report)

    @property
    def acknowledged(self) -> int:
        return self._producer.report.acknowledged

    def is_waiting(self) -> bool:
        """Ask as the heartbeat of a feed does."""
        return self._producer.tend() is not None

    def end(self) -> PublishReport:
        self._ended.set()
        self._thread.join(120)
        assert self.reports, "the producer has not delivered what it accepted"
        return self.reports[0]


def ride_out(
    own_broker: Settings, place: Place, session: SparkSession, seed: int, fault: Callable[[Settings], object], away: float
) -> None:
    """Run feed and stream, take the broker away for so long, and hold all to the ledger of what was accepted."""
    settings = place.settings
    topics.create_topic(pipeline.servers_of(settings), settings.kafka_topic)
    store = pipeline.open_store(settings)
    with pipeline.running_stream(settings, session) as stream:
        feed = OwnFeed(settings, random_ticks(seed, 100_000))
        assert_eventually(lambda: stream.committed_rows, lambda rows: rows > 200)
        fault(own_broker)
        gone_at = time.monotonic()
        stuck_at = feed.acknowledged
        waits = away > DELIVERY_TIMEOUT_MS / 1_000
        assert_eventually(
            lambda: (feed.is_waiting(), time.monotonic() - gone_at), lambda seen: (seen[0] or not waits) and seen[1] >= away, seconds=60
        )
        bring_back(own_broker)
        assert_eventually(lambda: feed.acknowledged, lambda now: now > stuck_at + 1_000)
        report = feed.end()
        assert report.sent == report.acknowledged == len(feed.accepted) and report.failed == 0
        assert Counter(each.id for ticks in read_ticks(settings).values() for each in ticks) == Counter(each.id for each in feed.accepted)
        assert_eventually(lambda: store.load_accounts()["good_count"].sum(), lambda good: good == len(feed.accepted))
    assert_equal(settings)


@pytest.mark.repeats("broker: kill -9, back at once", short=0, full=5)
def test_a_broker_that_is_killed_is_ridden_out(own_broker: Settings, own_place: Place, session: SparkSession, repeat: int) -> None:
    ride_out(own_broker, own_place, session, repeat, kill, 0)


@pytest.mark.repeats("broker: clean restart", short=0, full=5)
def test_a_broker_that_is_restarted_is_ridden_out(own_broker: Settings, own_place: Place, session: SparkSession, repeat: int) -> None:
    ride_out(own_broker, own_place, session, repeat, stop_services, 0)


@pytest.mark.repeats("broker: down for 5 s", short=0, full=5)
def test_a_broker_that_is_down_for_seconds_is_ridden_out(
    own_broker: Settings, own_place: Place, session: SparkSession, repeat: int
) -> None:
    ride_out(own_broker, own_place, session, repeat, stop_services if repeat % 2 else kill, 5)


@pytest.mark.repeats("broker: down for longer than the delivery time-out", short=0, full=5)
def test_a_broker_that_is_down_for_longer_than_the_delivery_time_out_is_ridden_out(
    own_broker: Settings, own_place: Place, session: SparkSession, repeat: int
) -> None:
    ride_out(own_broker, own_place, session, repeat, kill, DELIVERY_TIMEOUT_MS / 1_000 + 1)


@pytest.mark.repeats("broker: frozen for longer than the delivery time-out", short=0, full=5)
def test_what_a_frozen_broker_has_taken_without_a_word_is_not_sent_again(
    own_broker: Settings, own_place: Place, session: SparkSession, repeat: int
) -> None:
    ride_out(own_broker, own_place, session, repeat, freeze, DELIVERY_TIMEOUT_MS / 1_000 + 1)


@pytest.mark.repeats("broker: kill -9 under a tape at full speed", short=0, full=5)
def test_a_tape_at_full_speed_is_delivered_once_and_in_order_over_the_death_of_its_broker(
    own_broker: Settings, own_place: Place, repeat: int, tmp_path: Path
) -> None:
    tape, dice = random_ticks(repeat, 150_000), random.Random(repeat)
    write_tape(tape, tmp_path / "tape.jsonl")
    settings = own_place.settings.replaced(source="replay", tape=tmp_path / "tape.jsonl", speed="max")
    with stage(settings, "produce") as process:
        enough = dice.randint(1, 50_000)
        assert_eventually(lambda: count_messages(settings), lambda count: count >= enough)
        kill(own_broker)
        assert process.poll() is None, "the tape was at its end before"
        bring_back(own_broker)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "150,000 sent, 150,000 acknowledged" in " ".join(said.split()), said
    found = {part: [int(each.id[4:]) for each in ticks] for part, ticks in read_ticks(settings).items()}
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(150_000))
    assert all(numbers == sorted(numbers) for numbers in found.values())


@pytest.mark.repeats("producer: SIGTERM while the broker is away", short=0, full=5)
def test_a_feed_told_to_stop_while_the_broker_is_away_ends_and_says_what_was_not_delivered(
    own_broker: Settings, own_place: Place, repeat: int
) -> None:
    settings = own_place.settings.replaced(source="simulated", simulated_rate=2_000, simulated_seed=repeat)
    with stage(settings, "produce") as process:
        assert_eventually(lambda: count_messages(settings), lambda count: count > 500)
        kill(own_broker)
        threading.Event().wait(1)  # so that something is accepted that cannot be delivered
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        said, _ = process.communicate(timeout=40)
        took = time.monotonic() - began
    bring_back(own_broker)
    assert process.returncode == 1 and "not delivered" in said, said
    assert took < 25, "it takes ten seconds, and what a try that is under way takes"
