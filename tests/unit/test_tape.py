"""Tapes: what was written is read again, what is no tick is counted, and LEAN's files are read in the order of time."""

from __future__ import annotations

import datetime as dt
import random
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ticks import ticks

from pipeline_lib.errors import SettingsError, TapeError
from pipeline_lib.records import Tick, check_tick, encode_tick
from pipeline_lib.sources import parquet_rows
from pipeline_lib.sources.parquet_rows import PARQUET_SCHEMA
from pipeline_lib.sources.replay import Replay
from pipeline_lib.sources.simulated import SimulatedMarket
from pipeline_lib.sources.tape import Tape, write_tape


def market(number: int) -> list[Tick]:
    return list(SimulatedMarket(("AAPL", "MSFT"), seed=7, rate=50, ticks=number))


def write_lean(folder: Path, symbol: str, day: str, rows: list[str], inside: str | None = None) -> Path:
    """Write one symbol's day as LEAN has it, and return the zip."""
    path = folder / symbol / f"{day}_trade.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(inside or f"{day}_{symbol}_Trade_Tick.csv", "\r\n".join(rows))
    return path


@settings(max_examples=60, deadline=None, derandomize=True)
@given(recorded=st.lists(ticks(), max_size=6), suffix=st.sampled_from([".jsonl", ".parquet"]))
def test_a_recorded_tape_gives_the_same_ticks_in_the_same_order(
    recorded: list[Tick], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tape") / f"tape{suffix}"
    assert write_tape(recorded, path) == len(recorded)
    tape = Tape(path)
    assert list(tape) == recorded and tape.total == len(recorded) and tape.bad.count == 0
    assert [encode_tick(tick) for tick in tape] == [encode_tick(tick) for tick in recorded]  # 0.0 and -0.0 are equal, too


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_tape_longer_than_a_batch_is_whole(tmp_path: Path, suffix: str) -> None:
    recorded = market(45_000)
    assert write_tape(iter(recorded), tmp_path / f"tape{suffix}") == 45_000
    assert list(Tape(tmp_path / f"tape{suffix}")) == recorded


def test_parquet_has_a_column_for_each_field_of_the_message() -> None:
    assert tuple(PARQUET_SCHEMA.names) == Tick.__struct_fields__


def test_an_unfinished_recording_leaves_the_old_tape_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "tape.jsonl"
    write_tape(market(3), path)

    def broken():  # type: ignore[no-untyped-def]
        yield from market(10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tape(broken(), path)
    assert list(Tape(path)) == market(3) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["tape.csv", "tape", "nowhere/tape.jsonl"])
def test_a_tape_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(TapeError, match="cannot write the tape"):
        write_tape(market(1), tmp_path / name)


def test_lines_that_are_no_ticks_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    good = [encode_tick(tick) for tick in market(2)]
    lines = [good[0], b"", b"not JSON", b'{"schema":1}', b"\xff\xfe", good[0].replace(b'"price":', b'"price":-'), good[1], b"   "]
    (tmp_path / "tape.jsonl").write_bytes(b"\r\n".join(lines))
    tape = Tape(tmp_path / "tape.jsonl")
    assert list(tape) == market(2)
    assert tape.bad.count == 4 and tape.bad.first is not None and tape.bad.first.startswith("tape.jsonl line 3: not JSON")
    assert tape.total == 6
    assert list(tape) == market(2) and tape.bad.count == 4  # counted anew by each reading


def test_a_tape_cut_off_in_its_last_line_gives_the_others(tmp_path: Path) -> None:
    content = b"\n".join(encode_tick(tick) for tick in market(3))
    (tmp_path / "tape.jsonl").write_bytes(content[:-10])
    tape = Tape(tmp_path / "tape.jsonl")
    assert list(tape) == market(2) and tape.bad.count == 1


def test_rows_that_are_no_ticks_are_counted(tmp_path: Path) -> None:
    table = pa.table({"schema": [1, 1], "id": ["a-1", "a-2"], "kind": ["trade"] * 2, "symbol": ["AAPL"] * 2, "price": [1.0, -1.0]})
    for name, value in {
        "volume": 1.0,
        "event_time": 1_767_623_400_000,
        "receipt_time": 1_767_623_400_000,
        "source": "replay",
        "mine": 0,
    }.items():
        table = table.append_column(name, pa.array([value] * 2))
    pq.write_table(table, tmp_path / "tape.parquet")
    tape = Tape(tmp_path / "tape.parquet")
    assert [tick.id for tick in tape] == ["a-1"]
    assert tape.bad.count == 1 and tape.bad.first is not None and tape.bad.first.startswith("tape.parquet row 2: ")


def test_a_table_without_a_required_column_is_no_tape(tmp_path: Path) -> None:
    pq.write_table(pa.table({"symbol": ["AAPL"], "price": [1.0]}), tmp_path / "tape.parquet")
    with pytest.raises(TapeError, match="no column event_time, id, kind"):
        list(Tape(tmp_path / "tape.parquet"))


@pytest.mark.parametrize("name", ["missing.jsonl", "notes.txt", "empty"])
def test_what_is_no_tape_is_an_error_that_says_what_one_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("buy low")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TapeError, match="a tape is a"):
        Tape(tmp_path / name)


def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tape.parquet").write_bytes(b"not parquet")
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "20131007_trade.zip").write_bytes(b"not a zip")
    for path in (tmp_path / "tape.parquet", tmp_path):
        with pytest.raises(TapeError, match="cannot read the tape"):
            list(Tape(path))
        with pytest.raises(TapeError, match="cannot read the tape"):
            _ = Tape(path).total


def test_lean_trades_have_new_yorks_time_and_a_price_in_dollars(tmp_path: Path) -> None:
    write_lean(tmp_path, "spy", "20131007", ["34200123,1674100,150,P,20002000,0"])
    write_lean(tmp_path, "spy", "20140106", ["34200123,1674150,100,K,0,1"])
    summer, winter = (check_tick(tick) for tick in Tape(tmp_path))
    assert dt.datetime.fromtimestamp(summer.event_time / 1_000, dt.UTC).isoformat() == "2013-10-07T13:30:00.123000+00:00"
    assert dt.datetime.fromtimestamp(winter.event_time / 1_000, dt.UTC).isoformat() == "2014-01-06T14:30:00.123000+00:00"
    assert (summer.symbol, summer.price, summer.volume, summer.conditions) == ("SPY", 167.41, 150, ["20002000"])
    assert (winter.price, winter.conditions) == (167.415, ["0", "suspicious"])
    assert (summer.id, winter.id) == ("lean-spy-20131007-1", "lean-spy-20140106-1")


def test_lean_symbols_and_days_are_merged_in_the_order_of_time(tmp_path: Path) -> None:
    write_lean(tmp_path, "spy", "20131007", ["1000,20000,1,P,0,0", "3000,20000,2,P,0,0", "3000,20000,3,P,0,0"])
    write_lean(tmp_path, "aig", "20131007", ["2000,20000,4,P,0,0", "3000,20000,5,P,0,0", "4000,20000,6,P,0,0"])
    write_lean(tmp_path, "spy", "20131004", ["86399999,20000,7,P,0,0"])
    tape = Tape(tmp_path)
    assert [tick.volume for tick in tape] == [7, 1, 4, 5, 2, 3, 6]
    assert tape.total == 7


def test_lean_rows_that_are_no_trades_are_counted(tmp_path: Path) -> None:
    rows = [
        "",
        "1,2,3",
        "x,20000,1,P,0,0",
        "1,20000,1,P,0,0",
        "2,0,1,P,0,0",
        "3,20000,-1,P,0,0",
        "4,20000,nan,P,0,0",
        f"5,{'9' * 400},1,P,0,0",
        "é,1,1,P,0,0",
    ]
    write_lean(tmp_path, "spy", "20131007", rows)
    tape = Tape(tmp_path)
    assert [tick.id for tick in tape] == ["lean-spy-20131007-4"]
    assert tape.bad.count == 8 and tape.bad.first is not None and tape.bad.first.startswith("spy/20131007_trade.zip row 1: ")


def test_a_lean_zip_of_an_impossible_day_or_of_two_files_is_an_error(tmp_path: Path) -> None:
    write_lean(tmp_path / "day", "spy", "20131399", ["1,20000,1,P,0,0"])
    with pytest.raises(TapeError, match="20131399 is no date"):
        list(Tape(tmp_path / "day"))
    path = write_lean(tmp_path / "two", "spy", "20131007", ["1,20000,1,P,0,0"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("second.csv", "")
    with pytest.raises(TapeError, match="holds 2 files"):
        list(Tape(tmp_path / "two"))


def test_a_damaged_lean_zip_is_an_error(tmp_path: Path) -> None:
    path = write_lean(tmp_path, "spy", "20131007", [f"{ms},{20_000 + ms * 7919 % 1000},1,P,0,0" for ms in range(20_000)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(TapeError, match="cannot read the tape"):
        list(Tape(tmp_path))


def test_a_parquet_tape_torn_anywhere_gives_all_that_stands_whole_before_the_tear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "PART_ROWS", 100)
    recorded = market(1_000)
    write_tape(recorded, tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    assert pq.read_table(tmp_path / "whole.parquet").num_rows == 1_000  # any other program reads it, too
    dice, kept = random.Random(7), set()
    for end in sorted(dice.sample(range(12_000, len(content) - 1), 60)):
        path = tmp_path / "torn.parquet"
        path.write_bytes(content[:end])
        tape = Tape(path)
        ticks = list(tape)
        assert ticks == recorded[: len(ticks)] and len(ticks) % 100 == 0 and tape.total == len(ticks)
        assert tape.bad.torn is not None and tape.bad.torn.startswith(f"{len(ticks):,} ticks before the tear were read, ")
        kept.add(len(ticks))
    assert max(kept) == 1_000 and len(kept) > 5


def test_a_tear_loses_no_more_than_a_part(tmp_path: Path) -> None:
    recorded = market(3 * parquet_rows.PART_ROWS + 10)
    path = tmp_path / "tape.parquet"
    write_tape(recorded, path)
    path.write_bytes(path.read_bytes()[:-30_000])
    assert len(list(Tape(path))) >= 2 * parquet_rows.PART_ROWS


def test_a_torn_tape_says_what_was_read_and_what_is_lost(tmp_path: Path) -> None:
    content = b"\n".join(encode_tick(tick) for tick in market(3))
    (tmp_path / "tape.jsonl").write_bytes(content[:-10])
    reports: list[str] = []
    assert len(list(Replay(Tape(tmp_path / "tape.jsonl"), speed="max", report=reports.append))) == 2
    (report,) = reports
    assert "torn end: 2 ticks before the tear were read" in report and "bytes of line 3 are lost" in report


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_tape_replayed_verbatim_is_the_same_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    recorded = market(500)
    write_tape(recorded, tmp_path / f"tape{suffix}")
    played = list(Replay(Tape(tmp_path / f"tape{suffix}"), speed="max", verbatim=True))
    assert [encode_tick(tick) for tick in played] == [encode_tick(tick) for tick in recorded]


def test_verbatim_and_moved_to_now_contradict_each_other(tmp_path: Path) -> None:
    write_tape(market(1), tmp_path / "tape.jsonl")
    with pytest.raises(SettingsError, match=r"VERBATIM.*MOVE_TO_NOW"):
        Replay(Tape(tmp_path / "tape.jsonl"), verbatim=True, move_to_now=True)
