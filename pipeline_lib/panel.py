"""The panel of notebook 06: a row a stage with its state and a button that kills it, the counts, and what verify says.

It is handed what it calls, and knows no stage itself. One task of the kernel's own event loop changes its values; it never
displays. Its JavaScript is `frontend/src/panel.js`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from pipeline_lib.errors import PipelineError
from pipeline_lib.widgets import TITLES, bundled

REFRESH_SECONDS = 0.5


class FaultPanel(anywidget.AnyWidget):
    """Show it by naming it at the end of a cell; made inside a running event loop it begins to move at once.

    ``look`` returns rows, counts and fault without waiting; ``kill`` takes the name of a stage; ``verify`` may take its time.
    """

    _esm = bundled("panel.js")
    _css = bundled("dashboard.css")
    rows: traitlets.List[dict[str, Any]] = traitlets.List().tag(sync=True)
    counts: traitlets.Dict[str, int] = traitlets.Dict().tag(sync=True)
    fault = traitlets.Unicode("").tag(sync=True)
    verdict: traitlets.Dict[str, str] = traitlets.Dict().tag(sync=True)
    stopped = traitlets.Bool(False).tag(sync=True)
    clock = traitlets.Int(0).tag(sync=True)

    def __init__(self, look: Callable[[], dict[str, Any]], kill: Callable[[str], None], verify: Callable[[], Any]) -> None:
        super().__init__()
        self._look, self._kill, self._verify = look, kill, verify
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self.on_msg(lambda _widget, content, _buffers: self._pressed(content))
        self.refresh()
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._begin(self._run())

    def __repr__(self) -> str:
        return "(a live panel of the stages: it moves while the notebook runs)"

    def refresh(self) -> None:
        """Show how all is at this moment."""
        seen = self._look()
        with self.hold_sync():
            self.rows = [{**row, "title": TITLES[row["stage"]]} for row in seen["stages"]]
            self.counts, self.fault = seen["counts"], seen["fault"]
            self.clock = round(time.time() * 1000)

    def kill(self, stage: str) -> None:
        """Kill a stage, as its button does; what cannot be done is said on the panel."""
        try:
            self._kill(stage)
        except PipelineError as error:
            self.verdict = {"kind": "fault", "text": str(error)}
        self.refresh()

    async def verify(self) -> None:
        """Compare the table with the topic, and say what was found."""
        self.verdict = {"kind": "busy", "text": "verify reads the topic once more…"}
        try:
            report = await asyncio.to_thread(self._verify)
        except PipelineError as error:
            self.verdict = {"kind": "fault", "text": str(error)}
            return
        kind = "equal" if report.equal else "differs"
        self.verdict = {"kind": kind, "text": f"verify: {report.differing_bars:,} differ", "detail": str(report)}

    def stop(self) -> None:
        """Move no more. What is shown stays, and says that it is no longer live; the buttons are off."""
        self.refresh()
        for task in self._tasks:
            task.cancel()
        self.stopped = True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self.refresh()

    def _begin(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pressed(self, content: dict[str, Any]) -> None:
        """Do what a button asks for; a message may come in another thread than the loop's."""
        if self.stopped or self._loop is None:
            return
        if content.get("kind") == "kill":
            self._loop.call_soon_threadsafe(self.kill, str(content.get("stage")))
        elif content.get("kind") == "verify":
            self._loop.call_soon_threadsafe(lambda: self._begin(self.verify()))
