"""What the documents promise that a program can check: words that are explained, links that lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer

from pipeline_lib import cli, schema
from pipeline_lib.errors import PipelineError

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

# The words that names in the code are made of.
WORDS = """tick, trade, quote, symbol, event time, receipt time, bar, VWAP, watermark_delay, watermark, late, micro-batch, trigger,
checkpoint, offset, lag, dead letter, merge, upsert, progress, tape, freshness, LIVE, DELAYED, STALE, CLOSED, NO DATA"""


def read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def test_the_glossary_explains_every_word_once():
    explained = re.findall(r"^\| ([^|]+?) \|", read("docs/glossary.md"), re.M)
    words = [word.strip() for word in WORDS.replace("\n", " ").split(",")]
    assert [word for word in words if explained.count(word) != 1] == []
    for other in ("window_start", "window_end", "batch_id"):
        assert f"`{other}`" in read("docs/glossary.md")


def test_the_architecture_names_every_table_and_view():
    text = read("docs/architecture.md")
    assert [name for name in (*schema.TABLES, *schema.VIEWS) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(document: Path):
    text = document.read_text("utf-8")
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    broken = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert broken == []


def test_decisions_are_numbered_in_a_row():
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_tree_of_errors_in_the_docstring_is_the_tree_of_classes():
    import pipeline_lib.errors

    drawn = re.findall(r"([A-Z]\w+Error)\b.*?(\(retriable\))?$", pipeline_lib.errors.__doc__ or "", re.M)
    classes = [PipelineError, *PipelineError.__subclasses__()]
    ours = {found.__name__: found.retriable for found in classes if found.__module__ == "pipeline_lib.errors"}
    assert {name: bool(mark) for name, mark in drawn} == ours


def test_every_line_that_operations_explains_is_one_that_the_code_says():
    rows = read("docs/operations.md").split("| it says |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    lines = [re.match(r"\| `([^`]+)` \|", row)[1] for row in rows]  # type: ignore[index]
    sources = "\n".join(path.read_text("utf-8") for folder in ("pipeline_lib", "scripts") for path in (ROOT / folder).rglob("*.py"))
    assert lines and [line for line in lines if line not in sources] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_a_document_names_exist(document: Path):
    text = document.read_text("utf-8")
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for name, options in re.findall(r"(?:^|[`(/])stocks ([a-z]+(?:-[a-z]+)*)((?: --?[a-z][a-z-]*| [\w./]+)*)", text, re.M):
        assert name in commands, name
        known = {option for param in commands[name].params for option in param.opts}
        assert set(re.findall(r"--[a-z-]+", options)) <= known, options
    targets = re.findall(r"^([a-z]+):", read("Makefile"), re.M)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)(?=`|  |$)", text, re.M)) <= set(targets)


def test_the_newest_entry_of_the_changelog_is_this_version():
    newest = re.findall(r"^## (\S+)$", read("CHANGELOG.md"), re.M)[0]
    assert newest == tomllib.loads(read("pyproject.toml"))["project"]["version"]
