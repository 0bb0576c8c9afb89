"""Stopping a stream: the one race that a real query shows once in many stops, made certain by a query of our own."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

from pipeline_lib.stream import Plan, Stream, remove_checkpoints


class Query:
    """As Spark's does, `stop` waits for the callback that has just begun."""

    isActive = True
    lastProgress = None

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.refusals: list[Exception] = []
        self.is_stuck = False

    def _callback(self) -> None:
        messages: Any = None
        try:
            self._stream._on_batch(messages, 0)
        except Exception as error:
            self.refusals.append(error)

    def stop(self) -> None:
        callback = Thread(target=self._callback, daemon=True)
        callback.start()
        callback.join(5)
        self.is_stuck = callback.is_alive()


def test_a_batch_that_begins_while_the_stream_stops_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    plan = Plan("127.0.0.1:1", "topic", dict, set, lambda: None, 10_000, "10 seconds", "500 milliseconds", 1, tmp_path)
    nobody: Any = None
    stream = Stream(nobody, plan, nobody)
    query = Query(stream)
    stream._query = query  # type: ignore[assignment]
    stream.stop()
    assert not query.is_stuck
    assert [str(error) for error in query.refusals] == ["the stream is being stopped: this batch is read next time"]
    assert stream.state == "stopped"


def test_checkpoints_go_away_all_at_once(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "query-1-a" / "offsets").mkdir(parents=True)
    remove_checkpoints(checkpoints)
    assert list(tmp_path.iterdir()) == []
