"""The rule by which two halves of a bar become one row: once for the database, once for rows that are not stored yet.

It touches no database; called by store.py. Extremes, sums, the earlier open, the later close; means and deviations in Chan's
parallel form (Chan, Golub and LeVeque, 1979), where a half without ticks adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline_lib.records import PartialBar

_BAR_COLUMNS = (
    "symbol, window_start, window_end, open, high, low, close, volume, notional, tick_count, trade_count, poll_count, mean_price, "
    "square_deviation, first_event_time, open_partition, open_offset, last_event_time, close_partition, close_offset, "
    "last_receipt_time, previous_close, late_tick_count"
)

# Takes rows of _BAR_COLUMNS.
MERGE = f"""
insert into stock_aggregates as bar ({_BAR_COLUMNS}) values %s
on conflict (symbol, window_start, window_end) do update set
    high = greatest(bar.high, excluded.high),
    low = least(bar.low, excluded.low),
    open = case when {{opens}} then excluded.open else bar.open end,
    first_event_time = least(bar.first_event_time, excluded.first_event_time),
    open_partition = case when {{opens}} then excluded.open_partition else bar.open_partition end,
    open_offset = case when {{opens}} then excluded.open_offset else bar.open_offset end,
    close = case when {{closes}} then excluded.close else bar.close end,
    last_event_time = greatest(bar.last_event_time, excluded.last_event_time),
    close_partition = case when {{closes}} then excluded.close_partition else bar.close_partition end,
    close_offset = case when {{closes}} then excluded.close_offset else bar.close_offset end,
    previous_close = greatest(bar.previous_close, excluded.previous_close), -- which passes over nulls
    last_receipt_time = greatest(bar.last_receipt_time, excluded.last_receipt_time),
    volume = bar.volume + excluded.volume,
    notional = bar.notional + excluded.notional,
    tick_count = bar.tick_count + excluded.tick_count,
    trade_count = bar.trade_count + excluded.trade_count,
    poll_count = bar.poll_count + excluded.poll_count,
    mean_price = case
        when excluded.tick_count = 0 then bar.mean_price
        when bar.tick_count = 0 then excluded.mean_price
        else bar.mean_price + (excluded.mean_price - bar.mean_price) * excluded.tick_count / (bar.tick_count + excluded.tick_count) end,
    square_deviation = bar.square_deviation + excluded.square_deviation + case
        when excluded.tick_count = 0 or bar.tick_count = 0 then 0
        else (excluded.mean_price - bar.mean_price) ^ 2 * bar.tick_count
             * (excluded.tick_count::double precision / (bar.tick_count + excluded.tick_count)) end,
    late_tick_count = bar.late_tick_count + excluded.late_tick_count,
    revision = bar.revision + bar.is_final::integer,
    updated_at = now()
""".format(
    opens="(excluded.first_event_time, excluded.open_partition, excluded.open_offset)"
    " < (bar.first_event_time, bar.open_partition, bar.open_offset)",
    closes="(excluded.last_event_time, excluded.close_partition, excluded.close_offset)"
    " > (bar.last_event_time, bar.close_partition, bar.close_offset)",
)


def merge_bars(bars: Iterable[PartialBar]) -> list[PartialBar]:
    """Return one bar for each symbol and window: the rule of the merge statement, for rows that are not stored yet.

    One statement cannot touch a key twice, so the parts that several partitions have of one bar meet here first.
    """
    merged: dict[tuple[str, int, int], PartialBar] = {}
    for bar in bars:
        key = bar.symbol, bar.window_start, bar.window_end
        merged[key] = _merge_pair(merged[key], bar) if key in merged else bar
    return list(merged.values())


def _merge_pair(a: PartialBar, b: PartialBar) -> PartialBar:
    opening = min(a, b, key=lambda bar: (bar.first_event_time, bar.open_partition, bar.open_offset))
    closing = max(a, b, key=lambda bar: (bar.last_event_time, bar.close_partition, bar.close_offset))
    told = [bar.previous_close for bar in (a, b) if bar.previous_close is not None]
    ticks = a.tick_count + b.tick_count
    mean, deviation = a.mean_price if a.tick_count else b.mean_price, a.square_deviation + b.square_deviation
    if a.tick_count and b.tick_count and a.mean_price is not None and b.mean_price is not None:
        delta = b.mean_price - a.mean_price
        mean = a.mean_price + delta * b.tick_count / ticks
        deviation += delta * delta * a.tick_count * (b.tick_count / ticks)
    return a._replace(
        open=opening.open,
        high=max(a.high, b.high),
        low=min(a.low, b.low),
        close=closing.close,
        volume=a.volume + b.volume,
        notional=a.notional + b.notional,
        tick_count=ticks,
        trade_count=a.trade_count + b.trade_count,
        poll_count=a.poll_count + b.poll_count,
        mean_price=mean,
        square_deviation=deviation,
        first_event_time=opening.first_event_time,
        open_partition=opening.open_partition,
        open_offset=opening.open_offset,
        last_event_time=closing.last_event_time,
        close_partition=closing.close_partition,
        close_offset=closing.close_offset,
        last_receipt_time=max(a.last_receipt_time, b.last_receipt_time),
        previous_close=max(told, default=None),
    )
