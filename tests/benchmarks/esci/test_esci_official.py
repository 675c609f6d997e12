"""Parquet batches: types, broken text, and chunks that hold the same rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.esci import official
from benchmarks.esci.official import in_chunks, parquet_batches
from benchmarks.esci.products import read_products
from indexing.errors import BenchmarkError


def write(path: Path, **columns: list[object] | pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def products(path: Path, titles: pa.Array) -> Path:
    ids = [f"P{number}" for number in range(len(titles))]
    texts = {f"product_{name}": ids for name in ("brand", "color")}
    locales = ["us"] * len(titles)
    return write(path, product_id=ids, product_title=titles, product_locale=locales, **texts)


def test_a_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"mug", b"cup", b"\xff", b"jug", b"\xc3("])
    path = products(tmp_path / "p.parquet", raw.view(pa.string()))
    found = read_products(path, "us")
    assert found.table.column("title").to_pylist() == ["mug", "cup", "jug"]
    assert found.counts.model_dump() == {
        "rows": 5,
        "other_locale": 2,
        "untitled": 0,
        "repeated": 0,
        "usable": 3,
    }


def test_texts_are_trimmed_and_what_is_missing_is_empty(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.parquet",
        product_id=["B", " A ", "", None, "C"],
        product_title=[" mug\n", "cup", "no id", "no id", "\t"],
        product_brand=pa.array([None, " x", "", "", ""], pa.string()),
        product_color=pa.array([None] * 5, pa.string()),
        product_locale=["us"] * 5,
    )
    found = read_products(path, "us")
    assert found.table.to_pylist() == [
        {"product_id": "A", "title": "cup", "brand": "x", "color": ""},
        {"product_id": "B", "title": "mug", "brand": "", "color": ""},
    ]
    assert (found.counts.untitled, found.counts.usable) == (3, 2)


def test_columns_come_as_the_types_say(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.parquet",
        number=pa.array([1, 2], pa.int32()),
        text=pa.array(["a", "b"]).dictionary_encode(),
        rest=[0, 0],
    )
    [batch] = parquet_batches(path, {"text": pa.string(), "number": pa.int64()})
    assert batch.schema == pa.schema([("text", pa.string()), ("number", pa.int64())])
    assert batch.to_pylist() == [{"text": "a", "number": 1}, {"text": "b", "number": 2}]


def test_what_is_not_there_or_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"gone\.parquet: cannot be read \(.*No such file"):
        list(parquet_batches(tmp_path / "gone.parquet", {}))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(BenchmarkError, match=r"x\.parquet: cannot be read"):
        list(parquet_batches(tmp_path / "x.parquet", {}))


def test_chunks_hold_all_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "CHUNK", 5)
    schema = pa.schema([("n", pa.int64())])
    batches = [pa.record_batch({"n": list(range(i, i + 3))}) for i in range(0, 12, 3)]
    chunks = [chunk.column("n").to_pylist() for chunk in in_chunks(batches, schema)]
    assert chunks == [list(range(6)), list(range(6, 12))]
    assert list(in_chunks([], schema)) == []
