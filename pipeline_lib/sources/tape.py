"""Tapes: recorded ticks in files. Read, counted and written here; what plays one at a pace is `replay`.

A tape is one of three things:

- `NAME.jsonl`: a message's JSON on each line, in the order of delivery;
- `NAME.parquet`: a row for each message, a column for each field: see `parquet_rows`;
- a folder of LEAN's trade ticks, `SYMBOL/YYYYMMDD_trade.zip`, each with one CSV without a header: milliseconds since
  midnight in New York, price x 10000, shares, exchange, sale conditions as hexadecimal flags, suspicious (0 or 1).
  Read as one tape, merged in the order of time; of trades in one millisecond, in the order of symbols, and within a symbol
  in the order of the file. (github.com/QuantConnect/Lean, Data/equity/readme.md.)

A line or row that is no tick is passed over and counted, with the first one's place and reason, and a torn tape is read up
to the tear: see `Tape.bad`.
"""

from __future__ import annotations

import datetime as dt
import heapq
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa

from pipeline_lib.errors import MessageError, TapeError
from pipeline_lib.records import SCHEMA_VERSION, Tick, decode_value, encode_tick, tick_from_fields
from pipeline_lib.sources.market_hours import NEW_YORK
from pipeline_lib.sources.parquet_rows import count_rows, open_rows, write_rows

_LEAN_NAME = re.compile(r"^(\d{8})_trade\.zip$")
_KINDS_OF_TAPE = "a tape is a .jsonl or .parquet file of ticks, or a folder of LEAN trade zips (SYMBOL/YYYYMMDD_trade.zip)"


class BadLines:
    """How many lines of a tape were no ticks, where and why the first was none, and what a torn end has cost."""

    def __init__(self) -> None:
        self.count = 0
        self.first: str | None = None
        self.torn: str | None = None  # if the tape has a torn end: up to where it was read, and what is lost

    def add(self, place: str, reason: str) -> None:
        """Count one more."""
        self.count += 1
        self.first = self.first or f"{place}: {reason}"


class Tape:
    """The ticks of a file or folder, read as they are asked for: memory does not grow with the tape.

    Each iteration reads the tape anew. Raises TapeError at once if there is no tape, and while reading if it cannot be
    read on.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.bad = BadLines()
        self._read, self._count = self._find_format()

    def __iter__(self) -> Iterator[Tick]:
        self.bad = BadLines()
        return self._read(self.path, self.bad)

    @cached_property
    def total(self) -> int:
        """How many ticks there are, counting lines that turn out to be none."""
        with _explained(self.path):
            return self._count(self.path)

    def _find_format(self) -> tuple[Callable[[Path, BadLines], Iterator[Tick]], Callable[[Path], int]]:
        if not self.path.exists():
            raise TapeError(f"cannot read the tape {self.path}: there is no such file or folder; {_KINDS_OF_TAPE}")
        if self.path.is_dir():
            if not _lean_days(self.path):
                raise TapeError(f"cannot read the tape {self.path}: the folder has no LEAN trade zips; {_KINDS_OF_TAPE}")
            return _read_lean, _count_lean
        if self.path.suffix == ".parquet":
            return _read_parquet, count_rows
        if self.path.suffix == ".jsonl":
            return _read_json_lines, _count_json_lines
        raise TapeError(f"cannot read the tape {self.path}: its name ends in {self.path.suffix!r}; {_KINDS_OF_TAPE}")


def write_tape(ticks: Iterable[Tick], path: str | Path) -> int:
    """Write the ticks to a .jsonl or .parquet file, in their order; return how many they were.

    The file has its name only when it is complete; one that was there before is replaced then, and not before.
    """
    path = Path(path)
    write = {".jsonl": _write_json_lines, ".parquet": write_rows}.get(path.suffix)
    if write is None:
        raise TapeError(f"cannot write the tape {path}: its name ends in {path.suffix!r}; give it one that ends in .jsonl or .parquet")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.touch()
        written = write(ticks, unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise TapeError(f"cannot write the tape {path}: {error.strerror or error}; choose another place for it") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return written


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what goes wrong when a file is read into a TapeError that names it."""
    try:
        yield
    # A zip with a password is a RuntimeError.
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TapeError(f"cannot read the tape {path}: {what}; record it again, or take another one") from error


def _read_json_lines(path: Path, bad: BadLines) -> Iterator[Tick]:
    read = 0
    with _explained(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if text := line.strip():
                try:
                    yield decode_value(text)
                    read += 1
                except MessageError as error:
                    bad.add(f"{path.name} line {number}", str(error))
                    if not line.endswith(b"\n"):
                        bad.torn = f"{read:,} ticks before the tear were read, {len(line):,} bytes of line {number} are lost"


def _read_parquet(path: Path, bad: BadLines) -> Iterator[Tick]:
    with _explained(path), open_rows(path) as rows:
        bad.torn = rows.torn
        for number, fields in enumerate(rows, 1):
            try:
                yield tick_from_fields(fields)
            except MessageError as error:
                bad.add(f"{path.name} row {number}", str(error))


def _count_json_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if not line.isspace())


def _write_json_lines(ticks: Iterable[Tick], path: Path) -> int:
    written = 0
    with path.open("wb") as file:
        for tick in ticks:
            file.write(encode_tick(tick) + b"\n")
            written += 1
    return written


def _lean_days(folder: Path) -> list[Path]:
    """Return the folder's LEAN zips, by date and then by symbol."""
    return sorted((path for path in folder.glob("*/*.zip") if _LEAN_NAME.match(path.name)), key=lambda path: (path.name, path.parent.name))


def _read_lean(folder: Path, bad: BadLines) -> Iterator[Tick]:
    # A New York day holds its own trades only, so days follow each other, and no more than one day's files are open.
    for _, paths in groupby(_lean_days(folder), key=attrgetter("name")):
        yield from heapq.merge(*(_read_lean_day(path, bad) for path in paths), key=attrgetter("event_time"))


def _read_lean_day(path: Path, bad: BadLines) -> Iterator[Tick]:
    """Return the trades of one symbol on one day.

    Suspicious trades are kept, and say so in their conditions: the exchange reported them, and LEAN's own bars count them.
    """
    symbol, prefix = path.parent.name.upper(), f"lean-{path.parent.name.lower()}-{path.name[:8]}-"
    with _explained(path), _open_lean_day(path) as lines:
        midnight = _midnight(path)
        for number, line in enumerate(lines, 1):
            try:
                since_midnight, price, volume, _exchange, flags, suspicious = line.rstrip().split(",")
                event_time = midnight + int(since_midnight)
                yield tick_from_fields(
                    {
                        "schema": SCHEMA_VERSION,
                        "id": f"{prefix}{number}",
                        "kind": "trade",
                        "symbol": symbol,
                        "price": int(price) / 10_000,
                        "volume": float(volume),
                        "event_time": event_time,
                        "receipt_time": event_time,
                        "source": "replay",
                        "conditions": [flags] if suspicious == "0" else [flags, "suspicious"],
                    }
                )
            except (ValueError, OverflowError, MessageError) as error:
                bad.add(f"{path.parent.name}/{path.name} row {number}", str(error))


def _midnight(path: Path) -> int:
    """Return when the day of a LEAN zip begins in New York, in epoch milliseconds: 04:00 UTC in summer, 05:00 in winter."""
    try:
        return int(dt.datetime.strptime(path.name[:8], "%Y%m%d").replace(tzinfo=ZoneInfo(NEW_YORK)).timestamp()) * 1_000
    except ValueError:
        raise TapeError(f"cannot read the tape {path}: {path.name[:8]} is no date; the name must be YYYYMMDD_trade.zip") from None


def _count_lean(folder: Path) -> int:
    total = 0
    for path in _lean_days(folder):
        with _explained(path), _open_lean_day(path) as lines:
            total += sum(1 for _ in lines)
    return total


@contextmanager
def _open_lean_day(path: Path) -> Iterator[io.TextIOWrapper]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise TapeError(f"cannot read the tape {path}: the zip holds {len(names)} files; a LEAN zip holds one CSV")
        with archive.open(names[0]) as binary, io.TextIOWrapper(binary, "ascii", errors="replace", newline="") as lines:
            yield lines
