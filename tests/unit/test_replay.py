"""A tape played at a pace."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_clock import FakeClock
from msgspec.structs import replace

from pipeline_lib.config import Settings
from pipeline_lib.errors import SettingsError, TapeError
from pipeline_lib.records import MAX_TIME, Tick, encode_tick
from pipeline_lib.sources import Source, open_source
from pipeline_lib.sources.clock import BURST_SECONDS
from pipeline_lib.sources.replay import Replay
from pipeline_lib.sources.simulated import SimulatedMarket
from pipeline_lib.sources.tape import Tape, write_tape

START = 1_381_152_600_000
SECONDS = (0, 10, 10, 4, 60)  # +4 s is delivered late


@pytest.fixture
def tape(tmp_path: Path) -> Tape:
    made = SimulatedMarket(("AAPL",), seed=7, rate=50, ticks=len(SECONDS))
    recorded = [replace(tick, event_time=START + 1_000 * second) for tick, second in zip(made, SECONDS, strict=True)]
    write_tape(recorded, tmp_path / "tape.jsonl")
    return Tape(tmp_path / "tape.jsonl")


def played(replayed: Replay, clock: FakeClock) -> list[tuple[Tick, float]]:
    """Return the ticks, each with the second at which it went out."""
    return [(tick, clock.passed) for tick in replayed]


def test_a_replayed_tick_is_the_recorded_one_but_for_source_and_receipt_time(tape: Tape) -> None:
    clock = FakeClock()
    for before, (after, _) in zip(tape, played(Replay(tape, speed="max", clock=clock), clock), strict=True):
        assert after == replace(before, source="replay", receipt_time=clock.start_ms)


@pytest.mark.parametrize(("speed", "factor"), [("1", 1), ("60", 60)])
def test_ticks_go_out_at_the_tapes_pace_and_late_ones_wait_for_nothing(tape: Tape, speed: str, factor: int) -> None:
    clock = FakeClock()
    out = played(Replay(tape, speed=speed, clock=clock), clock)  # type: ignore[arg-type]
    for (tick, when), due in zip(out, (0, 10, 10, 10, 60), strict=True):
        assert due / factor <= when <= due / factor + BURST_SECONDS
        assert tick.receipt_time == clock.start_ms + int(1_000 * when)


def test_at_full_speed_nothing_waits(tape: Tape) -> None:
    clock = FakeClock()
    assert len(played(Replay(tape, speed="max", clock=clock), clock)) == 5 and clock.waited == []


def test_moved_times_begin_now_and_keep_their_distances(tape: Tape) -> None:
    clock = FakeClock()
    out = played(Replay(tape, speed="1", move_to_now=True, clock=clock), clock)
    assert [tick.event_time for tick, _ in out] == [clock.start_ms + 1_000 * second for second in SECONDS]


def test_a_tick_moved_out_of_the_years_of_the_contract_is_counted_and_reported(tmp_path: Path) -> None:
    (first,) = SimulatedMarket(("AAPL",), seed=7, rate=50, ticks=1)
    write_tape([replace(first, event_time=START), replace(first, event_time=MAX_TIME)], tmp_path / "tape.jsonl")
    reports: list[str] = []
    replayed = Replay(Tape(tmp_path / "tape.jsonl"), speed="max", move_to_now=True, report=reports.append, clock=FakeClock())
    assert len(list(replayed)) == 1 and replayed.tape.bad.count == 1 and "1 lines that are no ticks" in reports[0]


def test_bad_lines_are_reported_at_the_end(tape: Tape) -> None:
    with tape.path.open("ab") as file:
        file.write(b"rubbish\n")
    reports: list[str] = []
    assert len(list(Replay(tape, speed="max", report=reports.append))) == 5
    assert len(reports) == 1 and "line 6: not JSON" in reports[0]


def test_a_number_of_ticks_ends_the_tape_early(tape: Tape) -> None:
    replayed = Replay(tape, speed="max", ticks=3)
    assert replayed.total == 3 and len(list(replayed)) == 3
    assert Replay(tape, speed="max", ticks=30).total == 5


def test_close_ends_the_replay(tape: Tape) -> None:
    replayed = Replay(tape, speed="1", clock=FakeClock())
    received = 0
    for _ in replayed:
        received += 1
        if received == 2:
            replayed.close()
    assert received == 2


def chosen(monkeypatch: pytest.MonkeyPatch, folder: Path, **given: object) -> Settings:
    """Return settings that nothing but these arguments decides."""
    monkeypatch.chdir(folder)
    (folder / ".env").touch()
    for name in ("SOURCE", "FINNHUB_API_KEY", "TAPE", "SPEED", "SYMBOLS"):
        monkeypatch.delenv(name, raising=False)
    return Settings.load(**given)


def test_the_settings_choose_the_source_and_it_says_why(monkeypatch: pytest.MonkeyPatch, tape: Tape) -> None:
    def opened(**given: object) -> Source:
        return open_source(chosen(monkeypatch, tape.path.parent, **given), ticks=2)

    simulated = opened()
    assert simulated.name == "simulated market, seed 7, 50 ticks/s" and simulated.reason == "no FINNHUB_API_KEY: the simulated market"
    assert simulated.finite and simulated.total == 2 and len(list(simulated)) == 2
    finnhub = opened(finnhub_api_key="some0key")
    assert finnhub.name == "Finnhub: quotes by REST for 8, each every 8.0 s; trades by WebSocket when they come"
    assert finnhub.reason == "FINNHUB_API_KEY is set"
    replayed = opened(source="replay", tape=tape.path, speed="max")
    assert replayed.name == "tape tape.jsonl at speed max, event times kept" and replayed.reason == "asked for"
    assert [encode_tick(tick)[:20] for tick in replayed] == [encode_tick(tick)[:20] for tick in tape][:2]


def test_a_source_that_lacks_what_it_needs_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="FINNHUB_API_KEY is not set"):
        open_source(chosen(monkeypatch, tmp_path, source="finnhub"))
    with pytest.raises(SettingsError, match="TAPE"):
        open_source(chosen(monkeypatch, tmp_path, source="replay"))
    with pytest.raises(TapeError, match="no such file"):
        open_source(chosen(monkeypatch, tmp_path, source="replay", tape=tmp_path / "none.jsonl"))
