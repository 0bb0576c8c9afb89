"""What notebooks show as tables says what was handed over, no more and no less."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib import frames
from pipeline_lib.doctor import Check
from pipeline_lib.records import Message, Tick
from pipeline_lib.sources.simulated import DEFAULT_START_MS, SimulatedMarket


def test_a_row_of_ticks_holds_every_field_with_its_times_in_utc() -> None:
    ticks = list(SimulatedMarket(("AAPL", "MSFT"), seed=1, rate=100, ticks=50))
    frame = frames.ticks(ticks)
    assert list(frame.columns) == list(Tick.__struct_fields__)
    assert frame["price"].tolist() == [tick.price for tick in ticks]
    assert frame["event_time"].dt.as_unit("ms").astype("int64").tolist() == [tick.event_time for tick in ticks]
    assert str(frame["event_time"].dt.tz) == "UTC"


def test_messages_that_are_no_text_are_still_shown() -> None:
    frame = frames.messages([Message(0, 7, DEFAULT_START_MS, None, b"\xff{"), Message(1, 0, DEFAULT_START_MS, b"AAPL", None)])
    assert frame["value"].tolist() == ["\N{REPLACEMENT CHARACTER}{", None]
    assert frame["key"].tolist() == [None, "AAPL"]


def test_offsets_are_in_the_order_of_partitions_and_count_what_is_held() -> None:
    frame = frames.offsets({2: (5, 9), 0: (0, 0)})
    assert frame.index.tolist() == [0, 2]
    assert frame["messages"].tolist() == [0, 4]


@given(st.binary(max_size=100))
def test_a_hexdump_gives_the_bytes_back(value: bytes) -> None:
    frame = frames.hexdump(value)
    assert bytes.fromhex(" ".join(frame["bytes"])) == value
    assert sum(map(len, frame["text"])) == len(value)


def test_checks_tell_nothing_of_the_folders_they_were_made_in() -> None:
    frame = frames.checks(
        [Check("Python", "ok", f"3.11 in {sys.prefix}"), Check("disk", "warn", f"little in {Path.home()}/data", "free some")]
    )
    assert frame.loc["Python", "found"] == "3.11 in the environment"
    assert str(Path.home()) not in frame.to_string()
    assert frame.loc["disk", "remedy"] == "free some"
