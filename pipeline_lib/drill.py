"""A pipeline of its own, there to be broken: feed, Kafka, Spark and PostgreSQL, which can be killed and come back.

Its services lie in `break-it` below PIPELINE_HOME, so nobody else's are hit. What has an address in the settings is used,
and never killed. `look` says how all is at this moment without waiting for anybody. Called by notebook 06 and its tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipeline_lib import topics
from pipeline_lib.config import Settings
from pipeline_lib.errors import MessageError, PipelineError, ServiceError, SettingsError, TopicError, UnavailableError
from pipeline_lib.own_services import OwnServices
from pipeline_lib.pipeline import Place, log_folder, open_store, servers_of, verify
from pipeline_lib.records import decode_status, from_ms, status_topic
from pipeline_lib.services import find_died
from pipeline_lib.supervise import Supervisor
from pipeline_lib.verify import VerifyReport

log = logging.getLogger(__name__)

STAGES = {"feed": "The feed", "kafka": "Kafka", "spark": "Spark", "postgres": "PostgreSQL"}
PROCESSES = {"feed": "feed", "spark": "stream"}  # by the supervisor's name
GIVEN = {"kafka": "KAFKA_BOOTSTRAP_SERVERS", "postgres": "DATABASE_URL"}

KEEP_SECONDS = 0.25
PROBE_SECONDS = 0.5
# Feed and stream say every two seconds that they live; this is two words that did not come.
SILENCE = dt.timedelta(seconds=5)


class Counts(NamedTuple):
    """Ticks that Kafka has acknowledged to the feed, messages in the topic, messages in the bars' account, bars."""

    accepted: int = 0
    in_topic: int = 0
    consumed: int = 0
    bars: int = 0


class Drill:
    """The pipeline, from the moment it is made until `close`. ``stages`` may be killed; the others are left alone."""

    def __init__(self, settings: Settings, stages: Sequence[str] = tuple(STAGES)) -> None:
        if unknown := sorted(set(stages) - set(STAGES)):
            raise SettingsError(f"cannot start the drill: there is no stage {', '.join(unknown)}; choose from {', '.join(STAGES)}")
        self.counts, self.fault = Counts(), ""
        self._chosen = set(stages)
        self._given = {"kafka": settings.kafka_bootstrap_servers is not None, "postgres": settings.database_url is not None}
        self._ending, self._lock = threading.Event(), threading.Lock()
        self._states: dict[str, tuple[str, dt.datetime]] = {}
        self._born: dict[str, dt.datetime] = {}
        self._seen: dict[str, dt.datetime] = {}
        self._details: dict[str, str] = {}
        self._came_back: dict[str, int] = {}
        self._tail: topics.Tail | None = None
        self._accepted = (0, 0)  # by feeds that were killed, by the one that runs
        with contextlib.ExitStack() as started:
            own = OwnServices(settings, "break-it")
            started.callback(own.close)
            self._own = own.settings
            self._supervisor = Supervisor(self._own)
            place = Place(self._own, "notebook-06")
            if any(self._given.values()):
                started.callback(place.close)  # what is all our own goes with its folder
            self.settings = place.settings
            self.store, self._probing = open_store(self.settings), open_store(self.settings)
            started.callback(self.store.close)
            started.callback(self._supervisor.stop_stages)
            self._supervisor.start_stages(self.settings)
            self._begin_threads(started)
            # Whatever fails or is interrupted before this line stops what was started.
            self._started = started.pop_all()

    def __repr__(self) -> str:
        return "Drill()"

    def _begin_threads(self, started: contextlib.ExitStack) -> None:
        # The Kafka library complains of every connection that a killed broker leaves: not into somebody's cell.
        quiet, kafka_log = logging.FileHandler(log_folder(self.settings) / "drill.log"), logging.getLogger("kafka")
        kafka_log.addHandler(quiet)
        started.callback(quiet.close)
        started.callback(kafka_log.removeHandler, quiet)
        keep = (self._supervisor.keep_alive, KEEP_SECONDS)
        for work, seconds in (keep, (self._probe_kafka, PROBE_SECONDS), (self._probe_postgres, PROBE_SECONDS), (self.look, KEEP_SECONDS)):
            thread = threading.Thread(target=self._repeat, args=(work, seconds), name=f"drill {work.__name__}", daemon=True)
            thread.start()
            started.callback(thread.join)
        started.callback(self._ending.set)

    # breaking

    def spared(self, stage: str) -> str:
        """Return why this stage is not killed here; nothing if it is."""
        if self._given.get(stage):
            return f"its address is given ({GIVEN[stage]}), so it is not this notebook's to kill"
        return "" if stage in self._chosen else "it was not named among the stages to kill"

    def kill(self, stage: str) -> None:
        """Kill a stage as `kill -9` does. Raises ServiceError if it is spared, or does not run."""
        if why := self.spared(stage):
            raise ServiceError(f"cannot kill {STAGES[stage]}: {why}")
        self._supervisor.kill(PROCESSES.get(stage, stage))
        self.look()

    async def ride_out(self, stage: str, more: int, seconds: float = 120) -> str:
        """Kill the stage, wait until it is back and `more` messages have been consumed, and return what happened.

        Raises PipelineError that says how all is, if that takes longer than so many seconds.
        """
        if why := self.spared(stage):
            return f"{STAGES[stage]} was left alone: {why}"
        returns, consumed = self._returns(stage), self.counts.consumed
        self.kill(stage)
        await self.until(
            lambda: self._returns(stage) > returns and self._states[stage][0] == "running" and self.counts.consumed >= consumed + more,
            seconds,
        )
        return f"{STAGES[stage]} was killed, and came back"

    async def flow(self, more: int, seconds: float = 120) -> None:
        """Wait until every stage runs and `more` messages have been consumed."""
        wanted = self.counts.consumed + more
        await self.until(lambda: self.counts.consumed >= wanted and {state for state, _ in self._states.values()} == {"running"}, seconds)

    async def drain(self, seconds: float = 120) -> int:
        """Stop the feed, and return how many messages are not consumed when all have been: none."""
        await asyncio.to_thread(self._supervisor.stop_stage, "feed")
        wanted = await asyncio.to_thread(self._in_topic)
        await self.until(lambda: self.counts.consumed >= wanted, seconds)
        return wanted - self.counts.consumed

    async def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until the condition is true. Raises PipelineError if something has ended for good, or it takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.fault:
                raise PipelineError(self.fault)
            if time.monotonic() > deadline:
                states = ", ".join(f"{stage} {state}" for stage, (state, _) in self._states.items())
                consumed = f"{self.counts.consumed:,} messages consumed"
                raise PipelineError(f"cannot wait for longer than {seconds:g} s: {states}, {consumed}; give it longer, or see the logs")
            await asyncio.sleep(0.1)

    def verify(self) -> VerifyReport:
        """Return what the comparison of the table with the topic finds now."""
        return verify(self.settings)

    def close(self) -> None:
        """Stop everything, and remove what was the drill's own; what is closed stays so."""
        self._started.close()

    # looking

    def look(self) -> dict[str, Any]:
        """Return how all is: a row a stage (times in epoch milliseconds), the counts, and what has ended for good, if anything has."""
        now = dt.datetime.now(dt.UTC)
        died = set(find_died(self._own))
        with self._lock:
            rows = [self._row(stage, self._is_alive(stage, died), now) for stage in STAGES]
        return {"stages": rows, "counts": self.counts._asdict(), "fault": self.fault}

    def _is_alive(self, stage: str, died: set[str]) -> bool | None:
        """Return whether its process lives; None if it was stopped."""
        if stage not in PROCESSES:
            return stage not in died
        process = self._supervisor.stages.get(PROCESSES[stage])
        return None if process is None else process.is_alive

    def _row(self, stage: str, alive: bool | None, now: dt.datetime) -> dict[str, Any]:
        state, detail = self._state(stage, alive, now)
        if stage not in self._states or self._states[stage][0] != state:
            self._states[stage] = (state, now)
        seen = self._seen.get(stage)
        return {
            "stage": stage,
            "state": state,
            "since": _ms(self._states[stage][1]),
            "seen": None if seen is None else _ms(seen),
            "detail": detail,
            "returns": self._returns(stage),
            "spared": self.spared(stage),
        }

    def _state(self, stage: str, alive: bool | None, now: dt.datetime) -> tuple[str, str]:
        if alive is None:
            return "stopped", "was stopped, and stays so"
        if not alive:
            self._born.pop(stage, None)
            return "down", "is dead, and is being started again"
        born, seen = self._born.setdefault(stage, now), self._seen.get(stage)
        if seen is None or seen < born:
            return "waiting", "was started, no sign of life yet"
        if now - seen > SILENCE:
            return "waiting", "runs, and says nothing; " + self._details.get(stage, "")
        return "running", self._details.get(stage, "")

    def _returns(self, stage: str) -> int:
        if stage in PROCESSES:
            if process := self._supervisor.stages.get(PROCESSES[stage]):
                self._came_back[stage] = process.starts - 1
            return self._came_back.get(stage, 0)
        return self._supervisor.returns[stage]

    # the threads

    def _repeat(self, work: Callable[[], Any], seconds: float) -> None:
        while not self._ending.wait(seconds):
            try:
                work()
            except (UnavailableError, TopicError):
                continue  # whoever was asked is down, which is what this is about; the rows say so
            except PipelineError as error:
                self.fault = str(error)
            except Exception as error:
                log.exception("the drill cannot go on")
                self.fault = f"cannot go on: {type(error).__name__}: {error}"
        if work == self._probe_kafka and self._tail is not None:
            self._tail.close()
        if work == self._probe_postgres:
            self._probing.close()

    def _probe_kafka(self) -> None:
        if "kafka" in find_died(self._own):
            if self._tail is not None:
                self._tail.close()
                self._tail = None
            return
        in_topic = self._in_topic()
        self._note("kafka", f"{max(0, in_topic - self.counts.consumed):,} messages not consumed yet", in_topic=in_topic)
        if self._tail is None:
            self._tail = topics.Tail(servers_of(self.settings), status_topic(self.settings.kafka_topic))
        for message in self._tail.poll(100):
            with contextlib.suppress(MessageError):  # an unreadable status leaves the last one, which grows old
                status = decode_status(message.value)
                killed, running = self._accepted
                self._accepted = (killed + (running if status.acknowledged < running else 0), status.acknowledged)
                self._note("feed", status.detail, from_ms(status.at), accepted=sum(self._accepted))

    def _in_topic(self) -> int:
        ranges = topics.read_offsets(servers_of(self.settings), self.settings.kafka_topic)
        return sum(found.latest - found.earliest for found in ranges.values())

    def _probe_postgres(self) -> None:
        if "postgres" in find_died(self._own):
            return
        consumed = int(self._probing.load_accounts()[["good_count", "dead_letter_count"]].to_numpy().sum())
        bars = int(self._probing.query("select count(*) from stock_aggregates").iloc[0, 0])
        self._note("postgres", f"{bars:,} bars", consumed=consumed, bars=bars)
        committed = self._probing.load_progress(1)["committed_at"].max()
        born = self._born.get("spark")
        # It says that it runs before it has done anything; here that counts from its first commit on.
        for row in self._probing.load_stages().to_dict("records") if born is not None and committed >= born else ():
            if row["stage"] == "spark" and row["state"] == "running":
                self._note("spark", row["detail"], row["beat_at"].to_pydatetime())

    def _note(self, stage: str, detail: str, seen: dt.datetime | None = None, **counts: int) -> None:
        with self._lock:
            self._seen[stage], self._details[stage] = seen or dt.datetime.now(dt.UTC), detail
            self.counts = self.counts._replace(**counts)


def _ms(moment: dt.datetime) -> int:
    return round(moment.timestamp() * 1000)
