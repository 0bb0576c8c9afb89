"""The contract of the topic, from Python's side."""

from __future__ import annotations

import pytest
from hypothesis import given
from messages import BAD, GOOD_ONES, NOW
from ticks import ticks

from pipeline_lib.errors import MessageError
from pipeline_lib.records import MAX_MESSAGE_BYTES, Tick, decode_tick, encode_key, encode_tick, status_topic, tick_from_quote


@given(ticks())
def test_a_tick_comes_back_as_it_went_in(tick: Tick) -> None:
    value = encode_tick(tick)
    if len(value) <= MAX_MESSAGE_BYTES:
        assert decode_tick(value, encode_key(tick.symbol)) == tick


@pytest.mark.parametrize("name", BAD)
def test_a_message_that_breaks_the_contract_is_refused_with_a_reason(name: str) -> None:
    value, key = BAD[name]
    with pytest.raises(MessageError, match=r".+"):
        decode_tick(value, b"AAPL" if key is ... else key, NOW)


@pytest.mark.parametrize("name", GOOD_ONES)
def test_a_message_within_the_contract_is_a_tick(name: str) -> None:
    value, key = GOOD_ONES[name]
    assert decode_tick(value, key, NOW).symbol.encode() == key


def test_a_quote_of_zeros_is_no_tick() -> None:
    zeros = {"c": 0, "d": None, "dp": None, "h": 0, "l": 0, "o": 0, "pc": 0, "t": 0}
    with pytest.raises(MessageError, match="no quote for NOPE"):
        tick_from_quote("NOPE", zeros, id="rest-1", receipt_time=1_763_900_000_000)


def test_the_status_topic_stands_beside_the_data() -> None:
    assert status_topic("stock-market-data") == "stock-market-status"
