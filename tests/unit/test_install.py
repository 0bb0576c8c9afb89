"""The set-up says in one line what is in the way, and does nothing when nothing is to be done."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def install(tmp_path: Path) -> ModuleType:
    """The script, in a project of its own."""
    for name in ("requirements.lock", "pyproject.toml", "hatch_build.py", "pipeline_lib/services/jars.sha256", "scripts/install.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    (tmp_path / "frontend").mkdir()
    (tmp_path / "frontend" / "package-lock.json").write_text("{}")
    spec = importlib.util.spec_from_file_location("install", tmp_path / "scripts" / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def set_up(install: ModuleType) -> None:
    """Leave behind what a finished set-up leaves."""
    install.venv_python().parent.mkdir(parents=True)
    install.venv_python().write_text("")
    install.write(install.STAMP, install.wanted_stamp())


def test_a_second_run_does_nothing_and_says_nothing(
    install: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(install)
    monkeypatch.setattr(install, "subprocess", None)  # no program is run
    assert install.main() == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "changed", ["requirements.lock", "pyproject.toml", "pipeline_lib/services/jars.sha256", "frontend/package-lock.json"]
)
def test_a_change_of_what_was_set_up_is_noticed(install: ModuleType, changed: str) -> None:
    set_up(install)
    assert install.is_complete()
    with (install.ROOT / changed).open("a") as file:
        file.write("\n")
    assert not install.is_complete()


def test_a_project_that_was_moved_is_set_up_anew(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(install)
    monkeypatch.setattr(install, "ROOT", tmp_path / "elsewhere")
    assert not install.is_complete()


def test_an_old_python_is_one_line(install: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.sys, "version_info", (3, 10, 2))
    assert install.main() == 1
    said = capsys.readouterr().err
    assert "3.11 or newer is needed; say `make PYTHON=" in said and said.count("\n") == 1


def test_a_python_without_ensurepip_is_one_line(
    install: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name)
    assert install.main() == 1
    said = capsys.readouterr().err
    assert "has no module ensurepip; on Debian or Ubuntu `apt install python3-venv`" in said and said.count("\n") == 1


def test_a_full_disk_is_one_line_and_leaves_nothing(
    install: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: usage(free=1_200_000_000))
    assert install.main() == 1
    assert "1.2 GB are free on the disk" in capsys.readouterr().err
    assert not install.VENV.exists()


def test_a_folder_that_is_no_environment_is_not_deleted(install: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    install.VENV.mkdir()
    (install.VENV / "mine.txt").write_text("precious")
    assert install.main() == 1
    assert "is there and is no environment of Python; move it away" in capsys.readouterr().err
    assert (install.VENV / "mine.txt").read_text() == "precious"


def test_what_pip_says_becomes_one_line(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    install.VENV.mkdir()
    program = install.ROOT / "python"
    program.write_text("#!/bin/sh\necho 'Collecting numpy'\necho 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE FILE.'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(install, "venv_python", lambda: program)
    with pytest.raises(install.InstallError, match=r"another checksum than requirements\.lock.*; the log is \.venv/install\.log"):
        install.pip(["install"], install.Progress("package", 1))
    assert "Collecting numpy" in install.LOG.read_text()


def test_make_help_lists_every_target_and_make_without_python_says_so(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make: `apt install make`")
    helped = subprocess.run([make, "--no-print-directory", "help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    listed = [line.split()[1] for line in helped.splitlines()]
    assert listed == ["help", "install", "run", "lab", "test", "test-faults", "notebooks", "bench", "bench-growth", "lint"]
    shutil.copy(PROJECT / "Makefile", tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to("/bin/sh")
    bare = subprocess.run([make, "install"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": str(tools)})
    assert bare.returncode != 0
    assert "cannot install: no Python 3.11 or newer on the PATH" in bare.stderr
