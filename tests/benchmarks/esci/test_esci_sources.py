"""Each kind of picture source, as its publisher writes it and with rows that are damaged."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.esci.sources import NO_RANK, parse_source
from indexing.errors import BenchmarkError, ShoplensError

URL = "https://m.media-amazon.com/images/I"


def rows(source: str) -> list[tuple[Any, ...]]:
    batches = parse_source(source).batches()
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


def json_lines(path: Path, records: list[Any]) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "pictures.csv"
    path.write_text(
        "rank,product_id,extra,role,path\n"
        "0,A,x,Main,a.jpg\n"
        "1,A,x,aux,b.jpg\n"
        ",A,x,,c.jpg\n"
        "minus,A,x,aux,d.jpg\n"
        "2,A,x,aux\n"  # one cell too few
        "2,,x,aux,e.jpg\n"
        "2,B,x,main,\n"
    )
    assert rows(str(path)) == [
        ("A", True, 0, "a.jpg", None),
        ("A", False, 1, "b.jpg", None),
        ("A", False, NO_RANK, "c.jpg", None),
        ("A", False, NO_RANK, "d.jpg", None),
        (None, False, 2, "e.jpg", None),
        ("B", True, 2, None, None),
        (None, False, NO_RANK, None, None),
    ]


def test_a_manifest_in_parquet_may_have_numbers_for_ranks(tmp_path: Path) -> None:
    path = tmp_path / "pictures.parquet"
    table = pa.table({"path": ["a.jpg"], "role": ["main"], "rank": [3], "product_id": ["A"]})
    pq.write_table(table, path)
    assert rows(str(path)) == [("A", True, 3, "a.jpg", None)]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_sqid(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"product_image_urls{suffix}"
    text = f"product_id,image_url\n0060538260,{URL}/81Q.jpg\n0060555661,\n"
    if suffix == ".parquet":
        ids = ["0060538260", "0060555661"]
        pq.write_table(pa.table({"product_id": ids, "image_url": [f"{URL}/81Q.jpg", None]}), path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert rows(str(path)) == [
        ("0060538260", True, 0, f"{URL}/81Q.jpg", None),
        ("0060555661", True, 0, None, None),
    ]


ESCI_S = [
    {
        "type": "product",
        "locale": "us",
        "asin": "B06XXXLJ6V",
        "image": f"{URL}/81b.__AC_SY300_.jpg",
    },
    {
        "type": "book",
        "locale": "us",
        "asin": "0060538260",
        "img": f"{URL}/W/WEBP_402378-T1/images/I/c.jpg",
    },
    {"type": "error", "locale": "us", "asin": "B000000001", "error": "404", "template": "none"},
    '{"type": "product", "locale": "us", "asin": "B0',
    {
        "type": "product",
        "locale": "us",
        "asin": "B000000002",
        "image": 7,
        "images": ["d.jpg", None],
    },
]


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".json.zst"])
def test_esci_s(tmp_path: Path, suffix: str) -> None:
    plain = json_lines(tmp_path / "plain", ESCI_S)
    path = tmp_path / f"esci{suffix}"
    codec = {".json.gz": "gzip", ".json.zst": "zstd"}.get(suffix)
    with pa.output_stream(str(path), compression=codec) as stream:
        stream.write(plain.read_bytes().replace(b"/I/W/", b"/W/"))
    assert rows(str(path)) == [
        ("B06XXXLJ6V", True, 0, f"{URL}/81b.__AC_SY300_.jpg", None),
        ("0060538260", True, 0, f"{URL}/c.jpg", None),
        ("B000000001", True, 0, None, None),
        (None, False, 0, None, None),
        ("B000000002", True, 0, None, None),
        ("B000000002", False, 1, "d.jpg", None),
    ]


def test_a_zstd_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "esci.json.zst"
    with pa.output_stream(str(whole), compression="zstd") as stream:
        for number in range(2000):
            record = {"asin": f"B{number}", "locale": "us", "noise": str(number**9)}
            stream.write(json.dumps(record).encode() + b"\n")
    path.write_bytes(whole.read_bytes()[:-50])
    with pytest.raises(ShoplensError, match=r"esci\.json\.zst: cannot be read"):
        rows(f"esci-s:{path}")


IMAGES = [
    {"hi_res": None, "thumb": "t0", "large": "l0", "variant": "PT01"},
    {"hi_res": "h1", "thumb": "t1", "large": "l1", "variant": "MAIN"},
]
COLUMNS = {key: [image[key] for image in IMAGES] for key in IMAGES[0]}


@pytest.mark.parametrize("images", [IMAGES, COLUMNS])
def test_amazon_reviews(tmp_path: Path, images: Any) -> None:
    path = json_lines(
        tmp_path / "meta.jsonl",
        [
            {"parent_asin": "P", "images": images, "details": "not JSON"},
            {"parent_asin": "P", "asin": "C", "images": []},
            "[]",
        ],
    )
    assert rows(str(path)) == [
        ("P", False, 0, "l0", "P"),
        ("P", True, 1, "h1", "P"),
        ("C", False, 0, None, "P"),
        (None, False, 0, None, None),
    ]


def test_amazon_reviews_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "meta.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"parent_asin": "P", "images": COLUMNS, "price": 1}]), path
    )
    assert rows(str(path)) == [("P", False, 0, "l0", "P"), ("P", True, 1, "h1", "P")]


def abo(folder: Path) -> Path:
    (folder / "listings/metadata").mkdir(parents=True)
    (folder / "images/metadata").mkdir(parents=True)
    listings = folder / "listings/metadata/listings_0.json.gz"
    records = [
        {"item_id": "B074M5HPBD", "main_image_id": "one", "other_image_id": ["two", "gone"]},
        {"item_id": "B0799CK52K", "main_image_id": "two"},
    ]
    listings.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    table = "image_id,height,width,path\none,10,20,8c/one.jpg\ntwo,10,20,8d/two.jpg\n"
    (folder / "images/metadata/images.csv.gz").write_bytes(gzip.compress(table.encode()))
    return folder


@pytest.mark.parametrize("kind", ["", "abo:"])
def test_abo(tmp_path: Path, kind: str) -> None:
    folder = abo(tmp_path)
    assert rows(f"{kind}{folder}") == [
        ("B074M5HPBD", True, 0, "8c/one.jpg", None),
        ("B074M5HPBD", False, 1, "8d/two.jpg", None),
        ("B074M5HPBD", False, 2, None, None),
        ("B0799CK52K", True, 0, "8d/two.jpg", None),
    ]
    assert [path.name for path in parse_source(str(folder)).files] == [
        "listings_0.json.gz",
        "images.csv.gz",
    ]


def test_the_kind_shows_by_the_columns(tmp_path: Path) -> None:
    files = {
        "manifest": "product_id,role,rank,path\n",
        "sqid": "product_id,image_url\n",
        "esci-s": '{"asin": "B", "locale": "us"}\n',
        "amazon-reviews": '{"parent_asin": "B", "asin": "C"}\n',
    }
    for kind, text in files.items():
        path = tmp_path / (f"{kind}.csv" if text[0] != "{" else f"{kind}.jsonl")
        path.write_text(text)
        assert parse_source(str(path)).kind == kind
    assert parse_source(f"esci-s:{tmp_path / 'sqid.csv'}").kind == "esci-s"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.csv", None, "no such file"),
        ("x.csv", "a,b\n1,2\n", "what it is does not show"),
        ("x.csv", "", "cannot be read"),
        ("x.parquet", "no Parquet", "cannot be read"),
        ("x.jsonl", "[1]\n", "what it is does not show"),
    ],
)
def test_what_is_no_source_is_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        parse_source(str(path))


@pytest.mark.parametrize("kind", ["manifest", "sqid"])
def test_a_table_without_its_columns_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text("product_id,picture\nA,a.jpg\n")
    with pytest.raises(BenchmarkError, match=r"has no column .*; it has product_id, picture"):
        rows(f"{kind}:{path}")


def test_a_folder_that_is_not_abo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"must hold listings/metadata"):
        rows(f"abo:{tmp_path}")
    with pytest.raises(BenchmarkError, match="what it is does not show"):
        parse_source(str(tmp_path))


def test_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"product_id,image_url\nA,a.jpg\nB\xff,b.jpg\nC,c.jpg\n")
    assert [row[0] for row in rows(str(path))] == ["A", None, "C"]
