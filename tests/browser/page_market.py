"""A market written straight into PostgreSQL through the store, so that the page is tried without Kafka and Spark."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time

from pipeline_lib.records import Batch, PartialBar, PartitionCount, Stamps
from pipeline_lib.store import Store

WINDOW_MS = 10_000
HISTORY_BARS = 300
PRICES = {"AAPL": 226.4, "MSFT": 417.1, "GOOGL": 171.9, "TSLA": 339.6, "AMZN": 201.5, "META": 563.1, "NVDA": 145.9, "NFLX": 883.2}
LIVE_STAGES = {
    "feed": "simulated market, 50 ticks/s; no FINNHUB_API_KEY",
    "kafka": "stock-market-data, 4 partitions, lag 0",
    "spark": "micro-batch 212, 25 rows, 310 ms",
}


class Market:
    """Commits a batch of new bars every half second, and lets the stages beat, until stopped."""

    def __init__(self, store: Store, seed: int = 7) -> None:
        self._store, self._random = store, random.Random(seed)
        self._prices = dict(PRICES)
        self._offset = 0
        self._run_id = f"page-{time.time_ns()}"
        self._done = threading.Event()
        self.silent: set[str] = set()
        self.fault: BaseException | None = None
        store.create_tables()
        store.bind("page-tests", WINDOW_MS, {})
        now = time.time_ns() // 1_000_000
        first = (now // WINDOW_MS - HISTORY_BARS) * WINDOW_MS
        self._commit(
            [bar for i in range(HISTORY_BARS) for bar in self._bars(first + i * WINDOW_MS, first + i * WINDOW_MS + WINDOW_MS - 1, lots=400)]
        )
        self._thread = threading.Thread(target=self._run, name="market")

    def __enter__(self) -> Market:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self.fault is not None:
            raise self.fault

    def beat(self) -> None:
        for stage, detail in LIVE_STAGES.items():
            if stage not in self.silent:
                self._store.beat(stage, "running", detail)

    def _run(self) -> None:
        from pipeline_lib.errors import UnavailableError

        try:
            while not self._done.wait(0.5):
                now = time.time_ns() // 1_000_000
                try:
                    self._commit(self._bars(now // WINDOW_MS * WINDOW_MS, now))
                    self.beat()
                except UnavailableError:
                    continue  # a test has stopped PostgreSQL, and will start it
        except BaseException as error:
            self.fault = error

    def _bars(self, start: int, now: int, lots: int = 20) -> list[PartialBar]:
        bars = []
        for symbol, before in self._prices.items():
            prices = [before]
            for _ in range(6):
                prices.append(round(prices[-1] * (1 + self._random.gauss(0, 0.00025)), 2))
            self._prices[symbol] = prices[-1]
            volume = float(self._random.randint(1, lots) * 25)
            self._offset += 1
            mean = sum(prices) / len(prices)
            bars.append(
                PartialBar(
                    symbol=symbol,
                    window_start=start,
                    window_end=start + WINDOW_MS,
                    open=prices[0],
                    high=max(prices),
                    low=min(prices),
                    close=prices[-1],
                    volume=volume,
                    notional=volume * mean,
                    tick_count=len(prices),
                    trade_count=len(prices),
                    poll_count=0,
                    mean_price=mean,
                    square_deviation=sum((price - mean) ** 2 for price in prices),
                    first_event_time=now,
                    open_partition=0,
                    open_offset=self._offset,
                    last_event_time=now,
                    close_partition=0,
                    close_offset=self._offset,
                    last_receipt_time=now,
                    previous_close=round(PRICES[symbol] * 0.996, 2),
                )
            )
        return bars

    def _commit(self, bars: list[PartialBar]) -> None:
        stored = self._store.load_offsets()
        first, now = stored.get(0, 0), max(bar.last_receipt_time for bar in bars)
        batch = Batch(
            run_id=self._run_id,
            batch_id=self._offset,
            started_at=dt.datetime.now(dt.UTC),
            filtered_by=stored,
            bars=bars,
            counts=[PartitionCount(0, first, first + len(bars), len(bars), 0)],
            dead_letters=[],
            aggregate_ms=1,
            stamps=Stamps(now - 300, now - 150, now - 50),
        )
        self._store.commit_batch(batch, WINDOW_MS)
