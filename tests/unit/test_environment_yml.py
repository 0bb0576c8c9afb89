"""environment.yml, which needs conda to be run: held to what conda reads of it, and to pyproject.toml.

Conda publishes no JSON schema of the file. The sections are those that conda knows; others it ignores with a warning.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from pipeline_lib.services.java import MIN_JAVA

ROOT = Path(__file__).parents[2]

SCHEMA = {
    "type": "object",
    "required": ["name", "channels", "dependencies"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": r"^[^/ :#]+$"},
        "channels": {"type": "array", "items": {"type": "string", "pattern": r"^[a-z-]+$"}, "minItems": 1},
        "variables": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
        "dependencies": {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string", "pattern": r"^[a-z0-9_.-]+( [<>=!]+[0-9.*]+(,[<>=!]+[0-9.*]+)*)?$"},
                    {
                        "type": "object",
                        "required": ["pip"],
                        "additionalProperties": False,
                        "properties": {"pip": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
                    },
                ]
            },
        },
    },
}


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def versions_of(environment: dict[str, Any], package: str) -> SpecifierSet:
    (found,) = (line for line in environment["dependencies"] if isinstance(line, str) and line.split()[0] == package)
    return SpecifierSet(found.partition(" ")[2])


def test_it_has_the_sections_that_conda_knows(environment: dict[str, Any]):
    jsonschema.validate(environment, SCHEMA)


def test_every_python_that_it_allows_is_one_that_the_project_allows(environment: dict[str, Any], project: dict[str, Any]):
    wanted, required = versions_of(environment, "python"), SpecifierSet(project["requires-python"])
    allowed = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in wanted]
    assert allowed and all(each in required for each in allowed)
    assert min(allowed, key=lambda text: int(text[2:])) in (ROOT / "Makefile").read_text("utf-8")


def test_its_java_is_one_that_kafka_and_spark_run_on(environment: dict[str, Any]):
    allowed = [number for number in range(60) if str(number) in versions_of(environment, "openjdk")]
    assert allowed and min(allowed) == MIN_JAVA


def test_pip_is_named_and_installs_this_folder_with_extras_that_exist(environment: dict[str, Any], project: dict[str, Any]):
    assert "pip" in environment["dependencies"]
    (line,) = environment["dependencies"][-1]["pip"]
    match = re.fullmatch(r"-e \.\[([a-z,]+)\]", line)
    assert match is not None
    assert set(match[1].split(",")) == set(project["optional-dependencies"])
