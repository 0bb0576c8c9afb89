"""A process is ours by number and birth, and nothing else is ever touched."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline_lib.errors import AlreadyRunningError, ServiceError
from pipeline_lib.services import process
from pipeline_lib.services.locks import hold_lock
from pipeline_lib.services.process import Born, Program, State

SLEEPER = (sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read() or __import__('signal').pause()")
STUBBORN = (sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()")


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not ours; it ends when its input does."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.communicate(b"\n")


def start(command: tuple[str, ...], folder: Path) -> Born:
    log = folder / "log"
    born = process.spawn(Program(command, folder, log))
    assert process.wait_until(lambda: log.read_text() == "up\n", born, 20)
    return born


def test_a_process_is_found_until_it_is_stopped(tmp_path: Path) -> None:
    born = start(SLEEPER, tmp_path)
    assert process.find_process(born) is not None
    process.stop(born)
    assert process.find_process(born) is None
    assert not psutil.pid_exists(born.pid)
    process.stop(born)  # a second time is no error


def test_one_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    born = start(STUBBORN, tmp_path)
    process.stop(born, seconds=0.2)
    assert process.find_process(born) is None


def test_a_recycled_number_is_neither_taken_for_ours_nor_hit(stranger: subprocess.Popen[bytes]) -> None:
    created = psutil.Process(stranger.pid).create_time()
    assert process.find_process(Born(stranger.pid, created)) is not None
    recycled = Born(stranger.pid, created - 2)
    assert process.find_process(recycled) is None
    process.stop(recycled)
    assert stranger.poll() is None


def test_a_process_that_dies_is_not_waited_for(tmp_path: Path) -> None:
    born = process.spawn(Program((sys.executable, "-c", "raise SystemExit(3)"), tmp_path, tmp_path / "log"))
    assert process.wait_until(lambda: False, born, 60) is False


def test_a_program_that_is_not_there_is_one_plain_line(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="cannot start /nowhere/kafka: No such file or directory"):
        process.spawn(Program(("/nowhere/kafka",), tmp_path, tmp_path / "log"))


def test_the_state_comes_back_as_it_was_and_a_broken_one_is_said(tmp_path: Path) -> None:
    assert process.read_state(tmp_path) is None
    state = State(born=Born(1, 2.5), ports={"client": 9092}, version="4.3.1", data="/data")
    process.write_state(tmp_path, state)
    assert process.read_state(tmp_path) == state
    (tmp_path / "state.json").write_text('{"born": 1')
    with pytest.raises(ServiceError, match=r"cannot read .*state\.json.*; delete the file"):
        process.read_state(tmp_path)


def test_a_taken_port_is_replaced_and_said_and_a_free_one_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PORT_SECONDS", 0)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = process.choose_ports(("client", "controller"), {"client": taken}, said.append)
    assert taken not in ports.values()
    assert len(set(ports.values())) == 2
    assert said == [f"port {taken} is taken by another program: client uses {ports['client']} from now on"]
    assert process.choose_ports(("client", "controller"), ports, said.append) == ports
    assert len(said) == 1


def test_the_telling_line_is_the_last_fault_of_this_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert process.telling_line(log, ("ERROR",)) == "there is no log"
    log.write_text("ERROR of yesterday\n")
    before = process.log_size(log)
    log.write_text("ERROR of yesterday\nERROR first\nERROR second\n  at stack\n")
    assert process.telling_line(log, ("ERROR",), before) == "ERROR second"
    assert process.telling_line(log, ("PANIC",), before) == "at stack"


def test_a_lock_is_held_by_one_process_at_a_time_and_dies_with_it(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from pipeline_lib.services.locks import hold_lock\n"
    code += "with hold_lock(Path(sys.argv[1]), 1): print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunningError, match="another `stocks` command"), hold_lock(tmp_path / "lock", 0.1):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with hold_lock(tmp_path / "lock", 5):
        pass


def test_a_long_log_is_put_aside_under_its_writer_who_goes_on_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_BYTES", 100)
    log = tmp_path / "stage.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"short\n")
        process.bound_log(log)
        assert log.read_bytes() == b"short\n"
        writer.write(b"x" * 100)
        process.bound_log(log)
        writer.write(b"after\n")
    assert log.read_bytes() == b"after\n"
    assert (tmp_path / "stage.log.1").read_bytes() == b"short\n" + b"x" * 100
