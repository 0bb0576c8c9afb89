"""Messages into ticks, and ticks into bars: DataFrame -> DataFrame, for a batch and for a micro-batch alike.

The grammar is that of records.py, said once more in Spark's words; tests/spark holds the two together. Nothing here
reads, writes, or keeps state. Called by stream.py and by the notebooks.
"""

from __future__ import annotations

import operator
import secrets
from collections.abc import Iterable
from functools import reduce

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from pipeline_lib import records
from pipeline_lib.records import PartialBar, PartitionCount, Stamps

# Sets of options under which Spark's JSON reader does what JSON says, not what most files need.
JSON_OPTIONS = {"mode": "PERMISSIVE", "allowSingleQuotes": "false", "allowNonNumericNumbers": "false"}

# Session settings that the parse depends on: a wrong type spoils the whole message, not one field of it; and a field
# that nobody uses is still checked.
SESSION_CONFIG = {
    "spark.sql.json.enablePartialResults": "false",
    "spark.sql.json.enableExpressionOptimization": "false",
    "spark.sql.session.timeZone": "UTC",
}

_NUMBERS = ("day_open", "day_high", "day_low", "previous_close", "change", "percent_change")
_FIELDS = (
    "schema int, id string, kind string, symbol string, price double, volume double, event_time bigint, receipt_time bigint, "
    "source string, conditions variant, repeat string, " + ", ".join(f"{name} double" for name in _NUMBERS)
)

# What a bar is made of, in the order in which they stand in a message.
BAR_FIELDS = ("kind", "symbol", "price", "volume", "event_time", "receipt_time", "repeat", "previous_close")


def _plain_pattern() -> str:
    """Return what a message looks like as records.encode_tick writes it, with a group for each of BAR_FIELDS.

    No blanks, every field at most once and in its order, numbers without exponents. Such a text is one JSON object in ASCII
    without escapes, and its words and the numbers that no bar needs are good. It is the short way of a message; any other
    goes the long way, by parse_ticks, to the same verdict.
    """
    number, whole = r"(?:0|[1-9][0-9]{0,11}+)(?:\.[0-9]++)?+", r"[1-9][0-9]{11,12}+"
    assert records.MAX_VOLUME >= 1e12  # twelve digits are within the bounds of every number

    def inside(pattern: str) -> str:
        return pattern.removeprefix("^").replace(records.END, '(?=")')

    condition = '"' + inside(records.CONDITION_PATTERN) + '"'
    values = {
        "schema": str(records.SCHEMA_VERSION),
        "id": f'"{inside(records.ID_PATTERN)}"',
        "kind": f'"({"|".join(records.KINDS)})"',
        "symbol": f'"({inside(records.SYMBOL_PATTERN)})"',
        "price": f"({number})",
        "volume": f"({number})",
        "event_time": f"({whole})",
        "receipt_time": f"({whole})",
        "source": f'"(?:{"|".join(records.SOURCES)})"',
        "conditions": rf"\[(?:{condition}(?:,{condition}){{0,{records.MAX_CONDITIONS - 1}}})?\]",
        "repeat": f'"({"|".join(records.REPEATS)})"',
        **{name: f"(-?{number})" if name in BAR_FIELDS else f"-?{number}" for name in _NUMBERS},
    }
    optional = {"volume", "conditions", "repeat", *_NUMBERS}
    fields = [f'{"" if name == "schema" else ","}"{name}":{pattern}' for name, pattern in values.items()]
    return (
        r"^\{"
        + "".join(f"(?:{field})?+" if name in optional else field for name, field in zip(values, fields, strict=True))
        + r"\}"
        + records.END
    )


PLAIN_PATTERN = _plain_pattern()

# Made anew in every process, so that no message can hold it. See _parse_pair.
_END = "end_" + secrets.token_hex(8)
_STRUCT = "struct<" + ", ".join(f"`{name}`: {kind}" for name, kind in (field.split() for field in _FIELDS.split(", "))) + f", {_END}: int>"

# Bits of a 64-bit number for the offset, below the milliseconds since the window's start (27 bits: MAX_WINDOW_MS).
_OFFSET_BITS = 36

# How much of a bad message's value and key is kept.
KEPT_BYTES = 4096


def _parse_pair(value: Column) -> Column:
    """Return the message's struct of fields and our end mark as an array of two, anything else if its text is not one JSON object.

    Spark stops reading after the first JSON value, and would take `{…}garbage` for good. So the text is read as the first
    of two elements of an array whose second one is ours: only if it is a single JSON value are there two, the last with
    the end mark, which no message can know.
    """
    text = F.concat(F.lit("["), value.cast("string"), F.lit(f',{{"{_END}":1}}]'))
    return F.from_json(text, f"array<{_STRUCT}>", JSON_OPTIONS)


def _is_good(tick: Column) -> Column:
    """Return whether what a bar is made of keeps the contract: the rules of records.decode_tick on it, one by one."""
    price, volume = tick["price"], tick["volume"]
    return _all(
        (
            price.between(records.MIN_PRICE, records.MAX_PRICE),
            F.when(tick["kind"] == "trade", (volume == 0) | volume.between(records.MIN_VOLUME, records.MAX_VOLUME)).otherwise(
                volume.isNull()
            ),
            tick["event_time"].between(records.MIN_TIME, records.MAX_TIME),
            tick["receipt_time"].between(records.MIN_TIME, records.MAX_TIME),
            F.col("key") == tick["symbol"].cast("binary"),
            tick["event_time"] <= F.unix_millis("timestamp") + records.FUTURE_TOLERANCE_MS,
        )
    )


def _is_rest_good(tick: Column) -> Column:
    """Return whether the rest of a parsed message keeps the contract: its words, the other numbers, no field there twice."""
    names = F.col("names")
    return _all(
        (
            tick["schema"] == records.SCHEMA_VERSION,
            tick["id"].rlike(records.ID_PATTERN),
            tick["symbol"].rlike(records.SYMBOL_PATTERN),
            tick["kind"].isin(*records.KINDS),
            tick["source"].isin(*records.SOURCES),
            tick["repeat"].isNull() | tick["repeat"].isin(*records.REPEATS),
            *(tick[name].isNull() | tick[name].between(-records.MAX_VOLUME, records.MAX_VOLUME) for name in _NUMBERS),
            _are_conditions(tick["conditions"], F.col("conditions")),
            F.size(names) == F.size(F.array_distinct(names)),
        )
    )


def _all(rules: Iterable[Column]) -> Column:
    return reduce(operator.and_, rules)


def _are_conditions(conditions: Column, strings: Column) -> Column:
    """Return whether a variant is null or a list of short strings: as a plain array Spark would take numbers too."""
    return F.when(conditions.isNull() | F.is_variant_null(conditions), F.lit(True)).otherwise(
        F.schema_of_variant(conditions).isin("ARRAY<STRING>", "ARRAY<VOID>")
        & (F.size(strings) <= records.MAX_CONDITIONS)
        & F.forall(strings, lambda text: F.coalesce(text.rlike(records.CONDITION_PATTERN), F.lit(False)))
    )


def select_unseen(messages: DataFrame, next_offsets: dict[int, int]) -> DataFrame:
    """Return the messages whose offset is not before the next offset of their partition; unnamed partitions whole."""
    seen = (f"partition = {int(partition)} and offset < {int(offset)}" for partition, offset in sorted(next_offsets.items()))
    return messages.where("not (" + (" or ".join(seen) or "false") + ")")


def parse_plain(messages: DataFrame) -> DataFrame:
    """Return the messages with a column `tick`, the struct of what a bar is made of; null where only parse_ticks can tell.

    The short way: one regular expression checks the whole text and takes the fields out of it, at less than half the cost of
    reading JSON. Needs the columns of Spark's Kafka source: key, value, partition, offset, timestamp.
    """
    said = F.col("value").cast("string")
    # A plain message begins with a brace, and what the expression makes of it never does: so no text can pass as one.
    taken = F.regexp_replace(said, PLAIN_PATTERN, F.lit("\n".join(f"${number}" for number in range(1, len(BAR_FIELDS) + 1))))
    is_text = (F.length("value") <= records.MAX_MESSAGE_BYTES) & said.startswith("{")
    texts = messages.withColumn("taken", F.when(is_text, taken))
    fields = texts.withColumn("fields", F.when(~F.col("taken").startswith("{"), F.split("taken", "\n")))
    kinds = {"price": "double", "volume": "double", "event_time": "bigint", "receipt_time": "bigint", "previous_close": "double"}
    found = {name: F.get("fields", F.lit(number)) for number, name in enumerate(BAR_FIELDS)}
    tick = F.struct(*(F.when(text != "", text).cast(kinds.get(name, "string")).alias(name) for name, text in found.items()))
    return (
        fields.withColumn("tick", F.when(F.col("fields").isNotNull(), tick))
        .withColumn("tick", F.when(F.coalesce(_is_good(F.col("tick")), F.lit(False)), F.col("tick")))
        .drop("taken", "fields")
    )


def parse_ticks(messages: DataFrame) -> DataFrame:
    """Return the messages with a column `tick`: the struct of records.Tick's fields, null where the contract is broken.

    Needs the columns of Spark's Kafka source: key, value, partition, offset, timestamp.
    """
    value = F.col("value")
    said = value.cast("string")
    readable = (F.length(value) <= records.MAX_MESSAGE_BYTES) & F.is_valid_utf8(said) & ~F.contains(said, F.lit("\\"))
    pair = F.col("pair")
    is_one = (F.size(pair) == 2) & (F.get(pair, F.lit(1))[_END] == 1)
    parsed = F.col("parsed")
    # Each costly expression is a column before it is used twice: inside one expression Spark would compute it each time.
    return (
        messages.withColumn("is_readable", readable)
        .withColumn("pair", F.when(F.col("is_readable"), _parse_pair(value)))
        .withColumn("parsed", F.when(is_one, F.get(pair, F.lit(0))))
        .withColumn("names", F.when(F.col("is_readable"), F.json_object_keys(said)))
        .withColumn("conditions", F.try_variant_get(F.col("parsed.conditions"), "$", "array<string>"))
        .withColumn("tick", F.when(F.coalesce(_is_good(parsed) & _is_rest_good(parsed), F.lit(False)), parsed))
        .drop("is_readable", "pair", "parsed", "names", "conditions")
    )


def window_parts(ticks: DataFrame, window_ms: int) -> DataFrame:
    """Return one row a message: its partition, offset and timestamp, its symbol and window, and what it adds to that bar.

    A message that is no tick has a null symbol, and alone keeps its key and value.
    """
    tick = F.col("tick")
    event_time = tick["event_time"]
    since_start = event_time % window_ms
    return ticks.select(
        "partition",
        "offset",
        "timestamp",
        tick["symbol"].alias("symbol"),
        (event_time - since_start).alias("window_start"),
        (since_start * (1 << _OFFSET_BITS) + F.col("offset")).alias("order"),
        tick["price"].alias("price"),
        F.coalesce(tick["volume"], F.lit(0.0)).alias("volume"),
        F.coalesce(tick["repeat"] == "unchanged", F.lit(False)).alias("is_poll"),
        tick["receipt_time"].alias("receipt_time"),
        tick["previous_close"].alias("previous_close"),
        *(F.when(tick.isNull(), F.col(name)).alias(name) for name in ("key", "value")),
    )


def select_rest(parts: DataFrame) -> DataFrame:
    """Return the messages that are no ticks as far as window_parts was told, as they came."""
    return parts.where(F.col("symbol").isNull()).select("key", "value", "partition", "offset", "timestamp")


def window_bars(ticks: DataFrame, window_ms: int) -> DataFrame:
    """Return one row for each partition, symbol and window: what its ticks add to the bar, as merge_parts says."""
    return merge_parts(window_parts(ticks, window_ms))


def merge_parts(parts: DataFrame, sums: tuple[Column, ...] | None = None) -> DataFrame:
    """Return one row for each partition, symbol and window of window_parts, in primitive columns.

    Messages that are no ticks make one row a partition, with a null symbol. bar_of_row reads a row back. `sums` is what
    bar_sums has returned before: to say it in each micro-batch anew costs milliseconds.
    """
    return parts.groupBy("partition", "symbol", "window_start").agg(*(sums or bar_sums()))


def bar_sums() -> tuple[Column, ...]:
    """Return the columns that merge_parts aggregates.

    Open and close are the prices of the first and last tick by (event time, offset); the two are packed into one number,
    `first_order` and `last_order`, so that Spark aggregates without sorting.
    """
    news = F.when(~F.col("is_poll"), F.col("price"))
    return (
        F.min_by("price", "order").alias("open"),
        F.max("price").alias("high"),
        F.min("price").alias("low"),
        F.max_by("price", "order").alias("close"),
        F.sum("volume").alias("volume"),
        F.sum(F.col("price") * F.col("volume")).alias("notional"),
        F.count(news).alias("tick_count"),
        F.count(F.when(F.col("volume") > 0, 1)).alias("trade_count"),
        F.avg(news).alias("mean_price"),
        F.var_pop(news).alias("variance"),
        F.min("order").alias("first_order"),
        F.max("order").alias("last_order"),
        F.max("receipt_time").alias("last_receipt_time"),
        F.min("receipt_time").alias("first_receipt_time"),
        F.sum(F.col("receipt_time").cast("double")).alias("receipt_time_sum"),  # as integers, five million would overflow
        F.sum(F.unix_millis("timestamp").cast("double")).alias("broker_time_sum"),
        F.max("previous_close").alias("previous_close"),
        F.count("*").alias("messages"),
        F.min("offset").alias("first_offset"),
        F.max("offset").alias("last_offset"),
    )


def bar_of_row(row: Row, window_ms: int) -> PartialBar:
    """Return the partial bar of a row of window_bars."""
    start, partition = row["window_start"], row["partition"]
    offset_mask = (1 << _OFFSET_BITS) - 1
    return PartialBar(
        symbol=row["symbol"],
        window_start=start,
        window_end=start + window_ms,
        open=row["open"],
        high=row["high"],
        low=row["low"],
        close=row["close"],
        volume=row["volume"],
        notional=row["notional"],
        tick_count=row["tick_count"],
        trade_count=row["trade_count"],
        poll_count=row["messages"] - row["tick_count"],
        mean_price=row["mean_price"],
        square_deviation=(row["variance"] or 0.0) * row["tick_count"],
        first_event_time=start + (row["first_order"] >> _OFFSET_BITS),
        open_partition=partition,
        open_offset=row["first_order"] & offset_mask,
        last_event_time=start + (row["last_order"] >> _OFFSET_BITS),
        close_partition=partition,
        close_offset=row["last_order"] & offset_mask,
        last_receipt_time=row["last_receipt_time"],
        previous_close=row["previous_close"],
    )


def count_partitions(rows: list[Row]) -> list[PartitionCount]:
    """Return what the rows of window_bars consumed of each partition.

    The next offset is one after the highest seen, never a count: offsets may have holes.
    """
    counts: dict[int, PartitionCount] = {}
    for row in rows:
        good, dead = (0, row["messages"]) if row["symbol"] is None else (row["messages"], 0)
        new = PartitionCount(row["partition"], row["first_offset"], row["last_offset"] + 1, good, dead)
        old = counts.get(new.partition, new._replace(good=0, dead=0))
        counts[new.partition] = PartitionCount(
            new.partition,
            min(old.first_offset, new.first_offset),
            max(old.next_offset, new.next_offset),
            old.good + new.good,
            old.dead + new.dead,
        )
    return [counts[partition] for partition in sorted(counts)]


def read_stamps(rows: list[Row]) -> Stamps | None:
    """Return when the good ticks of these rows of window_bars were seen and taken; None if they have none."""
    good = [row for row in rows if row["symbol"] is not None]
    if not good:
        return None
    ticks = sum(row["messages"] for row in good)
    return Stamps(
        first_receipt_time=min(row["first_receipt_time"] for row in good),
        mean_receipt_time=sum(row["receipt_time_sum"] for row in good) / ticks,
        mean_broker_time=sum(row["broker_time_sum"] for row in good) / ticks,
    )


def select_dead(ticks: DataFrame) -> DataFrame:
    """Return the messages that broke the contract: partition, offset, timestamp (epoch ms), key, value, length, sha256.

    Key and value are cut at KEPT_BYTES; sha256 is that of the whole value, where it was cut.
    """
    value = F.col("value")
    return ticks.where(F.col("tick").isNull()).select(
        "partition",
        "offset",
        F.unix_millis("timestamp").alias("timestamp"),
        F.substring("key", 1, KEPT_BYTES).alias("key"),
        F.substring("value", 1, KEPT_BYTES).alias("value"),
        F.length(value).alias("length"),
        F.when(F.length(value) > KEPT_BYTES, F.unhex(F.sha2(value, 256))).alias("sha256"),
    )
