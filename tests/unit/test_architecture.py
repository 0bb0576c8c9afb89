"""Who imports whom: the modules of pipeline_lib, held to the two tables of docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pipeline_lib"
OURS = PACKAGE.name


class Row(NamedTuple):
    """A module in the first table."""

    stage: str
    imports: set[str]


class Imports(NamedTuple):
    """What one file imports: modules of ours by their dotted name below the package, and others by their first name."""

    ours: set[str]
    others: set[str]


def words_in_code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def read_table(heading: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the table whose first column has this heading."""
    rows = (ROOT / "docs" / "architecture.md").read_text("utf-8").split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()
    for row in rows[2:]:
        yield [cell.strip() for cell in row.strip("|").split("|")]


def read_modules() -> dict[str, Row]:
    return {words_in_code(name)[0]: Row(stage, set(words_in_code(imports))) for name, stage, _, imports in read_table("module")}


def read_homes() -> dict[str, set[str]]:
    return {library: set(words_in_code(homes)) for libraries, homes in read_table("library") for library in words_in_code(libraries)}


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield every imported name, dotted, wherever the import stands; those for annotations alone are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported_names(node)


def module_of(name: str) -> str:
    """Return the module that an imported name of ours is, or lies in: "sources.tape" for pipeline_lib.sources.tape.Tape."""
    found, place = [], PACKAGE
    for part in name.split(".")[1:]:
        place = place / part
        if not place.is_dir() and not place.with_suffix(".py").exists():
            break
        found.append(part)
    return ".".join(found)


def read_imports() -> dict[str, Imports]:
    """Return what every file of the package imports, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = set(imported_names(ast.parse(path.read_text("utf-8"))))
        ours = {module_of(name) for name in names if name.split(".")[0] == OURS} - {""}
        others = {first for name in names if (first := name.split(".")[0]) not in (*sys.stdlib_module_names, OURS)}
        found[dotted(path)] = Imports(ours, others)
    del found[""]  # the package itself, which a law of its own holds
    return found


FOUND = read_imports()


def first(name: str) -> str:
    return name.split(".")[0]


def imports_of(module: str) -> set[str]:
    """Return the modules, packages as one, that a module or any file of a package imports."""
    return {first(other) for name, found in FOUND.items() if first(name) == module for other in found.ours} - {module}


def test_the_table_names_every_module_and_no_other():
    assert set(read_modules()) == {first(name) for name in FOUND}


@pytest.mark.parametrize("module", sorted(read_modules()))
def test_a_module_imports_what_the_table_says(module: str):
    assert imports_of(module) == read_modules()[module].imports


def test_a_stage_imports_the_shared_modules_and_itself():
    modules = read_modules()
    for name, row in modules.items():
        if row.stage != "together":
            assert {modules[other].stage for other in row.imports} <= {"shared", row.stage}, name


def test_no_import_goes_in_a_circle():
    TopologicalSorter({name: found.ours - {name} for name, found in FOUND.items()}).prepare()


def test_each_library_is_imported_at_its_home_only():
    homes: dict[str, set[str]] = {}
    for name, found in FOUND.items():
        for library in found.others:
            homes.setdefault(library, set()).add(first(name))
    assert homes == read_homes()


def test_every_library_is_a_dependency_that_pyproject_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower().replace("_", "-") for line in project["dependencies"]}
    distributions = packages_distributions()
    for library in read_homes():
        assert {found.lower().replace("_", "-") for found in distributions[library]} & named, library


def test_importing_the_package_imports_no_library():
    listed = "import sys; before = set(sys.modules); import pipeline_lib; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout.split()
    assert not {first(name) for name in loaded} - {*sys.stdlib_module_names, OURS}
