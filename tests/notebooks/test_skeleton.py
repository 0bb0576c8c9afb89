"""Every notebook has the same skeleton, short cells, and stored outputs that tell nothing of the machine they ran on."""

from __future__ import annotations

import ast
import json
import re
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest

WIDGET = "application/vnd.jupyter.widget-view+json"
SECTIONS = ["What you will learn", "Check yourself", "Questions to try", "Stop what was started"]
# The root of a project or of a user, on any system that this runs on.
ABSOLUTE_PATH = re.compile(r"(?<![\w./:*-])/(home|root|Users|work|tmp|usr|opt|var|private|workspace|builds)/|[A-Z]:\\\\")


@pytest.fixture(scope="session")
def cells(notebook: Path) -> list[Any]:
    return nbformat.read(notebook, as_version=4).cells


def code(cells: list[Any]) -> list[Any]:
    return [cell for cell in cells if cell.cell_type == "code"]


def tagged(cells: list[Any], tag: str) -> list[Any]:
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def headings(cells: list[Any]) -> list[str]:
    return [
        line.removeprefix("## ") for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines() if line[:3] == "## "
    ]


def test_it_opens_with_its_number_and_the_picture(notebook: Path, cells: list[Any]) -> None:
    assert cells[0].source.startswith(f"# {notebook.name[:2]} · ")
    assert all(stage in cells[0].source for stage in ("feed", "Kafka", "Spark", "PostgreSQL", "dashboard"))
    assert ("you are here" in cells[0].source) == (notebook.name[:2] != "00")


def test_it_has_the_sections_of_the_skeleton_in_order(cells: list[Any]) -> None:
    assert [heading for heading in headings(cells) if heading in SECTIONS] == SECTIONS
    assert headings(cells)[0] == SECTIONS[0]
    assert cells[1].source.count("\n- ") == 3, "three lines say what you will learn"
    assert cells[-1].source.split("**Next:**")[1].strip()


def test_it_links_to_files_that_are_there(notebook: Path, cells: list[Any]) -> None:
    links = [link for cell in cells if cell.cell_type == "markdown" for link in re.findall(r"\]\(([^)#]+)", cell.source)]
    assert [link for link in links if "://" not in link and not (notebook.parent / link).exists()] == []


def test_its_parameters_are_literals_in_upper_case_each_with_a_comment(cells: list[Any]) -> None:
    (parameters,) = tagged(cells, "parameters")
    for line in parameters.source.splitlines():
        assert re.fullmatch(r"[A-Z][A-Z_]* = [^#]+  # .+", line), line
        ast.literal_eval(ast.parse(line).body[0].value)  # type: ignore[attr-defined]


def test_no_function_and_no_class_is_defined(cells: list[Any]) -> None:
    for cell in code(cells):
        tree = compile(cell.source, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)], cell.source


def test_cells_are_short(cells: list[Any]) -> None:
    lines = [len(cell.source.splitlines()) for cell in code(cells)]
    assert statistics.median(lines) <= 4
    assert sorted(lines)[-3] <= 10, "rarely more than ten lines"
    assert max(lines) <= 15


def test_two_to_four_assertions_say_what_was_seen(cells: list[Any]) -> None:
    check = next(after for before, after in pairwise(cells) if before.source.startswith("## Check yourself"))
    assertions = [node for node in ast.walk(ast.parse(check.source)) if isinstance(node, ast.Assert)]
    assert 2 <= len(assertions) <= 4
    assert all(isinstance(node.msg, ast.Constant) and len(node.msg.value.split()) >= 5 for node in assertions)


def test_at_most_two_outputs_are_left_uncompared(cells: list[Any]) -> None:
    assert len(tagged(cells, "nbval-ignore-output")) <= 2


def test_it_is_recorded_without_a_fault(cells: list[Any]) -> None:
    assert [cell.execution_count for cell in code(cells)] == list(range(1, len(code(cells)) + 1)), "run `make notebooks`"
    outputs = [output for cell in code(cells) for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []


def test_its_outputs_hold_no_widget_no_path_and_no_random_name(notebook: Path, cells: list[Any]) -> None:
    stored = json.loads(notebook.read_text("utf-8"))
    assert set(stored["metadata"]) == {"kernelspec", "language_info"}
    for cell in code(cells):
        assert set(cell.metadata) <= {"tags"}
        for output in cell.outputs:
            assert WIDGET not in output.get("data", {})
            text = json.dumps({name: value for name, value in output.get("data", {}).items() if not name.startswith("image/")})
            text += output.get("text", "")
            assert not ABSOLUTE_PATH.search(text), text
            assert not re.search(r"notebook-\d\d-[0-9a-f]{6}|0x[0-9a-f]{8,}|token=", text), text
