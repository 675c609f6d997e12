"""ESCI's queries over a gallery, against plain dictionaries."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.esci import official
from benchmarks.esci.generator import EXAMPLES
from benchmarks.esci.manifest import Options
from benchmarks.esci.official import EXAMPLE_COLUMNS
from benchmarks.esci.queries import read_queries
from indexing.errors import BenchmarkError
from indexing.titles import normalise_title


def example(**changes: Any) -> dict[str, Any]:
    row = {
        "example_id": 0,
        "query": "mug",
        "query_id": 1,
        "product_id": "A",
        "product_locale": "us",
        "esci_label": "E",
        "small_version": 1,
        "large_version": 1,
        "split": "test",
    }
    return row | changes


def found(
    tmp_path: Path, rows: list[dict[str, Any]], gallery: str = "ABCD", **options: Any
) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    path = tmp_path / "examples.parquet"
    pq.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema(list(EXAMPLE_COLUMNS.items()))), path
    )
    queries = read_queries(path, pa.array(list(gallery)), Options(**options))
    return [tuple(row.values()) for row in queries.table.to_pylist()], queries.counts.model_dump()


def test_all_judgments_of_the_gallery_stay_with_a_query_that_has_an_exact_one(
    tmp_path: Path,
) -> None:
    rows = [
        example(product_id="B", esci_label="S"),
        example(product_id="A"),
        example(product_id="X"),
        example(product_id="C", esci_label="I"),
        example(query_id=2, query="cup", product_id="D", esci_label="S"),
        example(query_id=3, query="jug", product_id="X"),
    ]
    table, counts = found(tmp_path, rows)
    assert table == [(1, "mug", "A", "E"), (1, "mug", "B", "S"), (1, "mug", "C", "I")]
    assert (counts["test_queries"], counts["without_exact"], counts["queries"]) == (3, 2, 1)
    assert counts["labels"] == {"E": 1, "S": 1, "C": 0, "I": 1}


def test_other_locales_splits_and_versions_are_left_out(tmp_path: Path) -> None:
    rows = [
        example(),
        example(product_locale="es", query_id=2, query="taza"),
        example(split="train", query_id=3, query="cup"),
        example(small_version=0, query_id=4, query="jug"),
    ]
    assert [row[0] for row in found(tmp_path, rows)[0]] == [1, 4]
    table, counts = found(tmp_path, rows, small=True)
    assert [row[0] for row in table] == [1]
    assert (counts["rows"], counts["other"]) == (4, 3)
    assert [row[0] for row in found(tmp_path, rows, locale="es")[0]] == [2]


def test_a_query_of_the_train_split_is_left_out_however_it_is_written(tmp_path: Path) -> None:
    rows = [
        example(query_id=1, query="Red  MUG!"),
        example(query_id=2, query="blue mug"),
        example(query_id=3, query="red mug", split="train", product_id="X", small_version=0),
        example(query_id=4, query="blue mug", split="train", product_locale="es"),
    ]
    for small in (False, True):
        table, counts = found(tmp_path, rows, small=small)
        assert [row[0] for row in table] == [2]
        assert counts["also_in_train"] == 1


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows = [
        example(),
        example(query=None, product_id="B"),
        example(query="", product_id="B"),
        example(product_id=None),
        example(esci_label="X", product_id="B"),
        example(query_id=None, product_id="B"),
    ]
    table, counts = found(tmp_path, rows)
    assert table == [(1, "mug", "A", "E")]
    assert counts["unusable"] == 5


def test_of_two_judgments_of_a_product_the_more_relevant_stays(tmp_path: Path) -> None:
    rows = [example(esci_label=label) for label in "ISES"] + [example(product_id="B")]
    assert found(tmp_path, rows)[0] == [(1, "mug", "A", "E"), (1, "mug", "B", "E")]


def test_no_query_at_all(tmp_path: Path) -> None:
    table, counts = found(tmp_path, [example(split="train")])
    assert (table, counts["queries"], counts["judgments"]) == ([], 0, 0)


def test_generated_queries_are_those_of_plain_dictionaries(
    described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pq.read_table(described / EXAMPLES).to_pylist()
    us = [row for row in rows if row["product_locale"] == "us"]
    ids = sorted({row["product_id"] for row in us})
    gallery = set(random.Random(0).sample(ids, 300))
    train = {normalise_title(row["query"]) for row in us if row["split"] == "train"}
    judged: dict[int, dict[str, str]] = defaultdict(dict)
    leaked = set()
    for row in us:
        if row["split"] == "test" and normalise_title(row["query"]) in train:
            leaked.add(row["query_id"])
        elif row["split"] == "test" and row["product_id"] in gallery:
            judged[row["query_id"]][row["product_id"]] = row["esci_label"]
    expected = {
        (query, product, label)
        for query, own in judged.items()
        if "E" in own.values()
        for product, label in own.items()
    }
    monkeypatch.setattr(official, "BATCH", 77)
    monkeypatch.setattr(official, "CHUNK", 200)
    queries = read_queries(described / EXAMPLES, pa.array(sorted(gallery)), Options())
    table = queries.table
    columns = (table.column(name).to_pylist() for name in ("query_id", "product_id", "label"))
    assert sorted(expected) == list(zip(*columns, strict=True))
    assert queries.counts.also_in_train == len(leaked) == 5  # each fifth of 25 test queries
    assert queries.counts.judgments == len(expected)


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query": ["mug"]}), tmp_path / "x.parquet")
    with pytest.raises(BenchmarkError, match=r"x\.parquet: has no column query_id, product_id"):
        read_queries(tmp_path / "x.parquet", pa.array(["A"]), Options())


def test_a_column_of_another_kind_is_refused(tmp_path: Path) -> None:
    row = example(query_id="one")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    with pytest.raises(BenchmarkError, match="the column query_id holds string, not int64"):
        read_queries(tmp_path / "x.parquet", pa.array(["A"]), Options())
