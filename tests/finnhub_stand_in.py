"""A small HTTP server that speaks Finnhub's quote protocol, with faults on demand; the real client talks to it.

What it answers is as Finnhub's own documentation and issues have it: zeros for an unknown symbol with status 200, 401 for a wrong
key, 429 with rate headers above the limit.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

UNKNOWN = {"c": 0, "d": None, "dp": None, "h": 0, "l": 0, "o": 0, "pc": 0, "t": 0}


def quote(price: float, seconds: int = 1_767_623_400) -> dict[str, Any]:
    """Return a quote of this price and time, as Finnhub writes it."""
    return {"c": price, "d": 1.5, "dp": 0.75, "h": price + 1, "l": price - 1, "o": price - 0.5, "pc": price - 1.5, "t": seconds}


@dataclass
class Answer:
    """What to answer instead of a quote. A `slow` one comes only when the test lets go of it, or after ten seconds."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    slow: bool = False
    hang_up: bool = False


@dataclass
class Request:
    """What was asked: the whole target, and the headers."""

    target: str
    headers: dict[str, str]


class FinnhubStandIn:
    """Answers on a port of the loopback, from `with` to its end. `faults` are given out first, one a request."""

    def __init__(self, key: str, quotes: dict[str, dict[str, Any]]) -> None:
        self.key = key
        self.quotes = quotes
        self.faults: deque[Answer | None] = deque()
        self.requests: list[Request] = []
        self.let_go = Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/api/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: Request) -> Answer:
        """Return what this request is answered with."""
        self.requests.append(request)
        fault = self.faults.popleft() if self.faults else None
        if fault is not None:
            return fault
        target = urlsplit(request.target)
        if request.headers.get("X-Finnhub-Token") != self.key:
            return Answer(401, {"error": "Invalid API key"})
        if target.path != "/api/v1/quote":
            return Answer(404, "not found", content_type="text/html")
        return Answer(200, self.quotes.get(parse_qs(target.query)["symbol"][0], UNKNOWN))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5

            def do_GET(self) -> None:
                answer = stand_in.answer(Request(self.path, dict(self.headers)))
                if answer.slow:
                    stand_in.let_go.wait(10)
                if answer.hang_up or answer.slow:
                    self.close_connection = True
                    return
                body = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
                self.send_response(answer.status)
                for name, value in {"Content-Type": answer.content_type, "Content-Length": str(len(body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: `requests` has it all."""

        return Handler
