"""Who may be killed, and how long something that dies is started again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_lib import supervise
from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError, ServiceError
from pipeline_lib.services import find_died, kill_service, process
from pipeline_lib.services.process import Born, Program, State
from pipeline_lib.supervise import MAX_DEATHS, MAX_PAUSE_SECONDS, Lives


class Clock:
    """The time of the module, which passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


def die(lives: Lives, clock: Clock, *, for_ever: bool) -> float:
    """Return how long it is before another start."""
    died_at = clock.now
    while not lives.may_begin_again(for_ever=for_ever):
        clock.now += 0.25
    lives.begin()
    return clock.now - died_at


def test_what_dies_again_and_again_is_left_dead_unless_another_try_may_do(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(supervise, "time", clock)
    lives = Lives("stream")
    lives.begin()
    pauses = [die(lives, clock, for_ever=True) for _ in range(20)]  # an hour's outage is no reason to give up
    assert pauses == sorted(pauses) and pauses[0] == 0.5 and pauses[-1] == MAX_PAUSE_SECONDS
    clock.now += 120
    for _ in range(MAX_DEATHS):
        die(lives, clock, for_ever=False)
    with pytest.raises(PipelineError, match="has died 6 times in a row"):
        lives.may_begin_again()


def test_what_is_killed_on_purpose_comes_back_however_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(supervise, "time", clock)
    lives = Lives("stream")
    for _ in range(3 * MAX_DEATHS):
        lives.begin()
        lives.pardon()
        assert die(lives, clock, for_ever=False) == 0.5


GIVEN = {"kafka": {"kafka_bootstrap_servers": "127.0.0.1:9"}, "postgres": {"database_url": "postgresql://127.0.0.1:9/stocks"}}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[dict[str, Born]]:
    """A process in the place of each service of this PIPELINE_HOME."""
    born = {}
    for name in GIVEN:
        folder = tmp_path / name
        folder.mkdir()
        born[name] = process.spawn(Program([sys.executable, "-c", "import time; time.sleep(600)"], folder, folder / "log"))
        process.write_state(folder, State(born=born[name], ports={"client": 9}, version="1", data=str(folder)))
    yield born
    for each in born.values():
        process.stop(each)


@pytest.mark.parametrize("name", GIVEN)
def test_a_service_whose_address_is_given_is_never_killed(tmp_path: Path, running: dict[str, Born], name: str) -> None:
    settings = Settings.load(pipeline_home=tmp_path, **GIVEN[name])
    with pytest.raises(ServiceError, match=f"cannot kill {name}: its address is given"):
        kill_service(settings, name)
    assert process.find_process(running[name]) is not None


@pytest.mark.parametrize("name", GIVEN)
def test_a_service_of_ours_is_killed_alone_and_its_death_is_found(
    tmp_path: Path, running: dict[str, Born], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"):
        monkeypatch.delenv(given, raising=False)
    settings = Settings.load(pipeline_home=tmp_path)
    assert find_died(settings) == []
    found = process.find_process(running[name])
    assert found is not None
    kill_service(settings, name)
    found.wait(10)
    assert find_died(settings) == [name]
    with pytest.raises(ServiceError, match="it does not run"):
        kill_service(settings, name)
