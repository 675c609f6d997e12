"""ESCI's own queries over the test gallery, out of the official examples file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.esci.manifest import LABELS, Label, Options, QueryCounts
from benchmarks.esci.official import EXAMPLE_COLUMNS, in_chunks, parquet_batches
from indexing.titles import normalise_title

SCHEMA = pa.schema(
    [
        ("query_id", pa.int64()),
        ("query", pa.string()),
        ("product_id", pa.string()),
        ("label", pa.string()),
    ]
)
_COLUMNS = (
    *("query", "query_id", "product_id", "product_locale"),
    *("esci_label", "small_version", "split"),
)


@dataclass(frozen=True)
class Queries:
    """Judgments as SCHEMA has them, sorted by query_id and product_id."""

    table: pa.Table
    counts: QueryCounts


def read_queries(path: Path, gallery: Any, options: Options) -> Queries:
    """Queries of the test split that have an exact product in the gallery.

    All judgments of gallery products stay, whatever their label; of two for one product the
    more relevant. A query whose normalised text is also one of the train split's is left
    out, whatever version of the data that one is in.

    Args:
        gallery: Ids of the test products, a pyarrow string array.
    """
    rows = other = unusable = 0
    seen: set[str] = set()  # normalised queries of the train split
    texts: dict[int, str] = {}  # test queries
    kept: list[pa.Table] = []
    columns = {name: EXAMPLE_COLUMNS[name] for name in _COLUMNS}
    schema = pa.schema(list(columns.items()))
    for chunk in in_chunks(parquet_batches(path, columns), schema):
        rows += len(chunk)
        own = chunk.filter(pc.equal(chunk.column("product_locale"), options.locale))
        train = own.filter(pc.equal(own.column("split"), "train")).column("query").unique()
        seen.update(map(normalise_title, train.drop_null().to_pylist()))
        own = own.filter(pc.equal(own.column("split"), "test"))
        if options.small:
            own = own.filter(pc.equal(own.column("small_version"), 1))
        other += len(chunk) - len(own)
        judged = own.select(["query_id", "query", "product_id", "esci_label"])
        judged = judged.rename_columns(SCHEMA.names).drop_null()
        labelled = pc.is_in(judged.column("label"), pa.array(LABELS))
        judged = judged.filter(pc.and_(labelled, pc.not_equal(judged.column("query"), "")))
        unusable += len(own) - len(judged)
        pairs = judged.select(["query_id", "query"]).group_by(["query_id", "query"]).aggregate([])
        for number, text in zip(*(column.to_pylist() for column in pairs.columns), strict=True):
            texts[number] = min(text, texts.get(number, text))
        kept.append(judged.filter(pc.is_in(judged.column("product_id"), gallery)))
    table = pa.concat_tables(kept) if kept else SCHEMA.empty_table()
    leaked = {number for number, text in texts.items() if normalise_title(text) in seen}
    table = _without(table, leaked)
    exact = table.filter(pc.equal(table.column("label"), "E")).column("query_id").unique()
    found = set(exact.to_pylist())
    table = _sorted(table.filter(pc.is_in(table.column("query_id"), pa.array(found, pa.int64()))))
    query = pa.array(
        [texts[number] for number in table.column("query_id").to_pylist()], pa.string()
    )
    table = table.set_column(1, SCHEMA.field("query"), query)
    numbers = {
        entry["values"]: entry["counts"]
        for entry in table.column("label").value_counts().to_pylist()
    }
    labels: dict[Label, int] = {label: numbers.get(label, 0) for label in LABELS}
    return Queries(
        table,
        QueryCounts(
            rows=rows,
            other=other,
            unusable=unusable,
            test_queries=len(texts),
            also_in_train=len(leaked),
            without_exact=len(texts) - len(leaked) - len(found),
            queries=len(found),
            judgments=len(table),
            labels=labels,
        ),
    )


def _without(table: pa.Table, leaked: set[int]) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table.column("query_id"), pa.array(leaked, pa.int64()))))


def _sorted(table: pa.Table) -> pa.Table:
    """By query and product, one row each: the most relevant."""
    grade = pc.index_in(table.column("label"), pa.array(LABELS))
    keys = [(name, "ascending") for name in ("query_id", "product_id", "grade")]
    table = table.append_column("grade", grade)
    table = table.take(pc.sort_indices(table, keys)).drop_columns(["grade"]).combine_chunks()
    repeats = np.ones(max(len(table) - 1, 0), bool)
    for name in ("query_id", "product_id"):
        column = table.column(name).combine_chunks()
        repeats &= pc.equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return table.filter(pa.array(~np.append(np.zeros(min(len(table), 1), bool), repeats)))
