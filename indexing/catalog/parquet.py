"""Parquet to rows, one batch in memory at a time."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from indexing.catalog.files import MAX_FIELD, open_bytes, reading
from indexing.catalog.rows import Row, Table, broken
from indexing.errors import CatalogError
from indexing.messages import printable, shown

_BATCH = 512  # rows


def parquet_table(path: Path) -> Table:
    """The table of a Parquet file, packed by gzip or not. Raises CatalogError."""
    with _opened(path) as file:
        columns = tuple(file.schema_arrow.names)
    return Table(columns, lambda: _rows(path))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        stack.enter_context(reading(path))
        source: IO[bytes] = stack.enter_context(open_bytes(path))
        if isinstance(getattr(source, "raw", None), gzip.GzipFile):
            # Parquet is read from its end, which gzip can only reach by unpacking it all.
            unpacked = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(source, unpacked)
            unpacked.seek(0)
            source = unpacked
        try:
            yield stack.enter_context(pq.ParquetFile(source))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CatalogError(
                f"{shown(path)}: not a readable Parquet file ({printable(reason)})"
            ) from error


def _rows(path: Path) -> Iterator[Row]:
    number = 0
    with _opened(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH):
            for cells in _batch_cells(batch):
                number += 1
                yield _row(number, cells)


def _batch_cells(batch: Any) -> list[dict[str, Any] | None]:
    """The cells of each row; None where a text is not UTF-8 or a value has no Python form."""
    try:
        return list(batch.to_pylist())
    except (UnicodeDecodeError, ValueError, OverflowError):
        if len(batch) == 1:
            return [None]
        halves = batch.slice(0, len(batch) // 2), batch.slice(len(batch) // 2)
        return [cells for half in halves for cells in _batch_cells(half)]


def _row(number: int, cells: dict[str, Any] | None) -> Row:
    if cells is None:
        return broken(number, "row", "", "holds a value that cannot be read, such as broken UTF-8")
    for name, value in cells.items():
        if isinstance(value, (str, bytes)) and len(value) > MAX_FIELD:
            return broken(number, name, value, f"longer than {MAX_FIELD:,} characters")
    return Row(number, cells)
