"""An hour of two processes that share a key, on a clock of their own: what reaches Finnhub never passes the limits.

The sources and their client are the real ones, and so are the stand-in's answers, its limits and its faults. Only the
connection between the two is left out, so that an hour takes seconds; the ledger is a file, as it is between processes.
"""

from __future__ import annotations

import email.utils
import json
import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from pydantic import SecretStr
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from pipeline_lib.finnhub_stand_in import FaultSchedule, FinnhubStandIn, quote
from pipeline_lib.finnhub_stand_in.faults import PlannedFault
from pipeline_lib.sources import finnhub_rest
from pipeline_lib.sources.call_ledger import FileLedger
from pipeline_lib.sources.clock import Clock
from pipeline_lib.sources.finnhub_faults import TIMEOUT_SECONDS
from pipeline_lib.sources.finnhub_quotes import FinnhubQuotes
from pipeline_lib.sources.rate_limit import RateLimit

KEY = "k" * 20
HOUR = 3_600.0
START_MS = 1_767_700_000_000
FAULTS = ("429", "500", "zeros", "stale", "slow", "hang-up", "text", "null")
SYMBOLS = ("AAPL", "MSFT", "GOOGL", "TSLA")


class SharedClock(Clock):
    """One time for several threads, of which one runs while the others wait: it goes on to whoever is due first."""

    def __init__(self) -> None:
        self.passed = 0.0
        self._turns: dict[int, tuple[float, threading.Event]] = {}
        self._expected = 0
        self._lock = threading.Lock()  # all begin at once; from then on one runs at a time

    def now_ms(self) -> int:
        return START_MS + int(self.passed * 1_000)

    def monotonic(self) -> float:
        return self.passed

    def wait(self, closed: threading.Event, seconds: float) -> bool:
        if seconds > 0 and not closed.is_set():
            self._rest(self.passed + seconds)
        return closed.is_set()

    def run(self, *works: Any) -> None:
        """Run each of these in a thread, from the same moment, until all have ended."""
        self._expected = len(works)
        threads = [threading.Thread(target=self._work, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()

    def _work(self, work: Any) -> None:
        try:
            self._rest(0.0)
            work()
        finally:
            with self._lock:
                self._expected -= 1
                self._next()

    def _rest(self, until: float) -> None:
        turn = threading.Event()
        with self._lock:
            self._turns[threading.get_ident()] = until, turn
            self._next()
        assert turn.wait(20)

    def _next(self) -> None:
        if self._turns and len(self._turns) == self._expected:
            due = min(self._turns, key=lambda thread: (self._turns[thread][0], thread))
            until, turn = self._turns.pop(due)
            self.passed = max(self.passed, until)
            turn.set()


class ClockOfOne(Clock):
    """The shared clock as one source has it, which is closed when its time has come."""

    def __init__(self, shared: SharedClock, ends: float) -> None:
        self._shared, self._ends = shared, ends
        self.now_ms, self.monotonic = shared.now_ms, shared.monotonic  # type: ignore[method-assign]

    def wait(self, closed: threading.Event, seconds: float) -> bool:
        if self._shared.passed + seconds >= self._ends:
            closed.set()
        return self._shared.wait(closed, seconds)


class Wire(BaseAdapter):
    """Carries the client's requests to the stand-in, in a few hundredths of a second, and its answers back."""

    def __init__(self, stand_in: FinnhubStandIn, clock: SharedClock, seed: int, schedule: Iterator[PlannedFault]) -> None:
        super().__init__()
        self._stand_in, self._clock, self._schedule = stand_in, clock, schedule
        self._dice = random.Random(seed)
        self._next_fault = next(schedule, None)
        self._due = self._next_fault.after_seconds if self._next_fault else 0.0
        self.arrived: list[float] = []
        self.answered: list[int] = []

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]
        self._clock.wait(threading.Event(), self._dice.uniform(0.005, 0.08))
        while self._next_fault is not None and self._due <= self._clock.passed:
            self._stand_in.faults.clear()
            self._stand_in.faults.extend([self._next_fault.name] * self._dice.randint(1, 6))
            self._next_fault = next(self._schedule)
            self._due += self._next_fault.after_seconds
        self.arrived.append(self._clock.passed)
        target = urlsplit(request.url or "")
        query = {name: values[0] for name, values in parse_qs(str(target.query)).items()}
        path = str(target.path).removeprefix("/api/v1/")
        answer = self._stand_in.answer(path, query.get("symbol"), query.get("q", ""), request.headers["X-Finnhub-Token"])
        if answer.slow:
            self._clock.wait(threading.Event(), TIMEOUT_SECONDS)
            raise requests.ReadTimeout()
        if answer.hang_up:
            raise requests.ConnectionError()
        self.answered.append(answer.status)
        response = requests.Response()
        response.status_code, response.url, response.request = answer.status, request.url or "", request
        date = email.utils.formatdate(self._clock.now_ms() / 1_000, usegmt=True)
        response.headers = CaseInsensitiveDict(
            {"Content-Type": answer.content_type, "Date": date, **self._stand_in.headers_of_limit(), **answer.headers}
        )
        response._content = (answer.body if isinstance(answer.body, str) else json.dumps(answer.body)).encode()
        return response

    def close(self) -> None:
        pass


def live_an_hour(seed: int, schedule: Iterator[PlannedFault], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Wire:
    """Return what went over the wire while two processes lived, each started again at times of chance."""
    clock = SharedClock()
    stand_in = FinnhubStandIn(KEY, {symbol: quote(100.0) for symbol in SYMBOLS}, clock=clock)
    wire = Wire(stand_in, clock, seed, schedule)
    made = finnhub_rest.HeaderKeyClient.__init__

    def make(client: Any, *arguments: Any) -> None:
        made(client, *arguments)
        client._session.mount("http://", wire)

    monkeypatch.setattr(finnhub_rest.HeaderKeyClient, "__init__", make)

    def process(number: int) -> None:
        dice = random.Random(f"{seed}-{number}")
        while clock.passed < HOUR:
            ends = min(HOUR, clock.passed + dice.uniform(30, 1_500))
            own = ClockOfOne(clock, ends)
            limit = RateLimit(clock=own, ledger=FileLedger(folder / "calls.json"))
            source = FinnhubQuotes(SecretStr(KEY), SYMBOLS, base_url="http://finnhub.test/api/v1", limit=limit, clock=own)
            for _ in source:
                pass
            clock.wait(threading.Event(), dice.uniform(0.1, 5))

    clock.run(*(lambda number=number: process(number) for number in range(2)))
    return wire


def most_in(times: list[float], seconds: float) -> int:
    """Return the largest number of calls in any window of so many seconds, wherever it begins."""
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: on some disks a file takes long to be replaced."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        yield Path(name)


@pytest.mark.parametrize("seed", range(20))
def test_no_minute_has_more_than_60_calls_and_no_second_more_than_30_whatever_fails(
    seed: int, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    wire = live_an_hour(seed, iter(FaultSchedule(seed, 40.0, FAULTS)), monkeypatch, folder)
    assert most_in(wire.arrived, 60) <= 60 and most_in(wire.arrived, 1) <= 30
    assert len(wire.arrived) > 600 and len(set(wire.answered)) > 2


def test_where_nothing_fails_95_of_100_calls_are_used_and_none_is_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    wire = live_an_hour(0, iter(()), monkeypatch, folder)
    assert most_in(wire.arrived, 60) <= 60 and set(wire.answered) == {200}
    assert len(wire.arrived) >= 0.95 * 60 * 60
