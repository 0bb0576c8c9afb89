"""How long the tables keep what only people read: progress, dead letters, gaps of the feed.

Bars and accounts are kept for good. Works on a cursor of the store's, its only caller, inside the store's transaction.
"""

from __future__ import annotations

from typing import Any

# Progress is for looking back over a run. A row is 2 kB with Spark's own account: 100 MB, some seven hours of two batches a
# second, a month of one every minute.
PROGRESS_ROWS = 50_000
PROGRESS_DAYS = 30

# A dead letter is 4 kB at most and 300 bytes as a rule: 800 MB at worst. After a week the topic has forgotten the message too,
# and a month is enough to ask whoever sent it.
DEAD_LETTERS = 200_000
DEAD_LETTER_DAYS = 30

# One an hour for a year. A feed tells of its last 100 again and again, so it must be more than those.
FEED_GAPS = 10_000

# The limits are far away, and may be passed by what comes in a minute.
PRUNE_SECONDS = 60.0

# As much as one statement deletes in some 50 ms, so that a batch waits no longer than that.
ROWS_A_PIECE = 10_000


def prune(cursor: Any) -> bool:
    """Delete one piece of what is past its limits; return whether there may be more.

    Of dead letters it is counted in stream_offsets how many went, so kept and pruned ones add up to those that came.
    """
    cursor.execute(
        "delete from query_progress where ctid in (select ctid from query_progress where committed_at < greatest("
        "  now() - %(days)s * interval '1 day',"
        "  (select committed_at from query_progress order by committed_at desc offset %(kept)s - 1 limit 1))"
        " limit %(piece)s)",
        {"days": PROGRESS_DAYS, "kept": PROGRESS_ROWS, "piece": ROWS_A_PIECE},
    )
    is_more = cursor.rowcount == ROWS_A_PIECE
    cursor.execute(
        # How many are kept is known without counting them.
        "with over as (select coalesce(sum(dead_letter_count - pruned_letter_count), 0) - %(kept)s as many from stream_offsets),"
        " oldest as (select recorded_at, ctid as place, row_number() over (order by recorded_at) as number"
        "  from (select recorded_at, ctid from dead_letters order by recorded_at limit %(piece)s) s),"
        " gone as (delete from dead_letters where ctid in (select place from oldest, over"
        "  where number <= over.many or recorded_at < now() - %(days)s * interval '1 day') returning topic, partition),"
        " counted as (select topic, partition, count(*) as many from gone group by topic, partition),"
        " told as (update stream_offsets o set pruned_letter_count = o.pruned_letter_count + counted.many"
        "  from counted where (o.topic, o.partition) = (counted.topic, counted.partition) returning counted.many)"
        " select coalesce(sum(many), 0) from told",
        {"days": DEAD_LETTER_DAYS, "kept": DEAD_LETTERS, "piece": ROWS_A_PIECE},
    )
    is_more |= cursor.fetchone()[0] == ROWS_A_PIECE
    cursor.execute(
        "delete from feed_gaps where ended_at is not null and started_at < ("
        " select started_at from feed_gaps order by started_at desc offset %s - 1 limit 1)",
        (FEED_GAPS,),
    )
    return is_more
