"""What PostgreSQL's errors mean for the one who met them: whether waiting helps, and what to do.

A fault that passes, or that somebody mends while we wait, is retriable: the batch is read again. One of the schema or of
rights is not: it would skip nothing and mend nothing to go on. Called by the store alone.
"""

from __future__ import annotations

from typing import Any

import psycopg2

from pipeline_lib.errors import PipelineError, SchemaError, UnavailableError

# SQLSTATE, or the class that its first two characters are, and what is said of it: the server is there, and cannot now.
_PASSING = {
    "08": "the connection was lost; is it running? (`stocks status`)",
    "25P03": "a transaction stood still for longer than it allows; it is tried again",
    "25006": "it takes no writes: it is a stand-by, or has been made read-only; it is tried again",
    "40": "another transaction was in the way; it is tried again",
    "53100": "free its disk: what waits goes on by itself",
    "53200": "it has no memory left; it is tried again",
    "53300": "it has too many connections: close some, or raise max_connections; it is tried again",
    "53": "it is short of something; it is tried again",
    "55P03": "a lock is held by somebody else; it is tried again",
    "57014": "the statement was cancelled, by hand or by statement_timeout; it is tried again",
    "57P": "it was stopped or is starting; is it running? (`stocks status`)",
    "58": "its disk does not work as it should: see its log; it is tried again",
}
_RIGHTS = ("28", "42501")
_SCHEMA = ("0A", "22", "23", "42", "3F")

# A server that refuses a new connection says so in words alone: psycopg2 knows no SQLSTATE of it.
_REFUSED_FOR_GOOD = ("password authentication failed", "permission denied for database", "does not exist", "is not permitted to log in")
_REFUSED_FOR_NOW = {"too many clients": "53300", "too many connections": "53300", "remaining connection slots": "53300"}


def translate(error: psycopg2.Error, address: str) -> PipelineError:
    """Return the error as one of ours; `address` is the server's, without its password."""
    said = first_line(error)
    code = error.pgcode or next((code for words, code in _REFUSED_FOR_NOW.items() if words in said), "")
    if passing := _words_of(code):
        verb = "cannot write into PostgreSQL" if code == "53100" else "cannot use PostgreSQL"
        return UnavailableError(f"{verb} at {address}: {said}; {passing}")
    if code.startswith(_RIGHTS):
        return PipelineError(f"cannot use the tables: {said}; grant the right to this user")
    if code == "2BP01":
        on_it = (error.diag.message_detail or "").splitlines()[:1]
        return SchemaError(f"cannot use the tables: {said}: {' '.join(on_it)}; drop it, and make it anew afterwards")
    if code.startswith(_SCHEMA):
        return SchemaError(f"cannot use the tables: {said}; undo that change: `stocks doctor` compares them")
    if code:
        return PipelineError(f"cannot use PostgreSQL at {address}: {said} (SQLSTATE {code}); see its log")
    if not _is_of_the_connection(error):
        return PipelineError(f"cannot ask PostgreSQL at {address}: {said}; please report this as a fault")
    if any(words in said for words in _REFUSED_FOR_GOOD):
        return PipelineError(f"cannot use PostgreSQL at {address}: {said}; correct DATABASE_URL, or grant the right to this user")
    return UnavailableError(f"cannot use PostgreSQL at {address}: {said}; is it running? (`stocks status`)")


def is_lost(error: psycopg2.Error, connection: Any) -> bool:
    """Return whether the connection is of no more use after this error."""
    code = error.pgcode or ""
    return bool(connection.closed) or code.startswith(("08", "25", "57P")) or (not code and _is_of_the_connection(error))


def _is_of_the_connection(error: psycopg2.Error) -> bool:
    """Return whether an error without SQLSTATE is the network's or the server's, not psycopg2's word about our own question."""
    return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) or type(error) is psycopg2.DatabaseError


def first_line(error: BaseException) -> str:
    """Return what the error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _words_of(code: str) -> str | None:
    return next((_PASSING[code[:length]] for length in (5, 3, 2) if code[:length] in _PASSING), None)
