"""The tick and its JSON: the contract of the topic, and the grammar that stands nowhere else.

The types of :class:`Tick` are the grammar. :func:`decode_tick` applies them with msgspec; ``bars.parse_ticks`` builds the
same rules into Spark from the constants of this module, and a differential test holds the two together. This is also the
one place that knows Finnhub's one-letter names.

The rows that travel from the stream to the tables (:class:`PartialBar`, :class:`DeadLetter`, :class:`Batch`) are here
too, because stages share records and never import each other.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from pipeline_lib.errors import MessageError

SCHEMA_VERSION: Final = 1

# Jackson, which parses for Spark, refuses numbers of more than 1,000 digits: in a shorter message there are none.
# A full quote with conditions has about 500 bytes.
MAX_MESSAGE_BYTES = 1_000

# Spark reads a JSON number, true, false, null, an object or an array into a string without complaint. No symbol and no
# id may look like one of those, so that what is read as text was text.
#
# They end in END, since `$` lets a line feed through in Python's regular expressions, and other ends of lines in Java's.
END = r"(?![\s\S])"
SYMBOL_PATTERN = rf"^(?![0-9][0-9.eE+-]*{END})[A-Z0-9^][A-Za-z0-9.:^=_/#-]{{0,31}}{END}"
ID_PATTERN = rf"^[a-z][a-z0-9]*-[!#-\[\]-~]{{1,90}}{END}"
CONDITION_PATTERN = rf"^[ !#-\[\]-~]{{0,16}}{END}"
MAX_CONDITIONS = 16

# Far below any price or lot, and high enough that quotients and squares of what is allowed stay within a double.
MIN_PRICE = MIN_VOLUME = 1e-9
MAX_PRICE = 1e9  # a guess; Berkshire's A share is below 1e6, some crypto and currency pairs are above
MAX_VOLUME = 1e12  # a guess; more than all the shares of any company
# 2000-01-01 and 2100-01-01 in epoch milliseconds: catches seconds sent for milliseconds, and fits every timestamp type.
MIN_TIME = 946_684_800_000
MAX_TIME = 4_102_444_800_000

KINDS = ("trade", "quote")
SOURCES = ("finnhub-rest", "finnhub-ws", "replay", "simulated")
REPEATS = ("unchanged", "suspected")

# How far ahead of the broker's clock an event time may be: room for a clock that is off and for a tape that is moved to
# now and played fast. What is dated later would stand at the end of every chart for ever.
FUTURE_TOLERANCE_MS = 24 * 3_600_000

Price = Annotated[float, Meta(ge=MIN_PRICE, le=MAX_PRICE)]
Millis = Annotated[int, Meta(ge=MIN_TIME, le=MAX_TIME)]
Number = Annotated[float, Meta(ge=-MAX_VOLUME, le=MAX_VOLUME)]


class Tick(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One observation of a price, and exactly one message of the topic.

    Times are epoch milliseconds UTC. ``event_time`` is the exchange's, ``receipt_time`` is when this pipeline first saw
    the tick. ``repeat`` is set by the source: ``"unchanged"`` for a poll that brought no news, ``"suspected"`` for a
    trade that looks like one delivered before.
    """

    schema: Literal[1]
    id: Annotated[str, Meta(pattern=ID_PATTERN)]
    kind: Literal["trade", "quote"]
    symbol: Annotated[str, Meta(pattern=SYMBOL_PATTERN)]
    price: Price
    volume: Annotated[float, Meta(ge=0, le=MAX_VOLUME)] | None = None
    event_time: Millis
    receipt_time: Millis
    source: Literal["finnhub-rest", "finnhub-ws", "replay", "simulated"]
    conditions: Annotated[list[Annotated[str, Meta(pattern=CONDITION_PATTERN)]], Meta(max_length=MAX_CONDITIONS)] | None = None
    repeat: Literal["unchanged", "suspected"] | None = None
    day_open: Number | None = None
    day_high: Number | None = None
    day_low: Number | None = None
    previous_close: Number | None = None
    change: Number | None = None
    percent_change: Number | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Tick)


def encode_tick(tick: Tick) -> bytes:
    """Return the tick as the bytes of one JSON object, fields in the order of the contract, those that are null left out."""
    return _encoder.encode(tick)


def encode_key(symbol: str) -> bytes:
    """Return the Kafka key of a symbol: its UTF-8 bytes."""
    return symbol.encode()


def decode_value(value: bytes | None) -> Tick:
    """Return the tick that a message's value holds, or a line of a tape.

    Raises MessageError, with the reason that is kept with the dead letter, if the value breaks the contract.
    """
    check_size(None if value is None else len(value))
    assert value is not None
    if b"\\" in value:
        raise MessageError("not a tick: a backslash; nothing in a tick needs an escape, and readers of escapes differ")
    try:
        # Decoding to str first refuses bytes that are not UTF-8 in fields nobody reads, too.
        tick = _decoder.decode(str(value, "utf-8"))
    except UnicodeDecodeError as error:
        raise MessageError(f"not UTF-8: byte {error.start}") from None
    except msgspec.ValidationError as error:
        raise MessageError(f"not a tick: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise MessageError(f"not JSON: {error}") from None
    # What encode_tick writes has no field twice; anything else is looked at.
    if _encoder.encode(tick) != value and (repeated := _find_repeated(value)):
        raise MessageError(f"not a tick: the field {repeated!r} stands there twice")
    return _check_kind(tick)


def _find_repeated(value: bytes) -> str | None:
    """Return a name that an object's text has twice, None if there is none: readers differ on which of the two counts."""
    pairs = json.loads(value, object_pairs_hook=list)
    names = [name for name, _ in pairs]
    return next((name for name in names if names.count(name) > 1), None)


def tick_from_fields(fields: dict[str, Any]) -> Tick:
    """Return the tick that has these fields, as a row of a table gives them; raises MessageError if they break the contract."""
    try:
        return _check_kind(msgspec.convert(fields, Tick))
    except msgspec.ValidationError as error:
        raise MessageError(f"not a tick: {error}") from None


def _check_kind(tick: Tick) -> Tick:
    if tick.kind == "trade" and tick.volume is None:
        raise MessageError("not a tick: a trade has no volume")
    if tick.kind == "quote" and tick.volume is not None:
        raise MessageError("not a tick: a quote has a volume")
    if tick.volume and tick.volume < MIN_VOLUME:
        raise MessageError(f"not a tick: volume {tick.volume} is neither 0 nor at least {MIN_VOLUME}")
    return tick


def decode_tick(value: bytes | None, key: bytes | None, timestamp: int | None = None) -> Tick:
    """Return the tick that a message holds; `timestamp` is the broker's, epoch milliseconds.

    Raises MessageError, with the reason that is kept with the dead letter, if the message breaks the contract.
    """
    tick = decode_value(value)
    if timestamp is not None and tick.event_time > timestamp + FUTURE_TOLERANCE_MS:
        raise MessageError(f"from the future: event_time is {(tick.event_time - timestamp) / 3_600_000:.1f} h ahead of the broker's clock")
    if key is None:
        raise MessageError("no key: the key is the symbol")
    if key != tick.symbol.encode():
        raise MessageError("wrong key: the key is not the symbol")
    return tick


def check_size(length: int | None) -> None:
    """Raise MessageError if a value of that length, None for no value at all, cannot be a tick."""
    if length is None:
        raise MessageError("no value: a tombstone is not a tick")
    if length > MAX_MESSAGE_BYTES:
        raise MessageError(f"too large: {length} bytes, at most {MAX_MESSAGE_BYTES} are allowed")


def check_tick(tick: Tick) -> Tick:
    """Return the tick itself if it keeps the contract; raises MessageError if not.

    msgspec checks types when it decodes, not when a struct is made, so what a source makes is checked here before it is
    published.
    """
    return decode_tick(encode_tick(tick), tick.symbol.encode())


def tick_from_quote(symbol: str, quote: dict[str, Any], *, id: str, receipt_time: int, repeat: Literal["unchanged"] | None = None) -> Tick:
    """Return the tick of a Finnhub quote: c price, o h l of the day, pc previous close, d dp change, t epoch seconds.

    Raises MessageError if the quote has no price or time, as an unknown symbol's has (all zeros).
    Source: finnhub.io/docs/api/quote.
    """
    price, seconds = quote.get("c"), quote.get("t")
    if not isinstance(price, int | float) or not price > 0 or not isinstance(seconds, int | float) or not 0 < seconds < MAX_TIME:
        raise MessageError(f"no quote for {symbol}: c is {price!r}, t is {seconds!r}")
    return check_tick(
        Tick(
            schema=SCHEMA_VERSION,
            id=id,
            kind="quote",
            symbol=symbol,
            price=float(price),
            volume=None,
            event_time=int(seconds * 1000),
            receipt_time=receipt_time,
            source="finnhub-rest",
            repeat=repeat,
            day_open=quote.get("o"),
            day_high=quote.get("h"),
            day_low=quote.get("l"),
            previous_close=quote.get("pc") or None,  # Finnhub says 0 where it knows of none
            change=quote.get("d"),
            percent_change=quote.get("dp"),
        )
    )


def tick_from_trade(trade: Any, *, id: str, receipt_time: int) -> Tick:
    """Return the tick of a trade from Finnhub's socket: s symbol, p price, t epoch milliseconds, v volume, c conditions.

    Raises MessageError if it breaks the contract. Source: finnhub.io/docs/api/websocket-trades.
    """
    if not isinstance(trade, dict):
        raise MessageError(f"no trade: it is of type {type(trade).__name__}")
    conditions = trade.get("c")
    return tick_from_fields(
        {
            "schema": SCHEMA_VERSION,
            "id": id,
            "kind": "trade",
            "symbol": trade.get("s"),
            "price": trade.get("p"),
            "volume": trade.get("v"),
            "event_time": trade.get("t"),
            "receipt_time": receipt_time,
            "source": "finnhub-ws",
            "conditions": [str(condition) for condition in conditions] if isinstance(conditions, list) else None,
        }
    )


EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def from_ms(milliseconds: float) -> dt.datetime:
    """Return the UTC time of epoch milliseconds, exactly."""
    return EPOCH + dt.timedelta(milliseconds=milliseconds)


class Message(NamedTuple):
    """One message of the topic as it lies there. ``timestamp`` is the broker's clock, epoch milliseconds."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class PartialBar(NamedTuple):
    """What some ticks add to one bar: those of one partition in one micro-batch, or several such merged.

    Times are epoch milliseconds. ``square_deviation`` is the sum of squared deviations from ``mean_price``. ``tick_count``
    leaves out unchanged polls, which are in ``poll_count``. The positions of open and close, (event time, partition,
    offset), are what makes two halves mergeable in any order. ``previous_close`` is the highest that a quote told: within a
    window it changes at most once, and the highest is the same in whatever order the halves meet.
    """

    symbol: str
    window_start: int
    window_end: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    notional: float
    tick_count: int
    trade_count: int
    poll_count: int
    mean_price: float | None
    square_deviation: float
    first_event_time: int
    open_partition: int
    open_offset: int
    last_event_time: int
    close_partition: int
    close_offset: int
    last_receipt_time: int
    previous_close: float | None


class DeadLetter(NamedTuple):
    """A message that is not a tick: where it lies, why it was refused, and its bytes up to a stated size."""

    partition: int
    offset: int
    timestamp: int
    reason: str
    key: bytes | None
    value: bytes | None
    value_length: int | None
    value_sha256: bytes | None


class PartitionCount(NamedTuple):
    """What one micro-batch consumed of one partition: ``good + dead`` messages, none at or after ``next_offset``."""

    partition: int
    first_offset: int
    next_offset: int
    good: int
    dead: int


class Stamps(NamedTuple):
    """When the good ticks of a micro-batch were first seen, the earliest and the mean, and the mean of when the broker took them.

    Epoch milliseconds.
    """

    first_receipt_time: float
    mean_receipt_time: float
    mean_broker_time: float


class Commit(NamedTuple):
    """A micro-batch that is in the tables: when, by PostgreSQL's clock, and the receipt times of its ticks.

    Epoch milliseconds; receipt times are None where it had no good tick.
    """

    run_id: str
    batch_id: int
    committed_at: float
    ticks: int
    first_receipt_time: float | None
    last_receipt_time: float | None


class OffsetGap(NamedTuple):
    """Offsets of a partition, up to and not including ``to_offset``, that retention removed before they were read."""

    partition: int
    from_offset: int
    to_offset: int


class Batch(NamedTuple):
    """All that one micro-batch commits, in one transaction.

    ``filtered_by`` are the next offsets whose predecessors were left out before the aggregation. ``dead_letters`` is read
    once, while the transaction is open. ``previous_progress`` is Spark's own progress, as JSON, of the batch before. ``stamps``
    is None where it has no good tick.
    """

    run_id: str
    batch_id: int
    started_at: dt.datetime
    filtered_by: dict[int, int]
    bars: list[PartialBar]
    counts: list[PartitionCount]
    dead_letters: Iterable[DeadLetter]
    aggregate_ms: int
    previous_progress: str | None = None
    stamps: Stamps | None = None


FreshnessState = Literal["LIVE", "DELAYED", "STALE", "CLOSED", "NO DATA"]


class SymbolFreshness(msgspec.Struct, frozen=True, array_like=True):
    """How fresh what is known of one symbol is, and since when; a list in JSON. Times are epoch milliseconds.

    ``opens_at`` is when the next session begins, while the market is closed.
    """

    symbol: str
    state: FreshnessState
    since: int
    event_time: int | None = None
    receipt_time: int | None = None
    opens_at: int | None = None


class Gap(msgspec.Struct, frozen=True, array_like=True):
    """A time in which the feed brought nothing though it should have; a list in JSON. ``ended_at`` is None while it lasts."""

    source: str
    started_at: int
    ended_at: int | None
    reason: str


class FeedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the feed says of itself, as one message of the status topic. Times are epoch milliseconds.

    ``state`` is one of running, waiting, stopped; ``detail`` is for people: which source, why, how fast. ``symbols`` is
    None where freshness means nothing, as of a simulated market or a tape. It holds a bounded number of symbols, and the
    next message the next ones; ``gaps`` are the latest. ``marks`` counts what was marked or left out, by its name.
    """

    state: Literal["running", "waiting", "stopped"]
    source: str
    detail: str
    since: int
    at: int
    acknowledged: int = 0
    symbols: tuple[SymbolFreshness, ...] | None = None
    gaps: tuple[Gap, ...] = ()
    marks: dict[str, int] = {}


def status_topic(topic: str) -> str:
    """Return the name of the topic that carries the feed's state: "stock-market-status" for "stock-market-data"."""
    return topic.removesuffix("-data") + "-status"


def encode_status(status: FeedStatus) -> bytes:
    """Return the status as the bytes of one JSON object."""
    return _encoder.encode(status)


def decode_status(value: bytes | None) -> FeedStatus:
    """Return the status that a message holds. Raises MessageError if it holds none."""
    try:
        return msgspec.json.decode(value or b"", type=FeedStatus)
    except msgspec.DecodeError as error:
        raise MessageError(f"not a feed status: {error}") from None
