"""One connection to PostgreSQL: made when first used, replaced when it has died, its errors in our words.

It knows no table. Readings and Store build on it; databases beside a given one are made and dropped here too.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2
from psycopg2 import sql

from pipeline_lib import pg_faults
from pipeline_lib.config import masked_url
from pipeline_lib.errors import PipelineError

CONNECT_TIMEOUT_SECONDS = 5


class Database:
    """One database. Connects when first used; a connection that died is replaced at the next use.

    One transaction at a time, from whichever thread.
    """

    def __init__(self, url: str, schema_name: str = "public") -> None:
        self.url, self._schema_name = url, schema_name
        self._lock = threading.RLock()
        self._connection: Any = None

    def _connect(self) -> Any:
        try:
            connection = psycopg2.connect(
                self.url,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                application_name="stocks",
                # A connection whose server or network has gone is noticed within seconds, not hours; by the server likewise,
                # since it keeps the right to write for as long as it believes in the connection.
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                options=f"-c timezone=UTC -c client_min_messages=warning -c search_path={self._schema_name}"
                " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3",
            )
        except psycopg2.OperationalError as error:
            raise pg_faults.translate(error, masked_url(self.url)) from None
        try:
            self._claim(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _claim(self, connection: Any) -> None:
        """Take what a new connection needs before it is used; nothing, unless a subclass says so."""

    @contextlib.contextmanager
    def _transaction(self, *, read_only: bool = False, repeatable: bool = False) -> Iterator[Any]:
        """Yield a cursor; commit at the end, roll back on any error, drop a connection that has died."""
        with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            connection = self._connection
            try:
                connection.set_session(isolation_level="REPEATABLE READ" if repeatable else "READ COMMITTED", readonly=read_only)
                with connection, connection.cursor() as cursor:
                    yield cursor
            except psycopg2.Error as error:
                if pg_faults.is_lost(error, connection):
                    connection.close()
                raise pg_faults.translate(error, masked_url(self.url)) from error

    def close(self) -> None:
        """Close the connection; a later use opens another."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()


def create_database(url: str, name: str, template: str = "template1") -> str:
    """Return the address of a new database beside the one of `url`: empty, or a copy of one that nobody is connected to.

    Raises UnavailableError or PipelineError.
    """
    _administer(url, sql.SQL("create database {} template {}").format(*map(sql.Identifier, (name, template))))
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/{name}"))


def drop_database(url: str, name: str) -> None:
    """Drop a database beside the one of `url`, and end what this user still has connected to it.

    Without FORCE, which is refused to all but a superuser while the server's own autovacuum is at work there.
    """
    own = "select pg_terminate_backend(pid) from pg_stat_activity where datname = {} and usename = current_user and pid <> pg_backend_pid()"
    _administer(url, sql.SQL(own).format(sql.Literal(name)))
    _administer(url, sql.SQL("drop database if exists {}").format(sql.Identifier(name)))


def _administer(url: str, statement: sql.Composed) -> None:
    try:
        connection = psycopg2.connect(url, connect_timeout=CONNECT_TIMEOUT_SECONDS, application_name="stocks")
    except psycopg2.OperationalError as error:
        raise pg_faults.translate(error, masked_url(url)) from None
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    except psycopg2.Error as error:
        said = pg_faults.first_line(error)
        raise PipelineError(f"cannot make or drop a database: {said}; the user needs the right CREATEDB") from error
    finally:
        connection.close()
