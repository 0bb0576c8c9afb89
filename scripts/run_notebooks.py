"""Run the notebooks in order, and record in them what they show: `make notebooks`.

Outputs are kept in the repository as claims that the tests hold the notebooks to, so only what can be defended is kept:
no state of widgets, no time of execution, nothing of this machine's kernel. A notebook that fails stays as it was.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
CELL_SECONDS = 300
WIDGET = "application/vnd.jupyter.widget-view+json"


def run(path: Path) -> Any:
    """Return the notebook with the outputs of a run of its own. Raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--Application.log_level=ERROR"],  # a warning about ports, which says nothing of the notebook
    ).execute()
    return notebook


def strip(notebook: Any) -> None:
    """Take out of the notebook what differs from run to run, or from machine to machine."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
            if "metadata" in output:
                output.metadata = {}


def main() -> int:
    """Record the notebooks named, or all; return 1 at the first that fails."""
    chosen = [NOTEBOOKS / Path(name).name for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    for path in chosen:
        print(f"{path.name:<32}", end="", flush=True)
        began = time.monotonic()
        try:
            notebook = run(path)
        except CellExecutionError as error:
            said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
            print(f"failed\n\n{said}\n\ncannot record {path.name}: a cell of it fails, as shown above; it stays as it was", file=sys.stderr)
            return 1
        strip(notebook)
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
        print(f"{time.monotonic() - began:5.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
