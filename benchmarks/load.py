"""Fill a topic with ticks as fast as the producer goes. Not what is measured: what a drain is to find.

The ticks are the simulated market's, written by records.encode_tick: small ones as they are, full ones made into quotes that
say all of their day. Several of these share the symbols, and so the partitions; their seeds and so their ids differ. Started
by ground.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from msgspec.structs import replace

from benchmarks.ground import Load
from benchmarks.programs import end_with_parent
from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.producer import Producer
from pipeline_lib.records import Tick, encode_key, encode_tick
from pipeline_lib.sources.simulated import SimulatedMarket


def share_of(load: Load, number: int, count: int, symbols: tuple[str, ...]) -> Iterator[Tick]:
    """Yield the ticks of one of `count` writers, in the order of their receipt."""
    ticks = load.ticks // count + (number < load.ticks % count)
    market = SimulatedMarket(symbols[number::count], seed=1 + number, rate=load.per_second / count, ticks=ticks)
    return iter(market) if load.message == "small" else as_quotes(iter(market))


def as_quotes(trades: Iterator[Tick]) -> Iterator[Tick]:
    """Yield each trade as a quote with all the fields of its day."""
    days: dict[str, tuple[float, float, float]] = {}
    for trade in trades:
        opened, high, low = days.get(trade.symbol, (trade.price,) * 3)
        days[trade.symbol] = opened, high, low = opened, max(high, trade.price), min(low, trade.price)
        before = round(opened * 0.99, 2)
        yield replace(
            trade,
            kind="quote",
            volume=None,
            conditions=None,
            source="finnhub-rest",
            day_open=opened,
            day_high=high,
            day_low=low,
            previous_close=before,
            change=round(trade.price - before, 4),
            percent_change=round(100 * (trade.price / before - 1), 4),
        )


def main() -> None:
    """Publish, and print how many ticks and bytes were."""
    end_with_parent()
    *fields, number, count = json.loads(sys.argv[1])
    settings, load, size = Settings.load(), Load(*fields), 0
    with Producer(pipeline.servers_of(settings), settings.kafka_topic) as producer:
        for tick in share_of(load, number, count, settings.symbols):
            value = encode_tick(tick)
            size += len(value)
            producer.publish_message(encode_key(tick.symbol), value)
    print(json.dumps({"ticks": producer.report.acknowledged, "bytes": size}))


if __name__ == "__main__":
    main()
