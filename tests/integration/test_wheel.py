"""What pip builds holds the dashboard's bundle, and what it is served with."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

# What pip says if it cannot fetch the build backend: a machine without network.
OFFLINE = ("No matching distribution found for hatchling", "Failed to establish a new connection", "Temporary failure in name resolution")


def test_a_built_wheel_carries_bundle_template_and_page(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(PROJECT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if any(sign in done.stderr for sign in OFFLINE):
        pytest.skip("pip cannot fetch hatchling: building a wheel needs the network")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        bundle = archive.read("pipeline_lib/static/chart.js")
    # The charts' licence asks that its notice goes with them.
    assert b"Lightweight Charts" in bundle and b"Apache License 2.0" in bundle
    assert {f"pipeline_lib/static/{name}" for name in ("chart.js", "board.js", "strip.js", "dashboard.css")} <= names
    assert {"pipeline_lib/web/dashboard.ipynb", "pipeline_lib/web/voila.json"} <= names
    assert "pipeline_lib/web/share/voila/templates/stocks/index.html.j2" in names
    assert not [name for name in names if "node_modules" in name or name.startswith("frontend")]
