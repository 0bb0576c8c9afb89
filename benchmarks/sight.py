"""When which messages are visible in the table: a reader that is notified of each commit, and looks with its own clock.

What it sees is committed: no stamp of the writer is taken for it. Called by the parts.
"""

from __future__ import annotations

import json
import select
import threading
import time
from typing import Any, NamedTuple

import psycopg2

from pipeline_lib.commits import NOTIFY_CHANNEL

_OFFSETS = "select json_object_agg(partition, next_offset), (select max(committed_at) from query_progress) from stream_offsets"


class Sighting(NamedTuple):
    """At a time (epoch seconds) all messages before these offsets were in the table; the stamp is the last batch's `committed_at`."""

    at: float
    next_offsets: dict[int, int]
    committed_at: float | None = None


class Reader:
    """Notes each commit of a database, from when it is made until the context is left.

    ``told`` takes the offsets from the notification itself, as the plain loop gives them.
    """

    def __init__(self, url: str, *, told: bool = False) -> None:
        self.sightings: list[Sighting] = []
        self._told = told
        self._stopping, self._seen = threading.Event(), threading.Condition()
        self._error: Exception | None = None
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            cursor.execute(f"listen {NOTIFY_CHANNEL}")
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if not select.select([self._connection], [], [], 0.2)[0]:
                    continue
                self._connection.poll()
                if self._connection.notifies:
                    payload = self._connection.notifies[-1].payload
                    self._connection.notifies.clear()
                    self._note(self._read(payload))
        except (psycopg2.Error, ValueError) as error:
            self._error = error
            with self._seen:
                self._seen.notify_all()

    def _read(self, payload: str) -> Sighting:
        if self._told:
            offsets, committed_at = json.loads(payload), None
        else:
            with self._connection.cursor() as cursor:
                cursor.execute(_OFFSETS)
                ((offsets, stamp),) = cursor.fetchall()
                committed_at = stamp.timestamp() if stamp else None
        return Sighting(time.time(), {int(part): offset for part, offset in offsets.items()}, committed_at)

    def _note(self, sighting: Sighting) -> None:
        with self._seen:
            self.sightings.append(sighting)
            self._seen.notify_all()

    def wait(self, ends: dict[int, int], seconds: float) -> Sighting:
        """Return the first sighting of all messages before these offsets. Ends the bench if there is none in that time."""

        def found() -> Any:
            return self._error or next((each for each in self.sightings if covers(each, ends)), None)

        with self._seen:
            sighting = self._seen.wait_for(found, seconds)
        if isinstance(sighting, Sighting):
            return sighting
        seen = self.sightings[-1].next_offsets if self.sightings else "nothing"
        raise SystemExit(f"cannot measure: {ends} were not seen after {seconds:.0f} s, but {self._error or seen}")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._connection.close()


def covers(sighting: Sighting, ends: dict[int, int]) -> bool:
    """Return whether all messages before these offsets were seen."""
    return all(sighting.next_offsets.get(part, 0) >= end for part, end in ends.items())
