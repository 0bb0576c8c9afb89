"""What can go wrong with Finnhub's REST API, in whose words it is told, and whether it can be waited out.

| what comes | what it means | what is done |
|---|---|---|
| 401 | the key is wrong | stops: correct FINNHUB_API_KEY |
| 429 "Please sign up" | no key came with the call | stops: set FINNHUB_API_KEY |
| 403 | the plan does not include this | stops: take the symbol out of SYMBOLS, or change the plan |
| another 4xx, a redirect | FINNHUB_BASE_URL leads elsewhere | stops for 4xx; a redirect is not followed, and waited out |
| 429 | the limit of calls is reached | waits until the server's reset, and no longer; without one, with back-off |
| 5xx, 408 | Finnhub is in trouble | waits, with back-off |
| no answer in time | Finnhub or the network is slow | waits, with back-off |
| the name is not resolved | there is no network, or no such host | waits, with back-off |
| its certificate is refused | a proxy stands in between, or this machine's clock is off | waits, with back-off |
| cannot be reached | refused, reset, cut | waits, with back-off |
| text where JSON is due, null | something else answers, or Finnhub warms up | waits, with back-off |
| clocks differ by half a minute or more | this machine's clock is off | goes on, and says so: ages and freshness are wrong by that |

A missing key, and one that has spaces, is refused before any call. Zeros and quotes that are older than the last one are
no faults of this table, since they come as good answers: see `finnhub_quotes`.

No text of an exception of `requests` is used: it can hold the request. Of an answer's text only what is left without the key.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

import requests
from tenacity import RetryCallState, Retrying, wait_exponential_jitter

from pipeline_lib.errors import FeedError
from pipeline_lib.sources.clock import Clock

TIMEOUT_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 60.0

_wait = wait_exponential_jitter(initial=1, max=MAX_BACKOFF_SECONDS, jitter=1)


class Refusal(NamedTuple):
    """An answer that says no: its status, its text without the key, and for how long it says to wait, if it does."""

    status: int
    text: str
    wait_seconds: float | None


class Trouble(NamedTuple):
    """Why there is no answer for now, in words that follow "Finnhub", and how long to wait if the server said so."""

    text: str
    wait_seconds: float | None = None


NO_JSON = Trouble("answers with text where JSON is due")
NULL = Trouble("answers null")


def judge_refusal(refusal: Refusal, wanted: str) -> Trouble:
    """Return why there is no answer for now to what was wanted; raises FeedError, with the remedy, if there will be none."""
    said = f"{refusal.status}: {refusal.text}"
    if refusal.status >= 500 or refusal.status == 408:
        return Trouble(f"answers {said}")
    if refusal.status == 429 and "sign up" in refusal.text:
        raise FeedError(
            f"cannot read {wanted}: Finnhub refuses the call, as if it had no key ({said}); set FINNHUB_API_KEY, or SOURCE=simulated"
        )
    if refusal.status == 429:
        return Trouble(f"says that the limit of calls is reached ({said})", refusal.wait_seconds)
    if refusal.status == 401:
        raise FeedError(f"cannot read {wanted}: Finnhub refuses the key ({said}); correct FINNHUB_API_KEY, or set SOURCE=simulated")
    if refusal.status == 403:
        raise FeedError(f"cannot read {wanted}: Finnhub refuses access ({said}); take it out of SYMBOLS, or check the key's plan")
    raise FeedError(f"cannot read {wanted}: Finnhub answers {said}; check FINNHUB_BASE_URL and SYMBOLS")


def judge_error(error: requests.RequestException) -> Trouble:
    """Return what kept the call from being answered."""
    if any(isinstance(cause, socket.gaierror) for cause in _causes(error)):
        return Trouble("cannot be found: its name is not resolved; is there a network, and is FINNHUB_BASE_URL right?")
    if isinstance(error, requests.Timeout):
        return Trouble(f"does not answer within {TIMEOUT_SECONDS:g} s")
    if isinstance(error, requests.exceptions.SSLError):
        return Trouble("shows a certificate that is not accepted; is a proxy in between, and is this machine's clock right?")
    return Trouble(f"cannot be reached ({type(error).__name__})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it came from: urllib3 keeps its causes in places of its own."""
    waiting, seen = [error], set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        others = (found.__cause__, found.__context__, getattr(found, "reason", None), *found.args)
        waiting += [other for other in others if isinstance(other, BaseException)]


def clock_words(ahead_seconds: float) -> str:
    """Return what is to be said of a server's clock that is so far ahead of ours."""
    size = abs(ahead_seconds)
    shown = f"{size:.0f} s" if size < 120 else f"{size / 60:.0f} min" if size < 7_200 else f"{size / 3_600:.0f} h"
    behind = "behind" if ahead_seconds > 0 else "ahead of"
    return f"this machine's clock is {shown} {behind} Finnhub's: ages and freshness are wrong by that; set the clock"


def backoff_seconds(attempts: int) -> float:
    """Return how long to wait after so many failed attempts: 1, 2, 4, … 60 s, each with up to a second on top, by chance."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempts
    return _wait(state)


class Silence:
    """A time without answers: reports when it begins, when its cause changes and when it ends, and says how long to wait."""

    def __init__(self, report: Callable[[str], None], clock: Clock) -> None:
        self._report = report
        self._clock = clock
        self._since: float | None = None
        self._text: str | None = None
        self._attempts = 0

    def begin(self, trouble: Trouble) -> float:
        """Note one more failed attempt; return the seconds to wait before the next: with back-off, or as the server said."""
        if self._since is None:
            self._since = self._clock.monotonic()
        if trouble.text != self._text:
            self._report(f"Finnhub {trouble.text}; waiting, and trying again")
        self._text = trouble.text
        self._attempts += 1
        return trouble.wait_seconds or backoff_seconds(self._attempts)

    def end(self) -> None:
        """Note a good answer."""
        if self._since is not None:
            self._report(f"Finnhub answers again, after {self._clock.monotonic() - self._since:.0f} s")
        self._since, self._text, self._attempts = None, None, 0
