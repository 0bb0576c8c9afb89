"""`stocks stream`, killed with -9 at a point that only it can see: python killed_stream.py before|after python|java BATCH.

"before" is when a batch is computed and its transaction has not begun, "after" when the transaction has committed and Spark
does not know it yet. BATCH is the number of the batch, counted from 1. The product has no hook for this: the sink is wrapped.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import psutil

from pipeline_lib import pipeline
from pipeline_lib.config import Settings
from pipeline_lib.records import Batch
from pipeline_lib.store import Store


class KilledSink:
    """A store that ends the process at its point."""

    def __init__(self, store: Store, point: str, victim: str, batch: int) -> None:
        self.store, self.point, self.victim, self.left = store, point, victim, batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def commit_batch(self, batch: Batch, watermark_delay_ms: int) -> Any:
        """Commit as the store does, with death before or after it."""
        self.left -= 1
        if self.left == 0 and self.point == "before":
            self.die()
        result = self.store.commit_batch(batch, watermark_delay_ms)
        if self.left == 0:
            self.die()
        return result

    def die(self) -> None:
        if self.victim == "python":
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()
        for child in psutil.Process().children(recursive=True):
            if "org.apache.spark.deploy.SparkSubmit" in child.cmdline():
                child.kill()
                child.wait(10)


def main(point: str, victim: str, batch: str) -> None:
    settings = Settings.load()
    store = pipeline.open_store(settings)
    with store.only_stream():
        stream = pipeline.open_stream(settings, pipeline.open_spark(settings), store, report=print)
        stream.sink = KilledSink(store, point, victim, int(batch))
        stream.start().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
