-- The tables. Times are timestamptz, prices in the symbol's currency. Everything here can be made again from the topic.

-- What this database belongs to: bound at the first start of a stream, and refused to any other topic or window.
create table pipeline_identity (
    only_row boolean primary key default true check (only_row),
    topic text not null,
    topic_id text not null,
    window_ms bigint not null,
    bound_at timestamptz not null default now()
);

-- Up to where each partition has been consumed. Advanced in the transaction that merges the bars of those messages.
-- From first_offset to next_offset each offset is a good message, a dead letter, in an accepted gap, or a hole.
create table stream_offsets (
    topic text not null,
    topic_id text not null,
    partition integer not null,
    first_offset bigint not null,
    next_offset bigint not null,
    good_count bigint not null default 0,
    dead_letter_count bigint not null default 0,
    pruned_letter_count bigint not null default 0, -- of the dead letters, those that are not kept any more
    gap_count bigint not null default 0, -- what the rows of accepted_gaps add up to
    updated_at timestamptz not null default now(),
    primary key (topic, partition),
    check (good_count + dead_letter_count + gap_count <= next_offset - first_offset),
    check (pruned_letter_count between 0 and dead_letter_count)
);

-- Messages that retention removed before they were read, where a person has chosen to go on without them.
create table accepted_gaps (
    topic text not null,
    partition integer not null,
    from_offset bigint not null,
    to_offset bigint not null, -- the first one after the gap
    accepted_at timestamptz not null default now(),
    primary key (topic, partition, from_offset),
    check (from_offset < to_offset)
);

-- How far event time has come. A bar is final when its end is not after the watermark.
create table stream_watermark (
    only_row boolean primary key default true check (only_row),
    max_event_time timestamptz not null,
    watermark timestamptz not null,
    updated_at timestamptz not null default now()
);

-- One bar: what the ticks of one symbol in one window come to.
create table stock_aggregates (
    symbol text not null,
    window_start timestamptz not null,
    window_end timestamptz not null,
    open double precision not null,
    high double precision not null,
    low double precision not null,
    close double precision not null,
    volume double precision not null,
    notional double precision not null, -- sum of price times volume
    vwap double precision generated always as (notional / nullif(volume, 0)) stored,
    tick_count bigint not null, -- what came, unchanged polls left out
    trade_count bigint not null, -- those with a volume above 0
    poll_count bigint not null, -- polls of a quote that had not changed
    mean_price double precision,
    square_deviation double precision not null, -- sum of squared deviations from mean_price
    price_stddev double precision generated always as (
        case when tick_count > 1 then sqrt(square_deviation / (tick_count - 1)) end
    ) stored,
    change_pct double precision generated always as ((close / open - 1) * 100) stored,
    -- (event time, partition, offset) of open and close: makes the merge independent of the order of arrival
    first_event_time timestamptz not null,
    open_partition integer not null,
    open_offset bigint not null,
    last_event_time timestamptz not null,
    close_partition integer not null,
    close_offset bigint not null,
    last_receipt_time timestamptz not null,
    previous_close double precision,
    is_final boolean not null default false,
    revision integer not null default 0, -- how often a final bar was amended
    late_tick_count bigint not null default 0,
    updated_at timestamptz not null default now(),
    primary key (symbol, window_start, window_end)
);

create index stock_aggregates_open on stock_aggregates (window_end) where not is_final;
create index stock_aggregates_time on stock_aggregates (window_start);

-- Messages that are not ticks: where they lie, why they were refused, their bytes up to a stated size.
create table dead_letters (
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    broker_time timestamptz not null,
    reason text not null,
    key bytea,
    value bytea,
    value_length bigint,
    value_sha256 bytea, -- of the whole value, where more bytes came than are kept
    recorded_at timestamptz not null default now(),
    primary key (topic, partition, "offset")
);

create index dead_letters_time on dead_letters (recorded_at);

-- One row a micro-batch that committed something.
create table query_progress (
    run_id text not null,
    batch_id bigint not null,
    started_at timestamptz not null,
    committed_at timestamptz not null,
    input_rows bigint not null,
    dead_letters bigint not null,
    bars bigint not null,
    late_ticks bigint not null,
    max_event_time timestamptz,
    max_receipt_time timestamptz,
    watermark timestamptz,
    aggregate_ms integer not null, -- Spark: read, parse, aggregate, collect
    commit_ms integer not null, -- PostgreSQL: merge, up to the commit itself
    spark_progress jsonb, -- Spark's own account, written with the next batch
    flush_ms double precision, -- from committed_at until PostgreSQL had committed, written with the next batch
    offsets jsonb, -- of each partition the first offset and the one after the last: {"0": [120, 245]}
    -- of its good ticks: when this pipeline first saw the earliest and the mean one, and when the broker took the mean one
    first_receipt_time timestamptz,
    mean_receipt_time timestamptz,
    mean_broker_time timestamptz,
    primary key (run_id, batch_id)
);

create index query_progress_time on query_progress (committed_at);

-- Price moves beyond a threshold: opened once, cleared once.
create table stock_alerts (
    symbol text not null,
    opened_at timestamptz not null, -- end of the window in which the move was seen
    cleared_at timestamptz,
    kind text not null,
    threshold_pct double precision not null,
    change_pct double precision not null, -- the largest move while the alert was open
    primary key (symbol, kind, opened_at)
);

create unique index stock_alerts_open on stock_alerts (symbol, kind) where cleared_at is null;

-- When the feed brought nothing though it should have. ended_at is null while that lasts.
create table feed_gaps (
    source text not null, -- the part of the feed: finnhub-rest, finnhub-ws, or feed where all of it was away
    started_at timestamptz not null,
    ended_at timestamptz,
    reason text not null,
    primary key (source, started_at)
);

-- How fresh what is known of a symbol is: LIVE, DELAYED, STALE, CLOSED, NO DATA. Of a live feed only.
create table symbol_freshness (
    symbol text primary key,
    state text not null,
    since timestamptz not null,
    event_time timestamptz,
    receipt_time timestamptz, -- of the last news
    opens_at timestamptz, -- when the next session begins, while the market is closed
    updated_at timestamptz not null -- when the feed said so
);

-- The last word of each stage.
create table stage_state (
    stage text primary key,
    state text not null,
    detail text not null,
    since timestamptz not null,
    beat_at timestamptz not null
);
