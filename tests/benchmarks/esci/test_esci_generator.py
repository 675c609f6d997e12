"""The generator: the official schema, the same files from the same seed, and lifelike sizes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmarks.esci import generator
from benchmarks.esci.generator import EXAMPLES, FACTS, IMAGES, MANIFEST, PRODUCTS, generate
from benchmarks.esci.planted import CASES
from benchmarks.esci.synthetic import product_ids
from indexing.durable import sha256_of
from indexing.errors import BenchmarkError

# As read from the official files.
EXAMPLES_SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("query", pa.string()),
        ("query_id", pa.int64()),
        ("product_id", pa.string()),
        ("product_locale", pa.string()),
        ("esci_label", pa.string()),
        ("small_version", pa.int64()),
        ("large_version", pa.int64()),
        ("split", pa.string()),
        ("__index_level_0__", pa.int64()),
    ]
)
PRODUCTS_SCHEMA = pa.schema(
    [
        (f"product_{name}", pa.string())
        for name in ("id", "title", "description", "bullet_point", "brand", "color", "locale")
    ]
)


def pandas_note(path: Path) -> Any:
    return json.loads(pq.read_schema(path).metadata[b"pandas"])


def test_the_schemas_are_the_official_ones(described: Path) -> None:
    assert pq.read_schema(described / EXAMPLES).equals(EXAMPLES_SCHEMA)
    assert pq.read_schema(described / PRODUCTS).equals(PRODUCTS_SCHEMA)
    note = pandas_note(described / EXAMPLES)
    assert note["index_columns"] == ["__index_level_0__"]
    assert [column["field_name"] for column in note["columns"]] == EXAMPLES_SCHEMA.names


@pytest.mark.data
def test_the_schema_is_that_of_the_real_sample(described: Path) -> None:
    data = os.environ.get("SHOPLENS_DATA")
    if not data:
        pytest.skip("SHOPLENS_DATA does not name the folder of real data")
    sample = Path(data) / "esci" / "examples_sample.parquet"
    if not sample.is_file():
        pytest.skip(f"no {sample}")
    assert pq.read_schema(described / EXAMPLES).equals(pq.read_schema(sample))
    assert pandas_note(described / EXAMPLES) == pandas_note(sample)


def test_the_same_seed_gives_the_same_bytes(described: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 1), ("other", 2)):
        generate(tmp_path / name, 1200, seed, "facts")
    files = (EXAMPLES, PRODUCTS, FACTS)
    digests = [
        [sha256_of(folder / name) for name in files]
        for folder in (described, tmp_path / "same", tmp_path / "other")
    ]
    assert digests[0] == digests[1]
    assert not set(digests[0]) & set(digests[2])


def test_drawn_pictures_are_there_but_for_the_absent_ones(drawn: Path) -> None:
    named = [row for row in pq.read_table(drawn / MANIFEST).to_pylist() if row["path"]]
    titles = {
        row["product_id"]: (row["product_title"] or "").strip()
        for row in pq.read_table(drawn / PRODUCTS).to_pylist()
        if row["product_locale"] == "us"
    }
    names = {row["path"] for row in named if titles[row["product_id"]]}
    there = {str(path.relative_to(drawn / IMAGES)) for path in (drawn / IMAGES).rglob("*.jpg")}
    assert there < names
    assert len(names - there) == 3  # one in each turn of the cases


def test_texts_have_lifelike_lengths(described: Path) -> None:
    table = pq.read_table(described / PRODUCTS)
    table = table.filter(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(table[1])), 0))
    means = {name: pc.mean(pc.utf8_length(table[name])).as_py() for name in table.column_names[1:4]}
    assert 70 < means["product_title"] < 130
    assert 500 < means["product_description"] < 1200
    assert 500 < means["product_bullet_point"] < 1200
    assert 0.4 < table["product_description"].null_count / len(table) < 0.6


def test_ids_are_distinct_and_look_like_asins() -> None:
    ids = product_ids(np.arange(100_000)).to_pylist()
    assert len(set(ids)) == 100_000
    assert all(len(name) == 10 and name.startswith("B0") and name.isalnum() for name in ids)
    assert abs(np.corrcoef(np.argsort(ids), np.arange(100_000))[0, 1]) < 0.1


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(BenchmarkError, match="is not empty"):
        generate(tmp_path, 24, 0, "facts")


def test_the_command_writes_what_it_names(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(generator.main)
    arguments = ["--out", str(tmp_path / "made"), "--products", "24", "--pictures", "facts"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    for name in result.stdout.partition(": ")[2].strip().split(", "):
        assert (tmp_path / "made" / name).exists(), name
    assert "python -m benchmarks.esci.generator" in CliRunner().invoke(app, ["--help"]).stdout


def test_there_is_a_product_of_each_case(described: Path) -> None:
    numbers = (
        pq.read_table(described / MANIFEST).group_by("product_id").aggregate([("path", "count")])
    )
    found = {row["product_id"]: row["path_count"] for row in numbers.to_pylist()}
    for number, case in enumerate(CASES):
        again = case.extra_rows.get("repeated", 0)
        name = product_ids(np.array([number]))[0].as_py()
        assert found.get(name, 0) == len(case.views) + again
