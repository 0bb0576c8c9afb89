"""`.env.example` says of every setting what the code says: its name and its default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipeline_lib.config import Settings

ROOT = Path(__file__).parents[2]
SECTION_OF_COMPOSE = "# --- With compose.yml"
ASSIGNMENT = re.compile(r"^# ([A-Z_]+)=(.*)$", re.M)


def read_sections() -> tuple[str, str]:
    """Return the part about settings, and the part about compose.yml."""
    settings, mark, compose = (ROOT / ".env.example").read_text("utf-8").partition(SECTION_OF_COMPOSE)
    assert mark
    return settings, compose


def settings_read_from(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (folder / ".env").write_text(text, "utf-8")
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("POSTGRES_PASSWORD", raising=False)
    monkeypatch.chdir(folder)
    return Settings.load()


def uncomment(text: str) -> str:
    return ASSIGNMENT.sub(r"\1=\2", text)


def test_every_setting_is_there_once_and_nothing_else():
    names = [name for name, _ in ASSIGNMENT.findall(read_sections()[0])]
    assert sorted(names) == sorted(name.upper() for name in Settings.model_fields)


def test_every_line_is_commented_out():
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    assert not [line for line in lines if line and not line.startswith("# ")]


def test_every_setting_is_preceded_by_what_it_does():
    lines = read_sections()[0].splitlines()
    for place, line in enumerate(lines):
        if ASSIGNMENT.match(line):
            before = lines[place - 1]
            assert before.startswith("# ") and not before.startswith("# ---"), line


def test_uncommented_it_gives_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    untouched = settings_read_from("", tmp_path, monkeypatch)
    uncommented = settings_read_from(uncomment(read_sections()[0]), tmp_path, monkeypatch)
    assert uncommented == untouched


def test_a_changed_line_takes_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = uncomment(read_sections()[0]).replace("WINDOW=10 seconds", "WINDOW=1 minute")
    assert settings_read_from(text, tmp_path, monkeypatch).window_ms == 60_000


def test_its_lines_for_compose_lead_to_what_compose_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    services = yaml.safe_load((ROOT / "compose.yml").read_text("utf-8"))["services"]
    text = uncomment(read_sections()[1]).replace("POSTGRES_PASSWORD=\n", "POSTGRES_PASSWORD=p4ss\n")
    settings = settings_read_from(text, tmp_path, monkeypatch)
    (kafka,), (postgres,) = services["kafka"]["ports"], services["postgres"]["ports"]
    account = services["postgres"]["environment"]
    assert settings.kafka_bootstrap_servers == kafka.rpartition(":")[0]
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == (
        f"postgresql://{account['POSTGRES_USER']}:p4ss@{postgres.rpartition(':')[0]}/{account['POSTGRES_DB']}"
    )
