-- What readers ask. Views hold nothing: they are made anew whenever they differ from what stands here.

-- Every symbol once. A loose index scan: cost grows with the symbols, not with the bars.
create view symbols as
with recursive found as (
    (select symbol from stock_aggregates order by symbol limit 1)
    union all
    select (select a.symbol from stock_aggregates a where a.symbol > found.symbol order by a.symbol limit 1)
    from found
    where found.symbol is not null
)
select symbol from found where symbol is not null;

-- How far event time has come by now: where data have stopped, the clock goes on for them.
create view watermark_now as
select watermark + (now() - updated_at) as watermark from stream_watermark;

-- Bars of a wider window out of the stored ones; the width is a multiple of theirs, aligned to the epoch.
-- Merging is exact: extremes, sums, the earliest open and the latest close; deviations by Chan, Golub and LeVeque (1979).
create function wider_bars(width interval, wanted text default null, since timestamptz default '-infinity')
returns table (
    symbol text, window_start timestamptz, window_end timestamptz,
    open double precision, high double precision, low double precision, close double precision,
    volume double precision, notional double precision, vwap double precision,
    tick_count bigint, trade_count bigint, poll_count bigint,
    mean_price double precision, price_stddev double precision, change_pct double precision,
    first_event_time timestamptz, last_event_time timestamptz, last_receipt_time timestamptz,
    previous_close double precision, is_final boolean, revision bigint, late_tick_count bigint, updated_at timestamptz
)
language sql stable as $$
    with grouped as (
        select
            a.symbol,
            date_bin(width, a.window_start, 'epoch') as window_start,
            (array_agg(a.open order by a.first_event_time, a.open_partition, a.open_offset))[1] as open,
            max(a.high) as high,
            min(a.low) as low,
            (array_agg(a.close order by a.last_event_time desc, a.close_partition desc, a.close_offset desc))[1] as close,
            sum(a.volume) as volume,
            sum(a.notional) as notional,
            sum(a.tick_count)::bigint as tick_count,
            sum(a.trade_count)::bigint as trade_count,
            sum(a.poll_count)::bigint as poll_count,
            sum(a.mean_price * a.tick_count) / nullif(sum(a.tick_count), 0) as mean_price,
            sum(a.square_deviation) as within_bars,
            array_agg(a.mean_price) as means,
            array_agg(a.tick_count) as counts,
            min(a.first_event_time) as first_event_time,
            max(a.last_event_time) as last_event_time,
            max(a.last_receipt_time) as last_receipt_time,
            max(a.previous_close) as previous_close,
            bool_and(a.is_final) as bars_final,
            sum(a.revision)::bigint as revision,
            sum(a.late_tick_count)::bigint as late_tick_count,
            max(a.updated_at) as updated_at
        from stock_aggregates a
        where (wanted is null or a.symbol = wanted) and a.window_start >= date_bin(width, since, 'epoch')
        group by a.symbol, date_bin(width, a.window_start, 'epoch')
    )
    select
        g.symbol, g.window_start, g.window_start + width,
        g.open, g.high, g.low, g.close, g.volume, g.notional, g.notional / nullif(g.volume, 0),
        g.tick_count, g.trade_count, g.poll_count, g.mean_price,
        case when g.tick_count > 1 then
            sqrt((g.within_bars + (
                select coalesce(sum(part.n * (part.mean - g.mean_price) ^ 2), 0)
                from unnest(g.means, g.counts) as part (mean, n)
            )) / (g.tick_count - 1))
        end,
        (g.close / g.open - 1) * 100,
        g.first_event_time, g.last_event_time, g.last_receipt_time, g.previous_close,
        g.bars_final and g.window_start + width <= (select watermark from watermark_now),
        g.revision, g.late_tick_count, g.updated_at
    from grouped g
$$;

create view bars_1m as select * from wider_bars('1 minute');
create view bars_5m as select * from wider_bars('5 minutes');
create view bars_15m as select * from wider_bars('15 minutes');
create view bars_1h as select * from wider_bars('1 hour');

-- The exponential moving average. Its seed is the first price; alpha is 2 / (n + 1) for n bars.
create function ema_step(average double precision, price double precision, alpha double precision)
returns double precision language sql immutable as $$
    select case when average is null then price else alpha * price + (1 - alpha) * average end
$$;
create aggregate ema (double precision, double precision) (sfunc = ema_step, stype = double precision);

-- Moving averages of the close over the last 20 bars that exist; null until there are 20.
create view moving_averages as
select
    symbol, window_start, window_end, close,
    case when count(*) over last_20 = 20 then avg(close) over last_20 end as sma_20,
    ema(close, 2.0 / 21) over (partition by symbol order by window_start) as ema_20
from stock_aggregates
window last_20 as (partition by symbol order by window_start rows 19 preceding);

-- VWAP of the day so far, by the date in New York.
create view session_vwap as
select
    symbol, window_start, window_end,
    (window_start at time zone 'America/New_York')::date as session_date,
    sum(notional) over day_so_far / nullif(sum(volume) over day_so_far, 0) as vwap
from stock_aggregates
window day_so_far as (partition by symbol, (window_start at time zone 'America/New_York')::date order by window_start);

-- Standard deviation of the log returns of the last 30 bars, in percent a bar. Needs 3 bars to say anything.
create view volatility as
select s.symbol, count(r.log_return) as returns, stddev_samp(r.log_return) * 100 as volatility_pct
from symbols s
cross join lateral (
    select ln(close / lag(close) over (order by window_start)) as log_return
    from (
        select a.window_start, a.close from stock_aggregates a
        where a.symbol = s.symbol order by a.window_start desc limit 31
    ) recent
) r
group by s.symbol;

-- The last price of each symbol, with the day's volume and the change since the previous close: the one that a quote
-- told, else the last stored close of an earlier day; failing both, since the day's first open, and it says which.
create view latest_prices as
select
    last.symbol,
    last.close as price,
    last.close - base.price as change,
    (last.close / base.price - 1) * 100 as change_pct,
    base.kind as change_since,
    day.volume,
    opening.open as day_open,
    day.high as day_high,
    day.low as day_low,
    day.vwap,
    last.last_event_time as event_time,
    last.last_receipt_time as receipt_time,
    last.updated_at,
    now() - last.last_event_time as age
from symbols s
cross join lateral (
    select * from stock_aggregates a where a.symbol = s.symbol order by a.window_start desc limit 1
) last
cross join lateral (
    select date_trunc('day', last.window_start at time zone 'America/New_York') at time zone 'America/New_York' as began
) midnight
cross join lateral (
    select
        sum(a.volume) as volume, max(a.high) as high, min(a.low) as low,
        sum(a.notional) / nullif(sum(a.volume), 0) as vwap
    from stock_aggregates a where a.symbol = s.symbol and a.window_start >= midnight.began
) day
cross join lateral (
    select a.open from stock_aggregates a
    where a.symbol = s.symbol and a.window_start >= midnight.began order by a.window_start limit 1
) opening
left join lateral (
    select a.close from stock_aggregates a
    where a.symbol = s.symbol and a.window_start < midnight.began order by a.window_start desc limit 1
) earlier on true
cross join lateral (
    select case when last.previous_close > 0 then last.previous_close end as previous_close
) told
cross join lateral (
    select
        coalesce(told.previous_close, earlier.close, opening.open) as price,
        case
            when told.previous_close is not null or earlier.close is not null then 'previous close'
            else 'first price of the day'
        end as kind
) base;

-- How much each symbol has moved in its last 5 minutes, the largest first. One that had no bar between 5 and 10 minutes
-- before its last one has no such move: what came over night is not of the last 5 minutes.
create view top_movers as
select l.symbol, l.close as price, before.close as price_before, (l.close / before.close - 1) * 100 as change_pct, l.window_end
from symbols s
cross join lateral (
    select * from stock_aggregates a where a.symbol = s.symbol order by a.window_start desc limit 1
) l
cross join lateral (
    select a.close from stock_aggregates a
    where a.symbol = s.symbol and a.window_end <= l.window_end - interval '5 minutes'
        and a.window_end > l.window_end - interval '10 minutes'
    order by a.window_start desc limit 1
) before
order by abs(l.close / before.close - 1) desc;

-- The micro-batches of the minute up to the last one, and how many milliseconds each part of them took. Null is what is not
-- known: Spark's parts and the flush are written with the next batch. Times are of several clocks: the feed's, the broker's,
-- the stream's and PostgreSQL's; where these are machines of their own, how far their clocks are apart is in here too.
create view recent_batches as
with known as (
    select
        p.run_id, p.batch_id, p.started_at, p.committed_at, p.aggregate_ms, p.commit_ms, p.flush_ms, p.max_event_time,
        p.first_receipt_time, p.mean_receipt_time, p.max_receipt_time, p.mean_broker_time,
        p.input_rows - p.dead_letters as ticks,
        p.committed_at + coalesce(p.flush_ms, 0) * interval '1 millisecond' as visible_at,
        (p.spark_progress ->> 'timestamp')::timestamptz as triggered_at,
        p.spark_progress -> 'durationMs' as took,
        exists (select from symbol_freshness) as is_live
    from query_progress p
    where p.committed_at > (select max(committed_at) from query_progress) - interval '1 minute' and p.input_rows > p.dead_letters
)
select
    k.run_id, k.batch_id, k.committed_at, k.visible_at, k.ticks,
    -- from its receipt to the table: of the mean tick, of the one that was seen first, of the one that was seen last
    (extract(epoch from k.visible_at - k.mean_receipt_time) * 1000)::double precision as mean_delay_ms,
    (extract(epoch from k.visible_at - k.first_receipt_time) * 1000)::double precision as longest_delay_ms,
    (extract(epoch from k.visible_at - k.max_receipt_time) * 1000)::double precision as shortest_delay_ms,
    -- and part by part
    case when k.is_live then (extract(epoch from k.max_receipt_time - k.max_event_time) * 1000)::double precision end as source_ms,
    (extract(epoch from k.mean_broker_time - k.mean_receipt_time) * 1000)::double precision as producer_ms,
    (extract(epoch from k.triggered_at - k.mean_broker_time) * 1000)::double precision as wait_ms,
    (extract(epoch from k.triggered_at - k.mean_broker_time + (k.mean_receipt_time - k.first_receipt_time)) * 1000)::double precision
        as first_wait_ms, -- if the broker took the first tick as soon as the mean one
    (k.took ->> 'latestOffset')::double precision as latest_offset_ms,
    (k.took ->> 'walCommit')::double precision as wal_commit_ms,
    (k.took ->> 'queryPlanning')::double precision as query_planning_ms,
    (k.took ->> 'getBatch')::double precision as get_batch_ms,
    (extract(epoch from k.started_at - k.triggered_at) * 1000)::double precision as until_called_ms,
    k.aggregate_ms::double precision as aggregate_ms,
    (extract(epoch from k.committed_at - k.started_at) * 1000)::double precision - k.aggregate_ms - k.commit_ms as check_ms,
    k.commit_ms::double precision as merge_ms,
    k.flush_ms,
    (k.took ->> 'commitOffsets')::double precision as commit_offsets_ms
from known k;

-- Where the time goes from a tick's first sight to the table, a row a part in the order of the data: of the mean tick, and the
-- most that a batch took (of the wait in Kafka, its first tick). What is on the way adds up to the mean of tick_to_table.
create view latency_budget as
select
    part.place, part.stage, part.part, part.is_on_way,
    sum(part.mean_ms * b.ticks) / sum(b.ticks) filter (where part.mean_ms is not null) as mean_ms,
    max(part.most_ms) as most_ms
from recent_batches b
cross join lateral (
    values
    (1, 'feed', 'exchange to receipt', false, b.source_ms, b.source_ms),
    (2, 'feed', 'receipt to broker', true, b.producer_ms, b.producer_ms),
    (3, 'kafka', 'wait for the batch', true, b.wait_ms, b.first_wait_ms),
    (4, 'spark', 'latestOffset', true, b.latest_offset_ms, b.latest_offset_ms),
    (5, 'spark', 'walCommit', true, b.wal_commit_ms, b.wal_commit_ms),
    (6, 'spark', 'queryPlanning', true, b.query_planning_ms, b.query_planning_ms),
    (7, 'spark', 'getBatch', true, b.get_batch_ms, b.get_batch_ms),
    (
        8, 'spark', 'call of the sink', true,
        b.until_called_ms - b.latest_offset_ms - b.wal_commit_ms - b.query_planning_ms - b.get_batch_ms,
        b.until_called_ms - b.latest_offset_ms - b.wal_commit_ms - b.query_planning_ms - b.get_batch_ms
    ),
    (9, 'spark', 'read, parse, aggregate', true, b.aggregate_ms, b.aggregate_ms),
    (10, 'spark', 'check of the topic', true, b.check_ms, b.check_ms),
    (11, 'postgres', 'merge', true, b.merge_ms, b.merge_ms),
    (12, 'postgres', 'commit', true, b.flush_ms, b.flush_ms),
    (13, 'spark', 'commitOffsets', false, b.commit_offsets_ms, b.commit_offsets_ms)
) part (place, stage, part, is_on_way, mean_ms, most_ms)
group by part.place, part.stage, part.part, part.is_on_way
order by part.place;

-- How long the ticks of the same minute took from their first sight to the table. The mean, the shortest and the longest are
-- exact. Median and 99th percentile are not: of a batch only its first, mean and last tick are known, and the others are taken
-- to be spread evenly between the first and the last.
create view tick_to_table as
with points as (
    select
        b.ticks / 20.0 as ticks,
        b.shortest_delay_ms + (b.longest_delay_ms - b.shortest_delay_ms) * (n + 0.5) / 20 as delay_ms
    from recent_batches b
    cross join generate_series(0, 19) n
    where b.longest_delay_ms is not null
),
ranked as (
    select delay_ms, sum(ticks) over (order by delay_ms) / sum(ticks) over () as share from points
)
select
    min(b.committed_at) as since,
    max(b.committed_at) as until,
    count(*) as batches,
    coalesce(sum(b.ticks), 0)::bigint as ticks,
    sum(b.mean_delay_ms * b.ticks) / sum(b.ticks) filter (where b.mean_delay_ms is not null) as mean_ms,
    (select min(delay_ms) from ranked where share >= 0.5) as p50_ms,
    (select min(delay_ms) from ranked where share >= 0.99) as p99_ms,
    min(b.shortest_delay_ms) as shortest_ms,
    max(b.longest_delay_ms) as longest_ms
from recent_batches b;
