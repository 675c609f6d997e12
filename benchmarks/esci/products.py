"""The products of one locale, out of the official products file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.esci.manifest import ProductCounts
from benchmarks.esci.official import PRODUCT_COLUMNS, parquet_batches
from indexing.errors import BenchmarkError
from indexing.messages import printable, shown

_COLUMNS = ("product_id", "product_title", "product_brand", "product_color", "product_locale")
_NAMES = ("product_id", "title", "brand", "color")


@dataclass(frozen=True)
class Products:
    """Products sorted by id; row i is product i. Columns product_id, title, brand, color."""

    table: pa.Table
    counts: ProductCounts

    @property
    def ids(self) -> Any:
        return self.table.column("product_id").combine_chunks()


def read_products(path: Path, locale: str) -> Products:
    """Products of `locale` that have an id and a title, each id once.

    Of rows that share an id the first in the order of title, brand and colour is kept.
    Raises BenchmarkError where the file cannot be used or holds no such product.
    """
    kept: list[pa.RecordBatch] = []
    locales: set[str] = set()
    rows = other = titled = 0
    for batch in parquet_batches(path, {name: PRODUCT_COLUMNS[name] for name in _COLUMNS}):
        rows += len(batch)
        own = batch.filter(pc.equal(batch.column("product_locale"), locale))
        other += len(batch) - len(own)
        if not len(own) and len(locales) < 10:
            locales.update(filter(None, batch.column("product_locale").unique().to_pylist()))
        texts = [
            pc.fill_null(pc.utf8_trim_whitespace(column), "")
            for column in own.columns[: len(_NAMES)]
        ]
        own = pa.RecordBatch.from_arrays(texts, names=list(_NAMES))
        own = own.filter(
            pc.and_(
                pc.not_equal(own.column("product_id"), ""), pc.not_equal(own.column("title"), "")
            )
        )
        kept.append(own)
        titled += len(own)
    table = pa.Table.from_batches(kept, _schema())
    del kept
    if not len(table):
        seen = f"; its locales are {printable(', '.join(sorted(locales)))}" if locales else ""
        raise BenchmarkError(
            f"{shown(path)}: no product of locale '{printable(locale)}' has a title{seen}"
        )
    table = _sorted(table)
    return Products(
        table,
        ProductCounts(
            rows=rows,
            other_locale=other,
            untitled=rows - other - titled,
            repeated=titled - len(table),
            usable=len(table),
        ),
    )


def _schema() -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in _NAMES])


def _sorted(table: pa.Table) -> pa.Table:
    order = pc.sort_indices(table.column("product_id"))
    ids = table.column("product_id").take(order).combine_chunks()
    if not _changes(ids).all():  # the other columns only matter where an id repeats
        order = pc.sort_indices(table, [(name, "ascending") for name in _NAMES])
        ids = table.column("product_id").take(order).combine_chunks()
        order = order.filter(pa.array(_changes(ids)))
    return table.take(order).combine_chunks()


def _changes(ids: Any) -> Any:
    """For each element of a sorted array whether it differs from the one before."""
    differs = np.ones(len(ids), bool)
    differs[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return differs
