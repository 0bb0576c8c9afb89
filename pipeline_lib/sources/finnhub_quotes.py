"""Finnhub's quotes as a source: the last price of each symbol, asked for in turn, as often as the plan allows.

A quote is a snapshot, not a trade: one that brings no news is marked `repeat="unchanged"`, and what happened between two
of them is not known. What a refusal, a limit or silence means is decided here; the calls go through finnhub-python.

The key goes into a header and nowhere else. finnhub-python puts it into every URL, and with that into the text of every
connection error; so no text of such an error is used here, and of an answer's text only what is left without the key.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from itertools import count, cycle, islice
from threading import Event
from typing import Any, NamedTuple

import finnhub
import requests
from finnhub.exceptions import FinnhubAPIException, FinnhubRequestException
from pydantic import SecretStr

from pipeline_lib.errors import FeedError, MessageError
from pipeline_lib.records import Tick, tick_from_quote
from pipeline_lib.sources.clock import Clock
from pipeline_lib.sources.feed_health import FeedHealth
from pipeline_lib.sources.rate_limit import RateLimit

TIMEOUT_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 60.0

# The longest that a 429 may make us wait by its headers. The limit is one by the minute: more is a mistake.
_MAX_RESET_SECONDS = 120.0


class Refusal(NamedTuple):
    """An answer that says no: its status, its text without the key, and its headers."""

    status: int
    text: str
    headers: Any


class Trouble(NamedTuple):
    """Why there is no quote for now, in words that follow "Finnhub", and how long to wait if the server said so."""

    text: str
    wait_seconds: float | None = None


class QuoteClient(finnhub.Client):
    """finnhub-python's client with the key in a header, a bounded time-out and no redirects, which would carry the key along."""

    def __init__(self, key: SecretStr, base_url: str) -> None:
        super().__init__(api_key=None)
        self._session.params.clear()
        self._session.headers["X-Finnhub-Token"] = key.get_secret_value()
        self.API_URL = base_url.rstrip("/")
        self.DEFAULT_TIMEOUT = TIMEOUT_SECONDS

    def _request(self, method: str, path: str, **kwargs: Any) -> Any:
        return super()._request(method, path.lstrip("/"), allow_redirects=False, **kwargs)


class FinnhubQuotes:
    """Quotes of these symbols, one after the other and round again, `ticks` of them or until closed.

    Iterating raises FeedError if Finnhub refuses for good. Whatever else goes wrong is waited out. `report` is told, in
    a sentence, when something begins to go wrong and when it is right again.
    """

    reason = "asked for"

    def __init__(
        self,
        key: SecretStr,
        symbols: tuple[str, ...],
        *,
        base_url: str,
        limit: RateLimit | None = None,
        ticks: int | None = None,
        report: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
        health: FeedHealth | None = None,
    ) -> None:
        if not re.fullmatch("[!-~]+", key.get_secret_value()):
            raise FeedError("cannot read quotes: the key has spaces or signs that no key has; correct FINNHUB_API_KEY")
        self._clock = clock or Clock()
        self.health: FeedHealth | None = health or FeedHealth(symbols, clock=self._clock, report=report)
        self._limit = limit or RateLimit(clock=self._clock)
        self._pause = 60 / self._limit.per_minute
        self.name = f"Finnhub quotes, {len(symbols)} symbols, each every {self._pause * len(symbols):g} s"
        self.finite = ticks is not None
        self.total = ticks
        self._key = key
        self._symbols = symbols
        self._base_url = base_url
        self._report = report
        self._closed = Event()

    def __iter__(self) -> Iterator[Tick]:
        return islice(self._quotes(), self.total)

    def close(self) -> None:
        """End the iteration, from whichever thread: at once, or when the call that is under way has ended or timed out."""
        self._closed.set()

    def _quotes(self) -> Iterator[Tick]:
        run, numbers = uuid.uuid4().hex[:12], count(1)
        silent = Silence(self._report, self._clock)
        known: dict[str, tuple[float, int]] = {}  # price and time of each symbol's last quote
        missing: set[str] = set()
        next_call = self._clock.monotonic()
        with QuoteClient(self._key, self._base_url) as client:
            for symbol in cycle(self._symbols):
                if self._clock.wait(self._closed, next_call - self._clock.monotonic()) or not self._limit.acquire(self._closed):
                    return
                next_call = self._clock.monotonic() + self._pause
                answer = self._ask(client, symbol)
                if isinstance(answer, Trouble):
                    next_call += silent.begin(answer)
                    continue
                silent.end()
                try:
                    tick = tick_from_quote(symbol, answer, id=f"quote-{run}-{next(numbers)}", receipt_time=self._clock.now_ms())
                except MessageError as error:
                    if symbol not in missing:
                        self._report(f"{error}; asking again in turn, and if it stays so, {symbol} may not be Finnhub's name")
                        missing.add(symbol)
                    continue
                if symbol in missing:
                    self._report(f"{symbol} has a quote now")
                    missing.remove(symbol)
                seen = (tick.price, tick.event_time)
                if known.get(symbol) == seen:
                    tick = tick_from_quote(symbol, answer, id=tick.id, receipt_time=tick.receipt_time, repeat="unchanged")
                known[symbol] = seen
                if self._closed.is_set():
                    return
                yield tick

    def _ask(self, client: QuoteClient, symbol: str) -> dict[str, Any] | Trouble:
        """Return the quote, or why there is none for now; raises FeedError if there will be none."""
        try:
            answer = client.quote(symbol)
        except FinnhubAPIException as error:
            refusal = Refusal(error.status_code, self._without_key(error.message), error.response.headers)
        except requests.Timeout:
            return Trouble(f"does not answer within {TIMEOUT_SECONDS:g} s")
        except requests.RequestException as error:
            return Trouble(f"cannot be reached ({type(error).__name__})")
        except (FinnhubRequestException, TypeError):
            # finnhub-python looks for "error" in whatever JSON a refusal holds: in a number, that is a TypeError.
            return Trouble("answers with something that is no quote")
        else:
            return answer if isinstance(answer, dict) else Trouble("answers with something that is no quote")
        # Outside of the except clause: the error holds the request with its headers, and must not go along with ours.
        return self._judge(refusal, symbol)

    def _judge(self, refusal: Refusal, symbol: str) -> Trouble:
        said = f"{refusal.status}: {refusal.text}"
        if refusal.status >= 500 or refusal.status == 408:
            return Trouble(f"answers {said}")
        if refusal.status == 401 or (refusal.status == 429 and "sign up" in refusal.text):
            raise FeedError(f"cannot read quotes: Finnhub refuses the key ({said}); correct FINNHUB_API_KEY, or set SOURCE=simulated")
        if refusal.status == 429:
            return Trouble(f"says that the limit of calls is reached ({said})", self._wait_of(refusal.headers))
        if refusal.status == 403:
            raise FeedError(
                f"cannot read the quote of {symbol}: Finnhub refuses access ({said}); take it out of SYMBOLS, or check the key's plan"
            )
        raise FeedError(f"cannot read quotes: Finnhub answers {said}; check FINNHUB_BASE_URL and SYMBOLS")

    def _wait_of(self, headers: Any) -> float | None:
        """Return for how long these headers say to wait; None if they do not, or say something that cannot be."""
        reset, after = headers.get("X-Ratelimit-Reset", ""), headers.get("Retry-After", "")
        if re.fullmatch(r"\d{1,12}", reset):
            seconds = int(reset) - self._clock.now_ms() / 1_000
        elif re.fullmatch(r"\d{1,12}", after):
            seconds = float(after)
        else:
            return None
        return seconds if 0 < seconds <= _MAX_RESET_SECONDS else None

    def _without_key(self, text: Any) -> str:
        """Return the text, in one line of at most 200 characters, and without the key if the server has repeated it."""
        return " ".join(str(text).replace(self._key.get_secret_value(), "***").split())[:200]


class Silence:
    """A time without quotes: reports when it begins, when its cause changes and when it ends, and says how long to wait."""

    def __init__(self, report: Callable[[str], None], clock: Clock) -> None:
        self._report = report
        self._clock = clock
        self._since: float | None = None
        self._text: str | None = None
        self._attempts = 0

    def begin(self, trouble: Trouble) -> float:
        """Note one more failed attempt; return the seconds to wait before the next: 1, 2, 4, … or what the server said."""
        if self._since is None:
            self._since = self._clock.monotonic()
        if trouble.text != self._text:
            self._report(f"Finnhub {trouble.text}; waiting, and trying again")
        self._text = trouble.text
        self._attempts += 1
        return trouble.wait_seconds or min(2.0 ** (self._attempts - 1), MAX_BACKOFF_SECONDS)

    def end(self) -> None:
        """Note a good answer."""
        if self._since is not None:
            self._report(f"Finnhub answers again, after {self._clock.monotonic() - self._since:.0f} s")
        self._since, self._text, self._attempts = None, None, 0
