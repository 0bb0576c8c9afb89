"""What the stand-in answers by REST: shapes of the real service, good answers and refusals. Source: finnhub.io/docs/api."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# What an unknown symbol gets, with status 200.
UNKNOWN = {"c": 0, "d": None, "dp": None, "h": 0, "l": 0, "o": 0, "pc": 0, "t": 0}


@dataclass(frozen=True)
class Answer:
    """What a request is answered with; a body of text goes out as it is, any other as JSON.

    A `slow` one comes only when the stand-in is told to let go, or after ten seconds, and then hangs up.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json; charset=utf-8"
    slow: bool = False
    hang_up: bool = False


NO_KEY = Answer(429, {"error": "API limit reached. Please sign up for a free account."})
WRONG_KEY = Answer(401, {"error": "Invalid API key"})
NO_ACCESS = Answer(403, {"error": "You don't have access to this resource."})
LIMIT_REACHED = Answer(429, {"error": "API limit reached. Please try again later. Remaining Limit: 0"})
BROKEN = Answer(500, {"error": "Internal server error"})
NOT_FOUND = Answer(404, "404 page not found", content_type="text/plain; charset=utf-8")
TEXT = Answer(200, "Service is warming up", content_type="text/plain; charset=utf-8")
NULL = Answer(200, None)
SLOW = Answer(slow=True)
HANG_UP = Answer(hang_up=True)


def quote(price: float, seconds: int = 1_767_623_400) -> dict[str, Any]:
    """Return a quote of this price and time, as Finnhub writes it."""
    return {"c": price, "d": 1.5, "dp": 0.75, "h": price + 1, "l": price - 1, "o": price - 0.5, "pc": price - 1.5, "t": seconds}


def traded_quote(before: dict[str, Any] | None, price: float, seconds: int) -> dict[str, Any]:
    """Return the quote after a trade: the day begins with the first one, at the previous close."""
    if not before or not before["c"]:
        return {"c": price, "d": 0.0, "dp": 0.0, "h": price, "l": price, "o": price, "pc": price, "t": seconds}
    change = round(price - before["pc"], 4)
    return {
        **before,
        "c": price,
        "d": change,
        "dp": round(100 * change / before["pc"], 4),
        "h": max(before["h"], price),
        "l": min(before["l"], price),
        "t": max(before["t"], seconds),
    }


def market_status(now_ms: int, is_open: bool) -> dict[str, Any]:
    """Return what /stock/market-status says."""
    session = "regular" if is_open else None
    return {"exchange": "US", "timezone": "America/New_York", "session": session, "holiday": None, "isOpen": is_open, "t": now_ms // 1_000}


def search_result(text: str, symbols: list[str]) -> dict[str, Any]:
    """Return what /search finds: the symbols that contain the text."""
    found = [symbol for symbol in symbols if text.upper() in symbol.upper()]
    rows = [{"description": symbol, "displaySymbol": symbol, "symbol": symbol, "type": "Common Stock"} for symbol in found]
    return {"count": len(rows), "result": rows}
