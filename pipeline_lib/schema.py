"""The schema: created at first start, checked at every later one, and its views renewed.

What is wanted stands in sql/schema.sql and sql/views.sql alone: to compare, it is made for a moment in a schema that is
rolled back. Works on a cursor of the store's, its only caller, inside the store's transaction.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from pipeline_lib.errors import SchemaError

TABLES = (
    "pipeline_identity",
    "stream_offsets",
    "accepted_gaps",
    "stream_watermark",
    "stock_aggregates",
    "dead_letters",
    "query_progress",
    "stock_alerts",
    "feed_gaps",
    "symbol_freshness",
    "stage_state",
)
VIEWS = (
    "symbols",
    "watermark_now",
    "bars_1m",
    "bars_5m",
    "bars_15m",
    "bars_1h",
    "moving_averages",
    "session_vwap",
    "volatility",
    "latest_prices",
    "top_movers",
)

# What a rebuild keeps: the topic says nothing of it.
KEPT = ("stock_alerts", "feed_gaps", "symbol_freshness", "stage_state")

# Where a rebuild makes its tables, beside those in use.
REBUILT = "stocks_rebuilt"

# A number that no other program is likely to choose.
SCHEMA_LOCK = 7_220_414


def create_tables(cursor: Any) -> None:
    """Create the tables if there are none, else compare them; make the views anew if they differ.

    Raises SchemaError that shows each difference between the tables there and the ones wanted.
    """
    cursor.execute("select pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
    if not _are_there(cursor):
        cursor.execute(_read_sql("schema.sql"))
        cursor.execute(_read_sql("views.sql"))
        return
    wanted_views = _compare(cursor)
    if wanted_views != _describe_views(cursor, _current(cursor)):
        _drop_views(cursor)
        cursor.execute(_read_sql("views.sql"))


def check_tables(cursor: Any) -> bool:
    """Return whether there are tables, and change nothing.

    Raises SchemaError that shows each difference between the tables there and the ones wanted.
    """
    cursor.execute("select pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
    if not _are_there(cursor):
        return False
    _compare(cursor)
    return True


def _are_there(cursor: Any) -> bool:
    cursor.execute(
        "select exists (select from pg_class where relnamespace = current_schema()::text::regnamespace and relname = any(%s))",
        (list(TABLES),),
    )
    return bool(cursor.fetchone()[0])


def _compare(cursor: Any) -> dict[str, str]:
    """Return the views that are wanted; raises SchemaError if the tables differ from the ones wanted."""
    wanted_tables, wanted_views = _wanted(cursor)
    faults = _differences(wanted_tables, _describe_tables(cursor, _current(cursor)))
    if faults:
        raise SchemaError(
            f"cannot use the tables: {'; '.join(faults)}; undo that change, or make them again from the topic: `stocks rebuild`"
        )
    return wanted_views


def _current(cursor: Any) -> str:
    cursor.execute("select current_schema()::text")
    return str(cursor.fetchone()[0])


def clear_schema(cursor: Any) -> None:
    """Make the schema in which tables are rebuilt, empty; whatever a killed rebuild left there goes."""
    cursor.execute("select pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
    cursor.execute(f"drop schema if exists {REBUILT} cascade; create schema {REBUILT}")


def swap_tables(cursor: Any) -> None:
    """Put the rebuilt tables in the place of those in use, with the rights that these had; all in the caller's transaction.

    What the topic cannot tell is kept: the feed's freshness and gaps, alerts, the stages' last words, as long as their tables
    are as they should be. Raises SchemaError if something of somebody else's stands on the old tables.
    """
    cursor.execute("select pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
    cursor.execute("set local lock_timeout to '5s'; set local search_path to public")
    wanted, found = _describe_tables(cursor, REBUILT), _describe_tables(cursor)
    replaced = [table for table in TABLES if table not in KEPT or found.get(table) != wanted[table]]
    cursor.execute(
        "select c.relname, a.grantee::regrole::text, a.privilege_type, a.is_grantable, a.grantee = 0"
        " from pg_class c, aclexplode(c.relacl) a where c.relnamespace = 'public'::regnamespace and c.relname = any(%s)"
        " and a.grantee <> c.relowner",
        ([*TABLES, *VIEWS],),
    )
    rights = cursor.fetchall()
    _drop_views(cursor)
    for table in replaced:
        cursor.execute(f"drop table if exists public.{table}")
        cursor.execute(f"alter table {REBUILT}.{table} set schema public")
    cursor.execute(f"drop schema {REBUILT} cascade")
    cursor.execute(_read_sql("views.sql"))
    for relation, grantee, right, is_grantable, is_public in rights:
        to = "public" if is_public else grantee  # regrole quotes a name that needs it
        cursor.execute(f"grant {right} on public.{relation} to {to}{' with grant option' if is_grantable else ''}")


def _read_sql(name: str) -> str:
    return resources.files("pipeline_lib").joinpath("sql", name).read_text("utf-8")


def _describe_tables(cursor: Any, schema: str = "public") -> dict[str, dict[str, str]]:
    cursor.execute(
        "select c.relname, a.attname, format_type(a.atttypid, a.atttypmod) || case when a.attnotnull then ' not null' else '' end"
        " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        " where c.relnamespace = %s::regnamespace and c.relkind in ('r', 'p') and c.relname = any(%s)",
        (schema, list(TABLES)),
    )
    tables: dict[str, dict[str, str]] = {}
    for table, column, kind in cursor.fetchall():
        tables.setdefault(table, {})[column] = kind
    cursor.execute(
        "select c.relname, pg_get_constraintdef(k.oid) from pg_constraint k join pg_class c on c.oid = k.conrelid"
        " where c.relnamespace = %s::regnamespace and k.contype in ('p', 'u', 'c') and c.relname = any(%s)",
        (schema, list(TABLES)),
    )
    for table, definition in cursor.fetchall():
        tables[table][definition] = "present"
    return tables


def _describe_views(cursor: Any, schema: str = "public") -> dict[str, str]:
    cursor.execute(
        "select relname, pg_get_viewdef(oid) from pg_class where relnamespace = %(schema)s::regnamespace and relkind = 'v'"
        " union all select proname, prosrc from pg_proc where pronamespace = %(schema)s::regnamespace"
        " and proname in ('wider_bars', 'ema_step', 'ema')",
        {"schema": schema},
    )
    return {name: text.replace(f"{schema}.", "") for name, text in cursor.fetchall()}


def _wanted(cursor: Any) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    cursor.execute("savepoint before_wanted; create schema stocks_wanted; set local search_path to stocks_wanted")
    cursor.execute(_read_sql("schema.sql"))
    cursor.execute(_read_sql("views.sql"))
    wanted = _describe_tables(cursor, "stocks_wanted"), _describe_views(cursor, "stocks_wanted")
    cursor.execute("rollback to savepoint before_wanted")
    return wanted


def _drop_views(cursor: Any) -> None:
    cursor.execute(f"drop view if exists {', '.join(VIEWS)} cascade")
    cursor.execute(
        "drop function if exists wider_bars cascade; drop aggregate if exists ema (double precision, double precision);"
        " drop function if exists ema_step cascade"
    )


def _differences(wanted: dict[str, dict[str, str]], found: dict[str, dict[str, str]]) -> list[str]:
    faults = []
    for table, columns in wanted.items():
        if table not in found:
            faults.append(f"table {table} is missing")
            continue
        for name, kind in columns.items():
            there = found[table].get(name)
            if there is None:
                faults.append(f"{table} has no {name} ({kind})" if kind != "present" else f"{table} lacks {name}")
            elif there != kind:
                faults.append(f"{table}.{name} is {there}, should be {kind}")
        faults += [f"{table} has a {name} too many" for name in sorted(set(found[table]) - set(columns))]
    return faults
