"""The feed's state, told every two seconds on the status topic, and once at the start to compare clocks.

It runs beside a producer, in a thread of its own, and sees to it that what was accepted is delivered while no tick comes.
Called by `pipeline`.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from pipeline_lib.errors import ClockError
from pipeline_lib.records import FeedStatus

if TYPE_CHECKING:
    from pipeline_lib.producer import Producer
    from pipeline_lib.sources.feed_health import FeedHealth, Health

STATUS_SECONDS = 2.0

# Ages and freshness are reckoned over both clocks, and the stream tolerates no more. Machines that set theirs by the network are
# within a tenth of a second.
CLOCK_TOLERANCE_SECONDS = 5.0


class StatusBeat:
    """Tells the status topic, every two seconds and from a thread of its own, how the feed is.

    `health`, if the source has one, is asked each time. Entering the context raises ClockError if the broker's clock is
    another than ours; leaving it tells that the feed has stopped. `report` is told when Kafka is waited for, and when no more.
    """

    def __init__(
        self,
        producer: Producer,
        status: FeedStatus,
        topic: str,
        *,
        health: FeedHealth | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._producer, self._topic, self._health, self._report = producer, topic, health, report
        self._detail = status.detail
        self._status = status
        self._waiting_since: int | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="feed-status", daemon=True)

    def _say(self, state: str, detail: str) -> None:
        since = self._status.since if state == self._status.state else now_ms()
        self._status = msgspec.structs.replace(self._status, state=state, detail=detail, since=since)

    def _tell(self) -> None:
        self._look_for_kafka()
        health = self._health.status() if self._health is not None else None
        if self._status.state != "stopped":
            waits = [health.waiting_for] if health is not None and health.waiting_for else []
            if self._waiting_since is not None:
                waits.append(f"waiting for Kafka since {clock_time(self._waiting_since)}")
            detail = (health.detail if health is not None else None) or self._detail
            self._say("waiting" if waits else "running", "; ".join([detail, *waits]))
        if health is not None:
            self._take_in(health)
        told = msgspec.structs.replace(self._status, at=now_ms(), acknowledged=self._producer.report.acknowledged)
        self._producer.send_status(self._topic, told)

    def _look_for_kafka(self) -> None:
        before, self._waiting_since = self._waiting_since, self._producer.tend()
        if self._waiting_since is not None and before is None:
            self._report(
                f"waiting for Kafka since {clock_time(self._waiting_since)}: nothing is acknowledged; ticks are kept, and delivered later"
            )
        if self._waiting_since is None and before is not None:
            self._report(f"Kafka takes messages again, after {(now_ms() - before) / 1_000:.0f} s; {self._producer.report}")

    def _take_in(self, health: Health) -> None:
        """Let the next status tell of symbols, gaps and marks."""
        gaps = health.gaps
        if self._status.state == "stopped":
            # Nothing is missed by a feed that does not run any more: what lasted has ended with it.
            gaps = tuple(msgspec.structs.replace(gap, ended_at=gap.ended_at or max(gap.started_at, now_ms())) for gap in gaps)
        self._status = msgspec.structs.replace(self._status, symbols=health.symbols, gaps=gaps, marks=health.marks)

    def _beat(self) -> None:
        self._tell()
        while not self._stopping.wait(STATUS_SECONDS):
            self._tell()

    def __enter__(self) -> StatusBeat:
        asked_at = now_ms()
        taken = self._producer.publish_status(self._topic, msgspec.structs.replace(self._status, at=asked_at))
        try:
            check_clocks(asked_at, now_ms(), taken.timestamp)
        except ClockError as error:
            self._status = msgspec.structs.replace(self._status, state="stopped", detail=str(error), at=now_ms())
            self._producer.publish_status(self._topic, self._status)
            raise
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._say("stopped", self._detail)
        self._tell()


def check_clocks(asked_at: int, answered_at: int, broker_at: int) -> None:
    """Raise ClockError if the broker's clock cannot have been within five seconds of ours between question and answer."""
    ahead = broker_at - answered_at if broker_at > answered_at else min(0, broker_at - asked_at)
    if abs(ahead) > CLOCK_TOLERANCE_SECONDS * 1_000:
        raise ClockError(
            f"cannot publish: this machine's clock is at {clock_time(answered_at)}, the broker's at {clock_time(broker_at)}, "
            f"{abs(ahead) / 1_000:,.0f} s {'ahead' if ahead > 0 else 'behind'}; set the one that is wrong (at most "
            f"{CLOCK_TOLERANCE_SECONDS:.0f} s are tolerated), and start anew"
        )


def clock_time(ms: int) -> str:
    return f"{dt.datetime.fromtimestamp(ms / 1_000, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def now_ms() -> int:
    """Return the time of this machine's clock in epoch milliseconds."""
    return time.time_ns() // 1_000_000
