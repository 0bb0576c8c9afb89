"""Live views of the notebooks, by their traits: they follow until what they wait for has come, and not for ever."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline_lib.errors import PipelineError, UnavailableError
from pipeline_lib.producer import PublishReport
from pipeline_lib.records import Message
from pipeline_lib.views import PublishProgress, StreamProgress, TailView, until


class Stream:
    """Commits a batch of 10 messages whenever it is waited for, up to a last one."""

    def __init__(self, last: int, error: Exception | None = None) -> None:
        self.committed_rows, self.state, self.progress = 0, "running", []
        self._last, self._error = last, error

    def wait(self, seconds: float) -> bool:
        if self.committed_rows >= self._last:
            if self._error:
                raise self._error
            return self.state == "stopped"
        self.committed_rows += 10
        self.progress: list[Any] = [{"batch_id": self.committed_rows // 10, "input_rows": 10, "bars": 2, "aggregate_ms": 1, "commit_ms": 1}]
        return False


def test_progress_goes_on_where_the_stream_before_has_ended() -> None:
    view = StreamProgress(100)
    view.follow(Stream(last=100), 50)
    assert view.bar.value == 50
    second = Stream(last=100)
    view.follow(second, 10)
    view.follow(second, 50)
    assert view.bar.value == view.bar.max == 100
    assert "100 of 100 messages" in view.words.value


def test_a_stream_that_stands_still_is_not_followed_for_ever() -> None:
    with pytest.raises(PipelineError, match="cannot wait longer for the stream: it has committed 0 of 50 messages"):
        StreamProgress(100).follow(Stream(last=0), 50, seconds=0)


def test_the_error_that_ends_a_stream_is_raised_to_whoever_follows_it() -> None:
    with pytest.raises(UnavailableError, match="gone"):
        StreamProgress(100).follow(Stream(last=20, error=UnavailableError("gone")), 50)


def test_publishing_shows_what_is_acknowledged() -> None:
    view = PublishProgress(None)
    view.show(PublishReport(sent=30, acknowledged=20, failed=0, resent=0, seconds=1))
    assert (view.bar.value, view.bar.max) == (20, 30)


def test_a_tail_shows_the_last_lines_and_escapes_them() -> None:
    polls = iter([[Message(0, offset, 0, None, b"<b>%d" % offset) for offset in range(20)], [Message(1, 0, 0, None, None)]])
    view = TailView(lines=3)
    assert view.follow(SimpleNamespace(poll=lambda timeout_ms: next(polls)), 21) == 21
    assert "&lt;b&gt;19" in view.words.value and "<b>" not in view.words.value
    assert "&lt;b&gt;17" not in view.words.value


def test_a_view_says_in_a_stored_notebook_what_it_is() -> None:
    assert repr(TailView()) == "(a live tail of the topic: it moves while the notebook runs)"


def test_until_lets_the_loop_go_on_and_gives_up_in_time() -> None:
    async def both() -> tuple[bool, bool]:
        came: list[int] = []
        asyncio.get_running_loop().call_later(0.05, came.append, 1)
        return await until(lambda: bool(came), 10), await until(lambda: False, 0.05)

    assert asyncio.run(both()) == (True, False)
