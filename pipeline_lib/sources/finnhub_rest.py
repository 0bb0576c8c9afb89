"""Calls to Finnhub's REST API, each within the limit: quote, market status, search. What they mean is decided elsewhere.

The key goes into a header and nowhere else: finnhub-python would put it into every URL, and with that into the text of
every connection error. Called by `finnhub_quotes` and by `stocks doctor`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from threading import Event
from typing import Any

import finnhub
import requests
from finnhub.exceptions import FinnhubAPIException, FinnhubRequestException
from pydantic import SecretStr

from pipeline_lib.errors import FeedError
from pipeline_lib.sources import finnhub_faults
from pipeline_lib.sources.clock import Clock
from pipeline_lib.sources.finnhub_faults import NO_JSON, NULL, Refusal, Trouble, clock_words, judge_error, judge_refusal
from pipeline_lib.sources.rate_limit import RateLimit, clock_difference

# Less is no reason to worry anybody: a guess.
CLOCK_OFF_SECONDS = 30.0
LONGEST_TEXT = 200


class HeaderKeyClient(finnhub.Client):
    """finnhub-python's client with the key in a header, a bounded time-out and no redirects, which would carry the key along."""

    def __init__(self, key: SecretStr, base_url: str) -> None:
        super().__init__(api_key=None)
        self._session.params.clear()
        self._session.headers["X-Finnhub-Token"] = key.get_secret_value()
        self.API_URL = base_url.rstrip("/")
        self.DEFAULT_TIMEOUT = finnhub_faults.TIMEOUT_SECONDS

    def hear(self, hook: Callable[[requests.Response], None]) -> None:
        """Have every response shown to the hook: finnhub-python drops the headers of good ones."""
        self._session.hooks["response"].append(lambda response, *_, **__: hook(response))

    def _request(self, method: str, path: str, **kwargs: Any) -> Any:
        return super()._request(method, path.lstrip("/"), allow_redirects=False, **kwargs)


class FinnhubRest:
    """One connection to Finnhub's REST API. Use it as a context manager, from one thread.

    Every method waits for its turn in the limit, and returns None if cancelled before; then the answer, or the Trouble
    that keeps it away for now. It raises FeedError, with the remedy, if Finnhub refuses for good.
    """

    def __init__(
        self, key: SecretStr, base_url: str, *, limit: RateLimit, cancelled: Event, clock: Clock, report: Callable[[str], None]
    ) -> None:
        check_key(key)
        self._key, self._limit, self._cancelled, self._clock, self._report = key, limit, cancelled, clock, report
        self._client = HeaderKeyClient(key, base_url)
        self._client.hear(self._hear)
        self._asked_at = 0
        self._server_says: float | None = None
        self._clock_was_off = False

    def quote(self, symbol: str) -> dict[str, Any] | Trouble | None:
        """Return the quote of a symbol: c, d, dp, h, l, o, pc, t."""
        return self._ask(f"the quote of {symbol}", lambda: self._client.quote(symbol))

    def market_status(self) -> dict[str, Any] | Trouble | None:
        """Return what the exchanges of the United States say of themselves: isOpen, session, holiday …"""
        return self._ask("the market's status", lambda: self._client.market_status(exchange="US"))

    def search(self, text: str) -> dict[str, Any] | Trouble | None:
        """Return the symbols that are like the text: count, result."""
        return self._ask(f"the search of {text}", lambda: self._client.symbol_lookup(text))

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()

    def __enter__(self) -> FinnhubRest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, wanted: str, call: Callable[[], Any]) -> dict[str, Any] | Trouble | None:
        if not self._limit.acquire(self._cancelled):
            return None
        self._asked_at, self._server_says = self._clock.now_ms(), None
        try:
            answer = call()
        except FinnhubAPIException as error:
            refusal = Refusal(error.status_code, self._without_key(error.message), self._server_says)
        except requests.RequestException as error:
            # requests' own JSONDecodeError is one, too, and is no ConnectionError.
            return NO_JSON if isinstance(error, ValueError) and not isinstance(error, OSError) else judge_error(error)
        except (FinnhubRequestException, TypeError):
            # finnhub-python looks for "error" in whatever JSON a refusal holds: in a number, that is a TypeError.
            return NO_JSON
        else:
            return answer if isinstance(answer, dict) else NULL if answer is None else NO_JSON
        # Outside of the except clause: the error holds the request with its headers, and must not go along with ours.
        return judge_refusal(refusal, wanted)

    def _hear(self, response: requests.Response) -> None:
        """Take in what the headers of an answer say of the limit and of the time."""
        self._server_says = self._limit.learn(response.status_code, response.headers, self._asked_at)
        ahead = clock_difference(response.headers, self._clock.now_ms()) or 0.0
        is_off = abs(ahead) >= CLOCK_OFF_SECONDS
        if is_off and not self._clock_was_off:
            self._report(clock_words(ahead))
        self._clock_was_off = is_off

    def _without_key(self, text: Any) -> str:
        """Return the text, in one line of at most 200 characters, and without the key if the server has repeated it."""
        return " ".join(str(text).replace(self._key.get_secret_value(), "***").split())[:LONGEST_TEXT]


def check_key(key: SecretStr) -> None:
    """Raise FeedError if this cannot be a key: it would be refused by the HTTP library, in a text that shows it."""
    if not re.fullmatch("[!-~]+", key.get_secret_value()):
        raise FeedError("cannot ask Finnhub: the key has spaces or signs that no key has; correct FINNHUB_API_KEY")
