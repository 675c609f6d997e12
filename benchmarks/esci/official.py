"""Tables of the official ESCI files and of picture sources, a batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from indexing.errors import BenchmarkError
from indexing.messages import reason, shown

# Columns of shopping_queries_dataset_{examples,products}.parquet, in their order.
EXAMPLE_COLUMNS = {
    "example_id": pa.int64(),
    "query": pa.string(),
    "query_id": pa.int64(),
    "product_id": pa.string(),
    "product_locale": pa.string(),
    "esci_label": pa.string(),
    "small_version": pa.int64(),
    "large_version": pa.int64(),
    "split": pa.string(),
}
PRODUCT_COLUMNS = {
    "product_id": pa.string(),
    "product_title": pa.string(),
    "product_description": pa.string(),
    "product_bullet_point": pa.string(),
    "product_brand": pa.string(),
    "product_color": pa.string(),
    "product_locale": pa.string(),
}
BATCH = 1 << 16  # rows
CHUNK = 1 << 19  # rows that are joined at once, as a join hashes all that it looks up in
_BUFFER = 1 << 20  # bytes: pages are read one by one, as a row group may be the whole file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what can go wrong with a whole file into BenchmarkError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise BenchmarkError(f"{shown(path)}: cannot be read ({why})") from error


def parquet_batches(path: Path, columns: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    """The named columns of a Parquet file, of the given types (None: as they are).

    A row with a text that is not UTF-8 comes as nulls throughout. Raises BenchmarkError
    where the file is no Parquet file, lacks a column or has one of another type.
    """
    with reading(path), pq.ParquetFile(path, buffer_size=_BUFFER) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise BenchmarkError(
                f"{shown(path)}: has no column {', '.join(missing)}; it has "
                f"{', '.join(file.schema_arrow.names)}"
            )
        for batch in file.iter_batches(BATCH, columns=list(columns)):
            yield typed(path, batch, columns)


def typed(path: Path, batch: pa.RecordBatch, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """A batch with its columns as the types say, rows that are not UTF-8 as nulls."""
    arrays = []
    batch = _sound(batch.select(list(columns)))
    for name, kind in columns.items():
        column = batch.column(name)
        try:
            arrays.append(column if kind is None else column.cast(kind))
        except pa.ArrowException as error:
            raise BenchmarkError(
                f"{shown(path)}: the column {name} holds {column.type}, not {kind}"
            ) from error
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        if len(batch) == 1:
            return pa.RecordBatch.from_pylist([{}], schema=batch.schema)
        half = len(batch) // 2
        halves = [_sound(batch.slice(0, half)), _sound(batch.slice(half))]
        return pa.Table.from_batches(halves).combine_chunks().to_batches()[0]
    return batch


def in_chunks(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of at least CHUNK rows, the last one aside."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        waiting.append(batch)
        size += len(batch)
        if size >= CHUNK:
            yield pa.Table.from_batches(waiting, schema).combine_chunks()
            waiting, size = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, schema).combine_chunks()
