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
    "recent_batches",
    "latency_budget",
    "tick_to_table",
)

# What a rebuild keeps: the topic says nothing of it.
KEPT = ("stock_alerts", "feed_gaps", "symbol_freshness", "stage_state")

# Where a rebuild makes its tables, beside those in use.
REBUILT = "stocks_rebuilt"

FUNCTIONS = ("wider_bars", "ema_step", "ema")

# A number that no other program is likely to choose.
SCHEMA_LOCK = 7_220_414


def create_tables(cursor: Any) -> str:
    """Create the tables if there are none, else compare them; make the views anew if they differ. Return the tables' shape.

    Raises SchemaError that shows each difference between the tables there and the ones wanted, or names the views of somebody
    else that stand on ours and would have to go.
    """
    cursor.execute("select pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
    if not _are_there(cursor):
        cursor.execute(_read_sql("schema.sql"))
        cursor.execute(_read_sql("views.sql"))
    elif _compare(cursor) != _describe_views(cursor, _current(cursor)):
        _drop_views(cursor)
        cursor.execute(_read_sql("views.sql"))
    return read_shape(cursor)


def check_tables(cursor: Any) -> bool:
    """Return whether there are tables, and change nothing.

    Raises SchemaError that shows each difference between the tables there and the ones wanted.
    """
    cursor.execute("select pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
    if not _are_there(cursor):
        return False
    _compare(cursor)
    return True


def read_shape(cursor: Any) -> str:
    """Return what stays the same as long as nobody alters the tables; it may also change where they differ in nothing.

    Costs a millisecond, so that it can be asked in every transaction: a column that was given another type takes what is
    written to it, and keeps less. Every alteration writes new rows of the catalog, which xmin tells apart.
    """
    cursor.execute(
        "select count(*), md5(string_agg(concat_ws(' ', c.oid, c.xmin, a.attnum, a.xmin, d.xmin), ',' order by c.oid, a.attnum))"
        " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0"
        " left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum"
        " where c.relnamespace = current_schema()::text::regnamespace and c.relkind in ('r', 'p') and c.relname = any(%s)",
        (list(TABLES),),
    )
    return str(cursor.fetchone())


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
    """Return for each table its columns with type, default and formula, its constraints, indexes, triggers and other traits.

    Names of constraints and indexes say nothing. Indexes that somebody added are left out, unless they are unique.
    """
    which = {"schema": schema, "tables": list(TABLES)}
    ours = " where c.relnamespace = %(schema)s::regnamespace and c.relkind in ('r', 'p') and c.relname = any(%(tables)s)"
    cursor.execute(
        "select c.relname, a.attname, format_type(a.atttypid, a.atttypmod) || case when a.attnotnull then ' not null' else '' end"
        " || case when a.attgenerated <> '' then ' generated as ' when d.oid is not null then ' default ' else '' end"
        " || coalesce(pg_get_expr(d.adbin, d.adrelid), '') || case when a.attidentity <> '' then ' identity' else '' end"
        " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        " left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum" + ours,
        which,
    )
    tables: dict[str, dict[str, str]] = {}
    for table, column, kind in cursor.fetchall():
        tables.setdefault(table, {})[column] = kind
    cursor.execute(
        "select c.relname, pg_get_constraintdef(k.oid) from pg_constraint k join pg_class c on c.oid = k.conrelid"
        + ours
        + " and k.contype in ('p', 'u', 'c', 'f', 'x')"
        " union all select c.relname, 'trigger ' || t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid"
        + ours
        + " and not t.tgisinternal"
        " union all select c.relname, case when c.relrowsecurity then 'row security' else 'unlogged' end from pg_class c"
        + ours
        + " and (c.relrowsecurity or c.relpersistence <> 'p')"
        " union all select c.relname, case when i.indisunique then 'unique ' else '' end || 'index '"
        " || substring(pg_get_indexdef(i.indexrelid) from 'USING .*') || case when i.indisvalid then '' else ' (not valid)' end"
        " from pg_index i join pg_class c on c.oid = i.indrelid"
        + ours
        + " and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))",
        which,
    )
    for table, definition in cursor.fetchall():
        tables[table][definition] = "present"
    return tables


def _describe_views(cursor: Any, schema: str = "public") -> dict[str, str]:
    cursor.execute(
        "select relname, pg_get_viewdef(oid) from pg_class where relnamespace = %(schema)s::regnamespace and relkind = 'v'"
        " and relname = any(%(views)s) union all select proname, prosrc from pg_proc where pronamespace = %(schema)s::regnamespace"
        " and proname = any(%(functions)s)",
        {"schema": schema, "views": list(VIEWS), "functions": list(FUNCTIONS)},
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
    """Drop our views and functions. Raises SchemaError, naming them, if views of somebody else stand on them."""
    cursor.execute(
        "select distinct format('%%I.%%I', n.nspname, v.relname) from pg_depend d join pg_rewrite r on r.oid = d.objid"
        " join pg_class v on v.oid = r.ev_class join pg_namespace n on n.oid = v.relnamespace"
        " left join pg_class c on d.refclassid = 'pg_class'::regclass and c.oid = d.refobjid"
        " left join pg_proc p on d.refclassid = 'pg_proc'::regclass and p.oid = d.refobjid"
        " where d.classid = 'pg_rewrite'::regclass"
        " and not (v.relnamespace = current_schema()::text::regnamespace and v.relname = any(%(views)s))"
        " and (c.relnamespace = current_schema()::text::regnamespace and c.relname = any(%(views)s)"
        " or p.pronamespace = current_schema()::text::regnamespace and p.proname = any(%(functions)s)) order by 1",
        {"views": list(VIEWS), "functions": list(FUNCTIONS)},
    )
    if others := [row[0] for row in cursor.fetchall()]:
        raise SchemaError(
            f"cannot renew the views: {', '.join(others)} of somebody else stand on them; keep their definition, drop them, "
            "and make them anew after the start"
        )
    # No cascade: what nobody has named above is not dropped either.
    cursor.execute(f"drop view if exists {', '.join(VIEWS)}")
    cursor.execute(
        "drop function if exists wider_bars; drop aggregate if exists ema (double precision, double precision);"
        " drop function if exists ema_step"
    )


def _differences(wanted: dict[str, dict[str, str]], found: dict[str, dict[str, str]]) -> list[str]:
    faults = []
    for table, parts in wanted.items():
        if table not in found:
            faults.append(f"table {table} is missing")
            continue
        for name, kind in parts.items():
            there = found[table].get(name)
            if there is None:
                faults.append(f"{table} has no {name} ({kind})" if kind != "present" else f"{table} lacks {name}")
            elif there != kind:
                faults.append(f"{table}.{name} is {there}, should be {kind}")
        # An index of somebody's own makes nothing wrong.
        more = sorted(name for name in set(found[table]) - set(parts) if not name.startswith("index "))
        faults += [f"{table} has a {name} too many" for name in more]
    return faults
