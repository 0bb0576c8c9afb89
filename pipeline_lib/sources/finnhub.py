"""Finnhub as one feed: trades by WebSocket where there are any, quotes by REST for all other symbols.

Which symbol has trades is not in any plan's text, so it is seen: a symbol is asked for by REST until the socket that is open
has brought a trade of it, and again from the moment when that socket is lost. So a price comes from one of the two at a
time; only at the change may a quote tell once more what a trade has told.

Each of the two runs in a thread of its own; this puts what they yield into one row. What they do with refusals and silence
is theirs: see `finnhub_trades` and `finnhub_quotes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import Empty, Full, Queue
from threading import Event, Thread

from pipeline_lib.config import Settings
from pipeline_lib.records import Tick
from pipeline_lib.sources.clock import Clock
from pipeline_lib.sources.feed_health import FeedHealth
from pipeline_lib.sources.finnhub_quotes import FinnhubQuotes
from pipeline_lib.sources.finnhub_trades import PART, FinnhubTrades, NoTradesError
from pipeline_lib.sources.rate_limit import RateLimit

# Batches that wait for Kafka: if it is away for longer, sockets and polls stand still, and Finnhub's buffers fill instead of ours.
MAX_BATCHES = 2_000
LOOK_SECONDS = 0.2
# At a start, symbols change from quotes to trades one by one: what is told waits until that has settled.
SETTLED_SECONDS = 3.0


def open_finnhub(settings: Settings, limit: RateLimit, *, ticks: int | None, report: Callable[[str], None]) -> FinnhubFeed:
    """Return the feed of the settings, whose key is set: trades for as many symbols as a socket may have, the rest by quotes."""
    key = settings.finnhub_api_key
    assert key is not None
    health = FeedHealth(settings.symbols, report=report)
    quotes = FinnhubQuotes(key, settings.symbols, base_url=settings.finnhub_base_url, limit=limit, report=report, health=health)
    trades = None
    if symbols := settings.symbols[: settings.finnhub_socket_symbols]:
        trades = FinnhubTrades(
            key,
            symbols,
            url=settings.finnhub_websocket_url,
            health=health,
            drop_repeats=settings.drop_suspected_repeats,
            report=report,
        )
    return FinnhubFeed(quotes, trades, health=health, ticks=ticks, report=report)


class FinnhubFeed:
    """Ticks of these symbols, `ticks` of them or until closed; `trades` is None where quotes are all that is wanted.

    Iterating raises FeedError if Finnhub refuses for good. Closing ends it soon; what has been received comes still.
    """

    reason = "asked for"

    def __init__(
        self,
        quotes: FinnhubQuotes,
        trades: FinnhubTrades | None,
        *,
        health: FeedHealth,
        ticks: int | None = None,
        report: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self.health: FeedHealth | None = health
        self.finite, self.total = ticks is not None, ticks
        self._quotes, self._trades, self._health = quotes, trades, health
        self._symbols = quotes.symbols
        self._report, self._clock = report, clock or Clock()
        self._waiting: Queue[list[Tick] | BaseException | None] = Queue(MAX_BATCHES)
        self._abandoned = Event()
        self._words = self._split()
        self._changed_at: float | None = None
        self._told = ""

    @property
    def name(self) -> str:
        """What it is by now: "Finnhub: trades by WebSocket for 8 symbols; quotes by REST for 70, each every 70.0 s"."""
        return f"Finnhub: {self._words}"

    def __iter__(self) -> Iterator[Tick]:
        return islice(self._ticks(), self.total)

    def close(self) -> None:
        """End the iteration soon, from whichever thread."""
        self._quotes.close()
        if self._trades is not None:
            self._trades.close()

    def _ticks(self) -> Iterator[Tick]:
        runs = [("finnhub-quotes", self._run_quotes), *([("finnhub-trades", self._run_trades)] if self._trades else [])]
        threads = [Thread(target=run, name=name, daemon=True) for name, run in runs]
        for thread in threads:
            thread.start()
        left = len(threads)
        try:
            while left:
                self._tell_when_settled()
                try:
                    found = self._waiting.get(timeout=LOOK_SECONDS)
                except Empty:
                    continue
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    left -= 1
                else:
                    yield from found
        finally:
            self._abandoned.set()
            self.close()
            for thread in threads:
                thread.join()

    def _put(self, found: list[Tick] | BaseException | None) -> None:
        while not self._abandoned.is_set():
            try:
                self._waiting.put(found, timeout=LOOK_SECONDS)
                return
            except Full:
                continue

    def _run_quotes(self) -> None:
        self._pass_on([tick] for tick in self._quotes)

    def _run_trades(self) -> None:
        self._pass_on(self._watched_batches())

    def _pass_on(self, batches: Iterable[list[Tick]]) -> None:
        try:
            for batch in batches:
                self._put(batch)
            self._put(None)
        except BaseException as error:  # raised again where the ticks are taken
            self._put(error)

    def _watched_batches(self) -> Iterator[list[Tick]]:
        """Yield the batches of trades, and ask for the quotes of those symbols that have none."""
        trades, before = self._trades, frozenset[str]()
        assert trades is not None
        try:
            for batch in trades.batches():
                if trades.traded != before:
                    before = trades.traded
                    self._share_out(before)
                if batch:
                    yield batch
        except NoTradesError:
            self._trades = None
            self._health.part_left(PART)
            self._share_out(frozenset())

    def _share_out(self, traded: frozenset[str]) -> None:
        self._quotes.set_symbols(tuple(symbol for symbol in self._symbols if symbol not in traded))
        self._health.expect_every(0.0, traded)
        self._words, self._changed_at = self._split(), self._clock.monotonic()

    def _split(self) -> str:
        """Return which symbols come by which of the two, and why."""
        traded = len(self._trades.traded) if self._trades is not None else 0
        asked = len(self._symbols) - traded
        by_rest = f"{asked}, each every {self._quotes.refresh_seconds:.1f} s" if asked else "none"
        if self._trades is None:
            return f"quotes by REST for {by_rest}; no trades by WebSocket"
        if not traded:
            return f"quotes by REST for {by_rest}; trades by WebSocket when they come"
        beyond = len(self._symbols) - len(self._trades.symbols)
        why = f" ({beyond} are more than one socket may have)" if beyond else ""
        return f"trades by WebSocket for {traded} symbol{'' if traded == 1 else 's'}; quotes by REST for {by_rest}{why}"

    def _tell_when_settled(self) -> None:
        if self._changed_at is None or self._clock.monotonic() - self._changed_at < SETTLED_SECONDS:
            return
        self._changed_at = None
        if self._words != self._told:
            self._told = self._health.detail = self._words
            self._report(f"Finnhub: {self._words}")
