"""Live views of the notebooks: a bar or a few lines whose values change while a cell runs.

They display nothing themselves: a cell names one at its end, and a later cell makes it follow something. What is
followed is handed over; nothing is started or stopped here. The dashboard is another thing (dashboard.py).
"""

from __future__ import annotations

import asyncio
import html
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ipywidgets

from pipeline_lib.errors import PipelineError

POLL_SECONDS = 0.1
SHOWN_CHARACTERS = 96


class View(ipywidgets.VBox):
    """What all live views have in common: in a stored notebook, where nothing moves, they say what they are."""

    about = "a live view"

    def __repr__(self) -> str:
        return f"({self.about}: it moves while the notebook runs)"


class PublishProgress(View):
    """A bar of the ticks that the broker has acknowledged. Hand `show` to whoever publishes."""

    about = "a live bar of the ticks acknowledged"

    def __init__(self, total: int | None) -> None:
        self.bar = ipywidgets.IntProgress(max=total or 1, layout={"width": "100%"})
        self.words = ipywidgets.HTML("nothing published yet")
        super().__init__([self.bar, self.words])

    def show(self, report: Any) -> None:
        """Show a publish report."""
        self.bar.max = max(self.bar.max, report.sent)
        self.bar.value = report.acknowledged
        self.words.value = html.escape(str(report))


class StreamProgress(View):
    """A bar of the messages that a stream has committed, out of `total`, and the last micro-batch in words."""

    about = "a live bar of the messages committed"

    def __init__(self, total: int) -> None:
        self.bar = ipywidgets.IntProgress(max=max(total, 1), layout={"width": "100%"})
        self.words = ipywidgets.HTML("no micro-batch yet")
        self._stream: Any = None
        self._before = 0
        super().__init__([self.bar, self.words])

    def follow(self, stream: Any, messages: int, seconds: float = 120) -> None:
        """Follow the stream until it has committed so many messages since it started, or has ended.

        Raises the error that ended the stream, or PipelineError if it takes longer than `seconds`.
        """
        if stream is not self._stream:
            self._stream, self._before = stream, self.bar.value
        deadline = time.monotonic() + seconds
        while stream.committed_rows < messages and not stream.wait(POLL_SECONDS):
            self._show(stream)
            if time.monotonic() > deadline:
                raise PipelineError(
                    f"cannot wait longer for the stream: it has committed {stream.committed_rows:,} of {messages:,} messages "
                    f"in {seconds:g} s and is {stream.state}; see the log of Spark"
                )
        self._show(stream)

    def _show(self, stream: Any) -> None:
        self.bar.value = self._before + stream.committed_rows
        last = stream.progress[-1] if stream.progress else None
        if last is not None:
            self.words.value = (
                f"{self.bar.value:,} of {self.bar.max:,} messages; {stream.state}; micro-batch {last['batch_id']}: {last['input_rows']:,} "
                f"messages, {last['bars']:,} bars, Spark {last['aggregate_ms']:,} ms, PostgreSQL {last['commit_ms']:,} ms"
            )


class TailView(View):
    """The last few messages of a topic, as they come."""

    about = "a live tail of the topic"

    def __init__(self, lines: int = 8) -> None:
        self.words = ipywidgets.HTML()
        self._lines: deque[str] = deque(maxlen=lines)
        super().__init__([self.words])
        self._show(0)

    def follow(self, tail: Any, messages: int, seconds: float = 30) -> int:
        """Show what comes, until so many messages have come or the time is over; return how many came."""
        came, deadline = 0, time.monotonic() + seconds
        while came < messages and (left := deadline - time.monotonic()) > 0:
            found = tail.poll(round(min(1.0, left) * 1000))
            came += len(found)
            self._lines.extend(f"{each.partition}  {each.offset:>7}  {_shortened(each.value)}" for each in found)
            self._show(came)
        return came

    def _show(self, came: int) -> None:
        head = f"{came:,} messages came; partition, offset, value:"
        self.words.value = f"<pre>{html.escape(chr(10).join((head, *self._lines)))}</pre>"


def _shortened(value: bytes | None) -> str:
    text = "" if value is None else value.decode("utf-8", errors="replace")
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether the condition came true within that time; live widgets go on moving meanwhile."""
    deadline = time.monotonic() + seconds
    while not (fulfilled := await asyncio.to_thread(condition)) and time.monotonic() < deadline:
        await asyncio.sleep(POLL_SECONDS)
    return fulfilled
