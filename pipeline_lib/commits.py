"""Commits as they happen: a connection that PostgreSQL tells of every micro-batch, and what a page then loads.

No thread waits in it: its socket is watched by the caller, who asks `hear` when there is something to read. The dashboard is
given one, made by `Store.watch_commits`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import sql

from pipeline_lib import pg_faults
from pipeline_lib.config import masked_url
from pipeline_lib.database import Database
from pipeline_lib.errors import UnavailableError

if TYPE_CHECKING:
    import pandas as pd

    from pipeline_lib.readings import Readings
    from pipeline_lib.records import Commit

NOTIFY_CHANNEL = "stock_pipeline"


class CommitWatch(Database):
    """Tells of commits: connect, wait until `fileno` is readable, then `hear`.

    Told of are those after `connect`; what was missed while there was no connection is known by polling alone.
    """

    def __init__(self, readings: Readings) -> None:
        super().__init__(readings.url)
        self._readings = readings

    def connect(self) -> None:
        """Listen from now on. Raises UnavailableError, or PipelineError where waiting does not help."""
        with self._lock:
            self.close()
            self._connection = self._connect()

    def _claim(self, connection: Any) -> None:
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL("listen {}").format(sql.Identifier(NOTIFY_CHANNEL)))
        except psycopg2.Error as error:
            raise pg_faults.translate(error, masked_url(self.url)) from error

    def fileno(self) -> int:
        """Return the number of the socket to be watched. Raises UnavailableError if the connection is gone."""
        return int(self._listening().fileno())

    def hear(self) -> list[int]:
        """Return the batch_ids of the commits that PostgreSQL has told of since this was asked last; does not wait.

        Raises UnavailableError if the connection is gone.
        """
        connection = self._listening()
        try:
            connection.poll()
        except psycopg2.Error as error:
            connection.close()
            raise pg_faults.translate(error, masked_url(self.url)) from error
        heard = [int(notice.payload) for notice in connection.notifies]
        connection.notifies.clear()
        return heard

    def _listening(self) -> Any:
        if self._connection is None or self._connection.closed:
            raise UnavailableError("cannot hear of commits: the connection to PostgreSQL is closed; connect again")
        return self._connection

    def load_commits(self, since: float | None) -> list[Commit]:
        """Return the micro-batches committed after `since`, epoch milliseconds; of None the last one alone."""
        return self._readings.load_commits(since)

    def load_last_prices(self) -> pd.DataFrame:
        """Return one row a symbol: symbol, price, event_time, receipt_time, updated_at. Costs the same however many bars there are."""
        return self._readings.load_last_prices()

    def load_budget(self) -> pd.DataFrame:
        """Return where the time goes up to the table: Readings.load_budget."""
        return self._readings.load_budget()

    def load_delays(self) -> pd.DataFrame:
        """Return how long ticks take to the table: Readings.load_delays."""
        return self._readings.load_delays()
