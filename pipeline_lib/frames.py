"""Ticks, messages, offsets and checks as DataFrames, for a person to look at. Called by the notebooks.

It reads nothing: what it shows is handed to it. Tables of PostgreSQL are DataFrames already (store.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.config import Settings, find_project_home
from pipeline_lib.records import Message, Tick

BYTES_A_ROW = 16


def ticks(found: Iterable[Tick]) -> pd.DataFrame:
    """Return one row a tick, in the order given, with both times as timestamps in UTC. Columns are the contract's fields."""
    frame = pd.DataFrame([{name: getattr(tick, name) for name in Tick.__struct_fields__} for tick in found], columns=Tick.__struct_fields__)
    for name in ("event_time", "receipt_time"):
        frame[name] = pd.to_datetime(frame[name], unit="ms", utc=True)
    return frame


def messages(found: Iterable[Message]) -> pd.DataFrame:
    """Return one row a message: partition, offset, broker_time, key and value as text; bytes that are no text show as �."""
    rows = [(message.partition, message.offset, message.timestamp, _text(message.key), _text(message.value)) for message in found]
    frame = pd.DataFrame(rows, columns=["partition", "offset", "broker_time", "key", "value"])
    frame["broker_time"] = pd.to_datetime(frame["broker_time"], unit="ms", utc=True)
    return frame


def offsets(ranges: Mapping[int, tuple[int, int]]) -> pd.DataFrame:
    """Return one row a partition: the earliest offset it holds, the latest, which the next message gets, and the difference."""
    frame = pd.DataFrame([(part, *ranges[part]) for part in sorted(ranges)], columns=["partition", "earliest", "latest"])
    frame["messages"] = frame["latest"] - frame["earliest"]
    return frame.set_index("partition")


def hexdump(value: bytes) -> pd.DataFrame:
    """Return one row for every 16 bytes: the position of the first, the bytes in hexadecimal, and as text where they are ASCII."""
    pieces = [(start, value[start : start + BYTES_A_ROW]) for start in range(0, len(value), BYTES_A_ROW)]
    rows = [(start, piece.hex(" "), "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)) for start, piece in pieces]
    return pd.DataFrame(rows, columns=["position", "bytes", "text"]).set_index("position")


def services(found: Iterable[Any]) -> pd.DataFrame:
    """Return one row a service: state, version, address."""
    rows = [(status.name, status.state, status.version, status.address) for status in found]
    return pd.DataFrame(rows, columns=["service", "state", "version", "address"]).set_index("service")


def checks(found: Iterable[Any]) -> pd.DataFrame:
    """Return one row a check of the doctor: verdict, found, remedy; folders are shortened."""
    rows = [(check.name, check.verdict, _short(check.found), _short(check.remedy or "")) for check in found]
    return pd.DataFrame(rows, columns=["check", "verdict", "found", "remedy"]).set_index("check")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", errors="replace")


def _short(text: str) -> str:
    folders = (sys.prefix, Settings.load().pipeline_home.absolute(), find_project_home(), Path.home())
    for folder, sign in zip(folders, ("the environment", ".pipeline", ".", "~"), strict=True):
        text = text.replace(str(folder), sign)
    return text
