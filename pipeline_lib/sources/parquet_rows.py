"""Ticks as rows of a Parquet file that can be read after its end is torn off.

A Parquet file can be read by the index at its end, and by nothing else. So behind each part of some thousand rows stands an
index of this part alone. Other programs pass over it, since the index at the end says where the rows are; here it makes
a Parquet file of each part that is whole. Called by `tape`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Self

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.errors import TapeError
from pipeline_lib.records import Tick

# About 200 kB of trades: what a tear may cost at most. An index of a part takes 3 kB.
PART_ROWS = 5_000
_MAGIC = b"PAR1"
_BATCH_ROWS = 20_000

# The columns are the message's fields, in its order. A test holds them to Tick.
PARQUET_SCHEMA = pa.schema(
    [
        pa.field("schema", pa.int16(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("price", pa.float64(), nullable=False),
        pa.field("volume", pa.float64()),
        pa.field("event_time", pa.int64(), nullable=False),
        pa.field("receipt_time", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("conditions", pa.list_(pa.string())),
        pa.field("repeat", pa.string()),
        pa.field("day_open", pa.float64()),
        pa.field("day_high", pa.float64()),
        pa.field("day_low", pa.float64()),
        pa.field("previous_close", pa.float64()),
        pa.field("change", pa.float64()),
        pa.field("percent_change", pa.float64()),
    ]
)
_REQUIRED = {field.name for field in PARQUET_SCHEMA if not field.nullable}


class Rows:
    """The rows of a file, each a dictionary of the columns that are fields. `torn` says what a torn end has cost, else it is None.

    Raises TapeError if a column that has to be there is not.
    """

    def __init__(self, path: Path) -> None:
        self.torn: str | None = None
        self._path = path
        self._open = ExitStack()
        try:
            self._tables: Iterable[pq.ParquetFile] = [self._open.enter_context(pq.ParquetFile(path))]
        except pa.ArrowInvalid:
            parts, number, lost = find_parts(path)
            if not parts:
                raise
            self.torn = f"{number:,} ticks before the tear were read, {lost:,} bytes after them are lost"
            self._tables = _open_parts(path, parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for table in self._tables:
            columns = [name for name in PARQUET_SCHEMA.names if name in table.schema_arrow.names]
            if missing := sorted(_REQUIRED - set(columns)):
                raise TapeError(
                    f"cannot read the tape {self._path}: it has no column {', '.join(missing)}; its columns must be the message's fields"
                )
            for batch in table.iter_batches(_BATCH_ROWS, columns=columns):
                names = batch.schema.names
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield dict(zip(names, row, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def open_rows(path: Path) -> Rows:
    """Return the rows of a Parquet file, or those before the tear; raises pyarrow's errors if there is none that can be read."""
    return Rows(path)


def count_rows(path: Path) -> int:
    """Return how many rows the file has, or how many before the tear."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowInvalid:
        parts, number, _ = find_parts(path)
        if not parts:
            raise
        return number


def write_rows(ticks: Iterable[Tick], path: Path) -> int:
    """Write the ticks, in their order; return how many they were."""
    written = 0
    with pa.OSFile(str(path), "wb") as file, pq.ParquetWriter(file, PARQUET_SCHEMA, compression="zstd") as writer:
        for part in _parts_of(ticks):
            writer.write_table(part)
            # The same rows as a file of their own have the same bytes between its magic and its index.
            alone = pa.BufferOutputStream()
            pq.write_table(part, alone, compression="zstd")
            whole = alone.getvalue().to_pybytes()
            file.write(whole[-8 - int.from_bytes(whole[-8:-4], "little") :])
            written += part.num_rows
    return written


def _parts_of(ticks: Iterable[Tick]) -> Iterator[pa.Table]:
    left = iter(ticks)
    while part := list(islice(left, PART_ROWS)):
        yield pa.Table.from_pylist([msgspec.structs.asdict(tick) for tick in part], PARQUET_SCHEMA)


def find_parts(path: Path) -> tuple[list[slice], int, int]:
    """Return where the parts that are whole lie in a torn file, how many rows they have, and how many bytes come after them."""
    parts: list[slice] = []
    rows, began = 0, len(_MAGIC)
    if path.stat().st_size < 2 * began:
        return parts, 0, 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.find(_MAGIC, began)
        while content[: len(_MAGIC)] == _MAGIC and found >= 0:
            part = slice(began, found + len(_MAGIC))
            if number := _rows_of_part(_MAGIC + content[part]):
                rows += number
                parts.append(part)
                began = part.stop
            found = content.find(_MAGIC, found + 1)
        return parts, rows, len(content) - began


def _rows_of_part(content: bytes) -> int:
    """Return how many rows these bytes have if they are one part from beginning to end; 0 if they are none."""
    try:
        index = pq.read_metadata(pa.BufferReader(content))
    except (pa.ArrowException, OSError):
        return 0  # the four bytes of the magic were among the rows
    if index.num_row_groups != 1:
        return 0
    group = index.row_group(0)
    columns = sum(group.column(number).total_compressed_size for number in range(group.num_columns))
    return int(index.num_rows) if columns + index.serialized_size + 3 * len(_MAGIC) == len(content) else 0


def _open_parts(path: Path, parts: list[slice]) -> Iterator[pq.ParquetFile]:
    with path.open("rb") as file:
        for part in parts:
            file.seek(part.start)
            with pq.ParquetFile(pa.BufferReader(_MAGIC + file.read(part.stop - part.start))) as table:
                yield table
