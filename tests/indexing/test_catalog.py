"""Catalogs of every format and profile, read as merchants export them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexing.catalog import Catalog, Product, Reject, read_catalog
from indexing.catalog.rows import Row, Table
from indexing.errors import CatalogError

ROWS = [
    {"id": "007", "title": "Hat, red", "price": "5.50", "color": "red", "image": "in/hat.jpg"},
    {"id": "b", "title": "Größe “42”", "price": "", "color": "", "image": "b.png"},
]


def table_text(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def feed(rows: list[dict[str, Any]]) -> str:
    def item(row: dict[str, Any]) -> str:
        return "".join(f"<g:{k}><![CDATA[{v}]]></g:{k}>" for k, v in row.items())

    items = "".join(f"<item>{item(row)}</item>" for row in rows)
    return f'<rss xmlns:g="http://base.google.com/ns/1.0"><channel>{items}</channel></rss>'


def parquet_bytes(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def read(path: Path, **options: Any) -> tuple[Catalog, list[Product], list[Reject]]:
    rejects: list[Reject] = []
    catalog = read_catalog(path, on_reject=rejects.append, **options)
    return catalog, list(catalog), rejects


def pictures(product: Product) -> list[tuple[str, str]]:
    return [(image.location, image.role) for image in product.images]


FORMATS = {
    "a.csv": table_text(ROWS).encode(),
    "semicolons.csv": table_text(ROWS, ";").encode(),
    "bars.txt": table_text(ROWS, "|").encode(),
    "a.tsv": table_text(ROWS, "\t").encode(),
    "utf16.csv": table_text(ROWS, "\t").encode("utf-16"),
    "utf16be.csv": b"\xfe\xff" + table_text(ROWS).encode("utf-16-be"),
    "utf32.csv": table_text(ROWS).encode("utf-32"),
    "bom.csv": b"\xef\xbb\xbf" + table_text(ROWS).encode(),
    "a.jsonl": json_lines(ROWS),
    "a.ndjson": json_lines(ROWS).replace(b"\n", b"\r\n\r\n"),
    "array.json": json.dumps(ROWS, indent=2).encode(),
    "one_line.json": json.dumps(ROWS).encode(),
    "lines.json": json_lines(ROWS),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "nameless": json.dumps(ROWS).encode(),
    "a.parquet": parquet_bytes(ROWS),
    "parquet": parquet_bytes(ROWS),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FORMATS)
def test_one_catalog_in_every_format(name: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(FORMATS[name]) if packed else FORMATS[name])
    catalog, products, rejects = read(path)
    assert (catalog.profile, rejects) == ("generic", [])
    assert astuple(catalog.counts) == (2, 2, 0, 0, 0, 0)
    hat, other = products
    assert (hat.id, hat.title, hat.price) == ("007", "Hat, red", 5.5)
    assert hat.attributes == {"color": "red"}
    assert hat.images[0].path == tmp_path / "in" / "hat.jpg"
    assert pictures(hat) == [("in/hat.jpg", "main")]
    assert (other.id, other.title, other.price) == ("b", "Größe “42”", None)
    assert other.attributes == {}
    # Read again: the same.
    assert list(catalog) == products
    assert astuple(catalog.counts) == (2, 2, 0, 0, 0, 0)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    top = tmp_path / "shop"
    for name in (
        *("hat/2.png", "hat/1.JPG", "hat/notes.txt", "hat/.1.jpg", "zebra.webp", "B/deep/x, y.jpg"),
        *("A.jpeg", "read me.txt", ".hidden/a.jpg", "empty/none.txt"),
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"")
    (tmp_path / "secret.jpg").write_bytes(b"")
    (top / "hat" / "3.jpg").symlink_to(tmp_path / "secret.jpg")
    (top / "link").symlink_to(tmp_path)
    catalog, products, rejects = read(top)
    assert catalog.profile == "folder"
    assert [(p.id, p.title, pictures(p)) for p in products] == [
        ("A", "A", [("A.jpeg", "main")]),
        ("B/deep", "deep", [("B/deep/x, y.jpg", "main")]),
        ("hat", "hat", [("hat/1.JPG", "main"), ("hat/2.png", "additional")]),
        ("zebra", "zebra", [("zebra.webp", "main")]),
    ]
    assert products[2].images[1].path == top / "hat" / "2.png"
    assert [(r.row, r.value, r.reason, r.scope) for r in rejects] == [
        (3, "empty", "the folder holds no pictures", "row"),
        (4, "hat/3.jpg", "a link that leads out of the images root", "image"),
        (5, "link", "a link to a folder is not followed", "row"),
    ]
    assert astuple(catalog.counts) == (6, 4, 0, 2, 1, 0)


def test_an_index_in_its_own_folder_of_pictures_is_passed_over(tmp_path: Path) -> None:
    for name in ("hat/1.jpg", "hat/index/.shoplens.lock", "index/.shoplens.lock", "index/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "index" / "v000001").mkdir()
    catalog, [hat], rejects = read(tmp_path)
    assert (hat.id, rejects) == ("hat", [])
    assert astuple(catalog.counts) == (1, 1, 0, 0, 0, 0)


def test_a_folder_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(b"")
    (tmp_path / "z.jpg").write_bytes(b"")
    _, products, [reject] = read(tmp_path)
    assert [product.id for product in products] == ["z"]
    assert (reject.value, reject.reason) == ("caf\\xe9", "the name is not UTF-8; rename it")


def test_parquet_keeps_large_integers(tmp_path: Path) -> None:
    rows = [{"id": 2**62 + 1, "image": "a.jpg", "stock": 3, "sold": True, "weight": 2.5}]
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(rows))
    [product] = read_catalog(tmp_path / "a.parquet")
    assert product.id == "4611686018427387905"
    assert product.attributes == {"stock": "3", "sold": "true", "weight": "2.5"}


def test_a_json_array_longer_than_one_reading(tmp_path: Path) -> None:
    rows = [{"id": n, "title": "x" * (n % 7 * 9000), "image": "a.jpg"} for n in range(300)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    catalog, products, _ = read(tmp_path / "a.json")
    assert [(p.id, len(p.title)) for p in products] == [(str(n), n % 7 * 9000) for n in range(300)]
    assert catalog.counts.products == 300

    (tmp_path / "a.json").write_text('[{"id": 1, "image": "a.jpg"}' + ", 1234567" * 20_000 + "]")
    catalog, _, rejects = read(tmp_path / "a.json")
    assert astuple(catalog.counts) == (20_001, 1, 0, 20_000, 0, 0)
    assert {reject.value for reject in rejects} == {"1234567"}


def content(name: str, rows: list[Any]) -> bytes:
    if name == "a.xml":
        return feed(rows).encode()
    return json_lines(rows) if name == "a.jsonl" else json.dumps(rows).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_rows_that_cannot_be_read_do_not_hide_the_columns(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content(name, [1] * 150 + ROWS))
    catalog, products, rejects = read(tmp_path / name)
    assert [product.id for product in products] == ["007", "b"]
    assert [reject.row for reject in rejects] == list(range(1, 151))
    assert catalog.counts.rows == 152


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.xml"])
def test_a_mapped_column_may_begin_late(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    bare = [{"id": n, "title": "Hat"} for n in range(100)]
    path.write_bytes(content(name, [*bare, {"id": "late", "Image": "a.jpg"}]))
    with pytest.raises(CatalogError) as caught:
        read_catalog(path)
    assert "of the first 100 rows that can be read; name it with --map" in str(caught.value)
    catalog, [late], _ = read(path, mapping={"image": "image"})
    assert (late.id, late.images[0].location) == ("late", "a.jpg")
    assert astuple(catalog.counts) == (101, 1, 0, 100, 0, 0)
    for last in ([], [{"id": "late"}]):  # all rows are seen, and none has it
        path.write_bytes(content(name, [*bare, *last]))
        with pytest.raises(CatalogError, match="has no such column"):
            read_catalog(path, mapping={"image": "shot"})
    # Not all rows are looked at: it is not said that there is no such column.
    monkeypatch.setattr("indexing.catalog.opening.LOOKED_AT", 105)
    path.write_bytes(content(name, [*bare, *bare[:10], {"id": "late", "Image": "a.jpg"}]))
    _, [late], _ = read(path, mapping={"image": "Image"}, on_duplicate="first")
    assert late.id == "late"


cells = st.text(max_size=12) | st.sampled_from(
    [
        "1",
        "2",
        "-3",
        "a.jpg",
        "b.png|c.png",
        "/x.jpg",
        "https://x/a.jpg",
        "../a.jpg",
        '"',
        "\0",
        ",",
    ]
)
json_cells = st.recursive(
    cells | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(cells, inner, max_size=3),
    max_leaves=6,
)
KEYS = ["id", "title", "price", "image", "Handle", "Image Src", "parent_asin", "images", "@type"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    profile=st.sampled_from(["generic", "shopify", "schema_org", "amazon_reviews_2023", "google"]),
    rows=st.lists(st.dictionaries(st.sampled_from(KEYS), json_cells) | json_cells, max_size=8),
    on_duplicate=st.sampled_from(["first", "last"]),
    allow_urls=st.booleans(),
)
def test_counts_always_add_up(
    profile: str, rows: list[Any], on_duplicate: Any, allow_urls: bool, tmp_path: Path
) -> None:
    first = {"id": "first", "Handle": "first", "parent_asin": "first", "sku": "first"}
    images = {"image": "a.jpg", "Image Src": "a.jpg", "images": ["a.jpg"], "image_link": "a.jpg"}
    (tmp_path / "a.jsonl").write_bytes(json_lines([{**first, **images}, *rows]))
    catalog, products, rejects = read(
        tmp_path / "a.jsonl", profile=profile, on_duplicate=on_duplicate, allow_urls=allow_urls
    )
    counts = catalog.counts
    assert counts.rows == len(rows) + 1 == counts.products + counts.merged + counts.rejected
    assert counts.products == len(products) == len({product.id for product in products})
    assert counts.rejected == sum(reject.scope == "row" for reject in rejects)
    assert counts.images_rejected == sum(reject.scope == "image" for reject in rejects)
    assert counts.fields_rejected == sum(reject.scope == "field" for reject in rejects)
    for product in products:
        assert [image.role for image in product.images].count("main") == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.lists(cells, max_size=5), max_size=8),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    cut=st.integers(0, 40),
)
def test_counts_of_any_text_add_up(
    rows: list[list[str]], quoting: Any, cut: int, tmp_path: Path
) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=quoting).writerows(rows)
    body = text.getvalue().encode("utf-8", "surrogatepass")
    content = b"id,title,image\nfirst,,a.jpg\n" + body[: max(0, len(body) - cut)]
    (tmp_path / "a.csv").write_bytes(content)
    catalog, products, _ = read(tmp_path / "a.csv", on_duplicate="first")
    counts = catalog.counts
    assert counts.rows == counts.products + counts.rejected
    assert products[0].id == "first"


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    class Endless:
        """Rows without end, which also notices how far it was read."""

        asked = 0

        def __call__(self) -> Any:
            while True:
                self.asked += 1
                yield Row(self.asked, {"id": str(self.asked), "image": "a.jpg"})

    from indexing.catalog.locations import ImageRoot

    rows = Endless()
    catalog = Catalog(
        tmp_path, "generic", Table(("id",), rows), ImageRoot(tmp_path), {}, "error", None
    )
    assert [product.id for product in islice(catalog, 3)] == ["1", "2", "3"]
    assert rows.asked == 3


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.xml", "a.parquet"])
def test_memory_does_not_grow_with_the_rows(name: str, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        rows = [{"id": n, "title": "t" * 2000, "image_link": "a.jpg"} for n in range(count)]
        content = {
            "a.csv": lambda: table_text(rows).encode(),
            "a.jsonl": lambda: json_lines(rows),
            "a.json": lambda: json.dumps(rows).encode(),
            "a.xml": lambda: feed(rows).encode(),
            "a.parquet": lambda: parquet_bytes(rows),
        }[name]()
        (tmp_path / name).write_bytes(content)
        catalog = read_catalog(tmp_path / name)
        tracemalloc.start()
        assert sum(1 for _ in catalog) == count
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    # 2,400 rows more are 5 MB more of titles; only their ids may stay.
    assert peak(3000) - peak(600) < 1_000_000
