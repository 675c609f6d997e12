"""Real ESCI rows, real SQID URLs and real pictures of Amazon Berkeley Objects."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.esci.build import build_split
from benchmarks.esci.manifest import Options
from benchmarks.esci.official import PRODUCT_COLUMNS
from benchmarks.esci.sources import parse_source
from indexing.catalog import read_catalog
from indexing.errors import BenchmarkError

pytestmark = pytest.mark.data
FIELDS = ("id", "title", "description", "bullets", "brand", "color", "locale")


@pytest.fixture
def data() -> Path:
    folder = os.environ.get("SHOPLENS_DATA")
    if not folder:
        pytest.skip("SHOPLENS_DATA does not name the folder of real data")
    for name in ("esci/examples_sample.parquet", "abo"):
        if not (Path(folder) / name).exists():
            pytest.skip(f"no {name} in {folder}")
    return Path(folder)


@pytest.fixture
def products(data: Path, tmp_path: Path) -> Path:
    """The sample's sixteen products in the official columns."""
    rows = []
    with (data / "esci/products_sample.vespa.jsonl").open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)["fields"]
            values = (fields.get(name) for name in FIELDS)
            rows.append(dict(zip(PRODUCT_COLUMNS, values, strict=True)))
    path = tmp_path / "products.parquet"
    pq.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema(list(PRODUCT_COLUMNS.items()))), path
    )
    return path


def exact_products(data: Path) -> list[str]:
    rows = pq.read_table(data / "esci/examples_sample.parquet").to_pylist()
    return sorted({row["product_id"] for row in rows if row["esci_label"] in "ES"})


def abo_folders(data: Path) -> list[list[str]]:
    return [
        sorted(f"{folder.name}/{path.name}" for path in folder.glob("*.jpg"))
        for folder in sorted((data / "abo").iterdir())
        if folder.is_dir()
    ]


@pytest.mark.parametrize("kind", ["manifest", "abo"])
def test_real_rows_with_real_pictures(
    kind: str, data: Path, products: Path, tmp_path: Path
) -> None:
    owners = exact_products(data)[:3]
    pictures = dict(zip(owners, abo_folders(data), strict=True))
    source = tmp_path / "pictures.csv"
    if kind == "manifest":
        with source.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("product_id", "role", "rank", "path"))
            for owner, paths in pictures.items():
                rows.writerows(
                    (owner, "aux" if n else "main", n, path) for n, path in enumerate(paths)
                )
    else:
        source = tmp_path / "abo"
        (source / "listings/metadata").mkdir(parents=True)
        (source / "images/metadata").mkdir(parents=True)
        listings = [
            {"item_id": owner, "main_image_id": paths[0], "other_image_id": paths[1:]}
            for owner, paths in pictures.items()
        ]
        text = "".join(json.dumps(listing) + "\n" for listing in listings)
        (source / "listings/metadata/listings_0.json.gz").write_bytes(gzip.compress(text.encode()))
        table = "image_id,height,width,path\n"
        table += "".join(f"{path},1,1,{path}\n" for paths in pictures.values() for path in paths)
        (source / "images/metadata/images.csv.gz").write_bytes(gzip.compress(table.encode()))
    split = build_split(
        data / "esci/examples_sample.parquet",
        products,
        [
            parse_source(str(source)),
            parse_source(str(data / "esci/sqid_product_image_urls_head.csv")),
        ],
        data / "abo",
        tmp_path / "out",
        Options(test_products=1, validation_products=1),
    )
    counts = split.manifest.counts
    assert (counts.products.rows, counts.products.usable) == (16, 16)
    assert counts.pictures.rows == 12 + 2000
    assert (counts.pictures.named, counts.pictures.kept) == (12, 12)
    assert {row["path"] for row in split.table("images.parquet").to_pylist()} == {
        path for paths in pictures.values() for path in paths
    }
    for part in ("train", "validation"):
        [product] = read_catalog(split.folder / f"{part}.parquet", images_root=data / "abo")
        assert [image.location for image in product.images] == pictures[product.id][1:]
    judged = {
        (row["query_id"], row["product_id"]): row["esci_label"]
        for row in pq.read_table(data / "esci/examples_sample.parquet").to_pylist()
    }
    for row in split.table("queries.parquet").to_pylist():
        assert judged[row["query_id"], row["product_id"]] == row["label"]


def test_sqid_alone_has_one_picture_a_product(data: Path, tmp_path: Path) -> None:
    urls = data / "esci/sqid_product_image_urls_head.csv"
    with urls.open(newline="") as file:
        listed = list(csv.DictReader(file))
    rows = [
        {"product_id": name, "product_title": name, "product_locale": "us"}
        for name in {row["product_id"] for row in listed}
    ]
    named = f"{sum(bool(row['image_url']) for row in listed):,}"
    schema = pa.schema(list(PRODUCT_COLUMNS.items()))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "products.parquet")
    with pytest.raises(BenchmarkError, match=rf"2,000 rows .* {named} are missing .*--allow-urls"):
        build_split(
            data / "esci/examples_sample.parquet",
            tmp_path / "products.parquet",
            [parse_source(str(urls))],
            tmp_path,
            tmp_path / "out",
            Options(),
        )
