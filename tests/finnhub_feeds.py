"""What the tests of Finnhub's feed share: patience that is short, hours in which the market is open, a feed that runs beside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Self

from pydantic import SecretStr

from pipeline_lib.finnhub_stand_in import FinnhubStandIn
from pipeline_lib.records import Tick, check_tick
from pipeline_lib.sources.feed_health import FeedHealth
from pipeline_lib.sources.finnhub import FinnhubFeed
from pipeline_lib.sources.finnhub_quotes import FinnhubQuotes
from pipeline_lib.sources.finnhub_trades import FinnhubTrades, Patience
from pipeline_lib.sources.market_hours import Hours
from pipeline_lib.sources.rate_limit import RateLimit

KEY = "sentinel0key0that0nobody0may0see"
QUICK = Patience(silent=1.0, first_wait=0.1, longest_wait=0.5, held_wait=0.2, at_once=0.3, look=0.05, answer=2.0)
DAY_MS = 86_400_000


def always_open(ms: int) -> Hours:
    """Return hours in which it is always the middle of a session."""
    return Hours(True, ms - 2 * DAY_MS, ms - DAY_MS, ms - DAY_MS // 2, ms + DAY_MS // 2, ms + DAY_MS)


def always_closed(ms: int) -> Hours:
    """Return hours in which it is always between two sessions."""
    return Hours(False, ms - DAY_MS, ms - DAY_MS // 2, ms + DAY_MS // 2, ms + DAY_MS, ms + DAY_MS // 2)


class Beside:
    """Takes all that `items` yields in a thread of its own, from `with` until `close` has ended it; keeps what ended it."""

    def __init__(self, items: Iterable[Any], close: Callable[[], None]) -> None:
        self.taken: list[Any] = []
        self.error: BaseException | None = None
        self._items, self._close = items, close
        self.thread = threading.Thread(target=self._take, daemon=True)

    def _take(self) -> None:
        try:
            for item in self._items:
                self.taken.append(item)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.thread.join(10)
        assert not self.thread.is_alive()


class TradesBeside(Beside):
    """The trades that the stand-in delivers, with what was reported and the health."""

    def __init__(
        self,
        server: FinnhubStandIn,
        symbols: tuple[str, ...] = ("AAPL", "MSFT"),
        *,
        hours: Callable[[int], Hours] = always_open,
        key: str = KEY,
        url: str | None = None,
        **more: Any,
    ) -> None:
        self.reports: list[str] = []
        self.health = FeedHealth(symbols, hours=hours)
        self.trades = FinnhubTrades(
            SecretStr(key),
            symbols,
            url=url or server.websocket_url,
            health=self.health,
            report=self.reports.append,
            **{"patience": QUICK, **more},
        )
        super().__init__(self.trades.batches(), self.trades.close)

    @property
    def ticks(self) -> list[Tick]:
        """The ticks that came up to now; each keeps the contract."""
        return [check_tick(tick) for batch in list(self.taken) for tick in batch]


class FeedBeside(Beside):
    """The whole feed on the stand-in, trades for the first symbols and quotes for the rest."""

    def __init__(self, server: FinnhubStandIn, symbols: tuple[str, ...], on_socket: int, ticks: int | None = None) -> None:
        self.reports: list[str] = []
        self.health = FeedHealth(symbols, hours=always_open)
        key, report = SecretStr(KEY), self.reports.append
        limit = RateLimit(server.plan.per_minute, server.plan.per_second)
        quotes = FinnhubQuotes(key, symbols, base_url=server.rest_url, limit=limit, health=self.health, report=report)
        trades = None
        if on_socket:
            url = server.websocket_url
            trades = FinnhubTrades(key, symbols[:on_socket], url=url, health=self.health, report=report, patience=QUICK)
        self.feed = FinnhubFeed(quotes, trades, health=self.health, ticks=ticks, report=report)
        super().__init__(self.feed, self.feed.close)

    @property
    def ticks(self) -> list[Tick]:
        """The ticks that came up to now."""
        return list(self.taken)
