"""The surface of the command `stocks`: names that others rely on, and faults that are one line. Nothing is started here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pipeline_lib import cli
from pipeline_lib.config import Settings
from pipeline_lib.errors import EXIT_TRY_AGAIN

COMMAND = Path(sys.executable).parent / "stocks"

OPTIONS = {
    "up": set(),
    "down": set(),
    "status": {"--json"},
    "env": set(),
    "doctor": set(),
    "produce": {"--source", "--tape", "--speed", "--rate", "--move-to-now", "--verbatim", "--again", "--ticks"},
    "stream": {"--until-caught-up", "--console", "--accept-gap"},
    "verify": {"--from", "--to", "--symbol", "--watch", "--every", "--json"},
    "rebuild": {"--tape", "--accept-loss"},
    "record": {"--out"},
    "dashboard": {"--port"},
    "finnhub-stand-in": {"--port", "--key", "--tape", "--speed", "--rate", "--faults", "--every", "--seed"},
    "run": {"--source", "--tape", "--speed", "--rate", "--move-to-now", "--verbatim", "--again"},
}

# Nobody listens on port 1 of the loopback.
GIVEN = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "DATABASE_URL": "postgresql://someone:s3cret@127.0.0.1:1/stocks"}

# Slow to import, and needed by no command before it does its work.
HEAVY = {"anywidget", "ipywidgets", "kafka", "matplotlib", "numpy", "pandas", "psycopg2", "pyspark", "voila"}


@pytest.fixture
def stocks(tmp_path: Path):
    """Run the command in an empty folder, with a home of its own and nothing set but what is given."""
    names = {name.upper() for name in Settings.model_fields}
    inherited = {name: value for name, value in os.environ.items() if name not in names}

    def run(*arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
        environment = {**inherited, "PIPELINE_HOME": str(tmp_path / "home"), **given}
        return subprocess.run([COMMAND, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    return run


def fault_of(done: subprocess.CompletedProcess[str], status: int = 2) -> str:
    """Return the one line that a foreseen fault is."""
    assert done.returncode == status, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cannot ") and "Traceback" not in done.stdout
    return line


def test_every_command_is_there_with_its_options():
    group = typer.main.get_command(cli.app)
    shown = {
        name: {option for param in command.params for option in param.opts if not getattr(param, "hidden", False)}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    assert shown == OPTIONS


def test_every_command_and_option_says_what_it_does():
    group = typer.main.get_command(cli.app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        assert all(getattr(param, "help", None) for param in command.params), name


def test_help_shows_every_command_and_imports_nothing_heavy():
    listed = (
        "import sys\nfrom pipeline_lib.cli import main\nsys.argv = ['stocks', '--help']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    print(ended.code, *sys.modules, sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True)
    code, *modules = done.stderr.splitlines()
    assert code == "0"
    assert [name for name in OPTIONS if name not in done.stdout] == []
    assert {name.split(".")[0] for name in modules} & HEAVY == set()


def test_an_unknown_command_is_a_mistake_of_the_caller(stocks):
    done = stocks("produse")
    assert done.returncode == 2 and "produse" in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("WINDOW", "7 parsecs"), ("WINDOW", "7 seconds"), ("SYMBOLS", "no such thing"), ("DASHBOARD_PORT", "0"), ("SOURCE", "rumour")],
)
def test_a_wrong_setting_is_one_line_that_names_it(stocks, name: str, value: str):
    assert f" {name}: " in fault_of(stocks("status", **{name: value}))


@pytest.mark.parametrize("command", ["env", "produce", "stream", "verify", "dashboard", "record --out tape.parquet"])
def test_a_service_that_does_not_run_is_one_line_with_the_way_out(stocks, command: str):
    line = fault_of(stocks(*command.split()))
    assert "is not running" in line and "`stocks up`" in line


@pytest.mark.parametrize("command", ["stream", "verify", "dashboard", "produce --ticks 1"])
def test_an_address_where_nobody_answers_is_one_line_without_the_password_and_worth_another_try(stocks, command: str):
    line = fault_of(stocks(*command.split(), **GIVEN), EXIT_TRY_AGAIN)
    assert "127.0.0.1:1" in line and "s3cret" not in line


@pytest.mark.parametrize("command", ["produce", "run"])
def test_a_missing_tape_is_one_line_that_names_it(stocks, command: str):
    assert "nowhere.jsonl" in fault_of(stocks(command, "--tape", "nowhere.jsonl", **GIVEN))


def test_replay_without_a_tape_says_how_to_give_one(stocks):
    assert "--tape" in fault_of(stocks("produce", "--source", "replay", **GIVEN))


def test_finnhub_without_a_key_says_where_it_goes(stocks):
    assert "FINNHUB_API_KEY" in fault_of(stocks("produce", "--source", "finnhub", **GIVEN))


def test_status_says_that_nothing_runs(stocks):
    done = stocks("status", "--json")
    assert done.returncode == 0
    assert {found["name"]: found["state"] for found in json.loads(done.stdout)} == {"kafka": "stopped", "postgres": "stopped"}


def test_given_addresses_are_external_and_shown_without_the_password(stocks):
    done = stocks("status", "--json", **GIVEN)
    assert {found["state"] for found in json.loads(done.stdout)} == {"external"}
    assert "127.0.0.1:1" in done.stdout and "s3cret" not in done.stdout


def test_env_prints_what_a_shell_can_read(stocks):
    assert stocks("env", **GIVEN).stdout == "".join(f"{name}={value}\n" for name, value in GIVEN.items())


def test_down_where_nothing_runs_is_no_fault(stocks):
    done = stocks("down")
    assert (done.returncode, done.stdout) == (0, "nothing was running\n")
