"""The faults that the stand-in can be told to have, by name, and a seeded schedule of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from pipeline_lib.errors import SettingsError
from pipeline_lib.finnhub_stand_in import answers
from pipeline_lib.finnhub_stand_in.answers import Answer

REST_FAULTS: dict[str, str] = {
    "429": "the limit of calls is said to be reached, for two seconds",
    "401": "the key is said to be wrong",
    "403": "no access",
    "500": "an error of the server",
    "zeros": "a quote of zeros",
    "stale": "a quote of the day before, with status 200",
    "slow": "no answer for ten seconds",
    "hang-up": "the connection is cut without an answer",
    "text": "text where JSON is due",
    "null": "null where a quote is due",
}
SOCKET_FAULTS: dict[str, str] = {
    "drop": "the socket is cut",
    "silent": "the socket stays open, and brings pings alone",
    "duplicate": "the last trades are sent again",
    "disorder": "the next trades go out in reverse order",
    "refused": "the next handshake is answered 429, as if another held the key",
    "held": "the next socket is closed as soon as it is open, as if another held the key",
    "error": "a message of type error",
    "nonsense": "a message that is no JSON",
}
FAULTS = {**REST_FAULTS, **SOCKET_FAULTS}

# Those that a right client gets over by itself.
PASSING = ("429", "500", "zeros", "stale", "hang-up", "text", "null", "drop", "silent", "duplicate", "disorder", "refused", "nonsense")

_ANSWERS = {
    "401": answers.WRONG_KEY,
    "403": answers.NO_ACCESS,
    "500": answers.BROKEN,
    "zeros": Answer(200, answers.UNKNOWN),
    "slow": answers.SLOW,
    "hang-up": answers.HANG_UP,
    "text": answers.TEXT,
    "null": answers.NULL,
}
_DAY_SECONDS = 86_400
_LIMIT_SECONDS = 2


def check_fault(name: str) -> str:
    """Return the name; raises SettingsError if there is no such fault."""
    if name not in FAULTS:
        raise SettingsError(f"cannot have the fault {name!r}: there is none of that name; there are {', '.join(FAULTS)}")
    return name


def faulty_answer(name: str, good: dict[str, Any], now_ms: int) -> Answer:
    """Return what is answered instead of a good quote."""
    if name == "stale":
        return Answer(200, {**good, "t": max(0, good.get("t", 0) - _DAY_SECONDS)})
    if name == "429":
        until = str(now_ms // 1_000 + _LIMIT_SECONDS)
        return replace(answers.LIMIT_REACHED, headers={"X-Ratelimit-Remaining": "0", "X-Ratelimit-Reset": until})
    return _ANSWERS[name]


class PlannedFault(NamedTuple):
    """A fault, and how long after the one before it comes."""

    after_seconds: float
    name: str


class FaultSchedule:
    """An endless row of faults, the same for the same seed: each of `names` is as likely, on average every so many seconds."""

    def __init__(self, seed: int, every_seconds: float, names: tuple[str, ...] = PASSING) -> None:
        self.seed, self.every_seconds = seed, every_seconds
        self.names = tuple(check_fault(name) for name in names)

    def __iter__(self) -> Iterator[PlannedFault]:
        dice = random.Random(self.seed)
        while True:
            yield PlannedFault(dice.expovariate(1 / self.every_seconds), dice.choice(self.names))
