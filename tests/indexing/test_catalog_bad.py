"""Bad catalogs: for each, exactly what it gives."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexing.catalog import Reject, read_catalog
from indexing.errors import CatalogError, DuplicateIdError

HEADER = "id,title,price,image\n"
GOOD = "good,Hat,5,good.jpg\n"

Made = bytes | str | Callable[[Path], Path]


def write(folder: Path, name: str, content: Made) -> Path:
    path = folder / name
    if callable(content):
        return content(path)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(rows: list[dict[str, Any]]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path

    return make


def read(path: Path, **options: Any) -> tuple[tuple[int, ...], list[str], list[Reject]]:
    """Counts (rows, products, merged, rejected, images and fields rejected), ids, rejects."""
    rejects: list[Reject] = []
    catalog = read_catalog(path, on_reject=rejects.append, **options)
    ids = [product.id for product in catalog]
    counts = catalog.counts
    assert counts.rows == counts.products + counts.merged + counts.rejected
    assert counts.products == len(ids)
    assert counts.rejected == sum(reject.scope == "row" for reject in rejects)
    assert counts.images_rejected == sum(reject.scope == "image" for reject in rejects)
    assert counts.fields_rejected == sum(reject.scope == "field" for reject in rejects)
    for reject in rejects:
        line = reject.to_json()
        line.encode()  # can be written as UTF-8
        assert line.isprintable()
        assert all(len(value or "") <= 200 for value in (reject.id, reject.field, reject.value))
        assert json.loads(line)["row"] == reject.row
    return astuple(counts), ids, rejects


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def folder_with(**files: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("_", ".")).write_bytes(content)
        return path

    return make


def file_as_folder(path: Path) -> Path:
    path.write_text(HEADER)
    return path / "inner.csv"


PACKED = gzip.compress(
    (HEADER + "".join(f"{n},Hat,5,a.jpg\n" for n in range(5000))).encode(), mtime=0
)
BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;">]>
<rss><channel><item><id>1</id><title>&b;</title></item></channel></rss>"""
EXTERNAL = (
    """<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><r><item><id>&x;</id></item></r>"""
)

WHOLE = {
    "empty file": ("a.csv", b"", "the file is empty"),
    "empty gzip": ("a.csv.gz", gzip.compress(b""), "the file is empty"),
    "blank lines alone": ("a.csv", "\n\n  \n", "the file is empty"),
    "byte order mark alone": ("a.csv", b"\xef\xbb\xbf", "the file is empty"),
    "header alone": ("a.csv", HEADER, "there are no rows but the columns id, title, price, image"),
    "empty JSON array": ("a.json", "[]", "there are no rows"),
    "empty feed": ("a.xml", "<rss><channel/></rss>", "there are no rows"),
    "empty Parquet": (
        "a.parquet",
        lambda p: (pq.write_table(pa.table({"id": pa.array([], pa.string())}), p), p)[1],
        "there are no rows but the columns id",
    ),
    "no id, no image": (
        "a.csv",
        "name,price\nHat,5\n",
        "the generic profile finds no column for id (id, sku, product_id, item_id, asin, "
        "article_id) and image (image, images, image_path, image_paths, image_link, "
        "image_links) among name, price; name it with --map id=COLUMN --map image=COLUMN",
    ),
    "no image": ("a.csv", "id,price\n1,5\n", "name it with --map image=COLUMN"),
    "binary named .csv": (
        "a.csv",
        bytes(range(256)) * 4,
        "not a text file: the header holds a NUL",
    ),
    "picture named .csv": ("a.csv", b"\x89PNG\r\n\x1a\n" + bytes(99), "this is a picture"),
    "Excel named .csv": ("a.csv", b"PK\x03\x04" + bytes(99), "a zip or Excel file; save the sheet"),
    "HTML named .csv": ("a.csv", "<!DOCTYPE html>\n<html></html>\n", "among <!DOCTYPE html>"),
    "Latin-1 header": (
        "a.csv",
        "id,größe,image\n1,2,a.jpg\n".encode("latin-1"),
        "0xF6 is not UTF-8",
    ),
    "UTF-16 without a mark": ("a.csv", (HEADER + GOOD).encode("utf-16-le"), "holds a NUL"),
    "UTF-16 cut in a character": (
        "a.csv",
        (HEADER + GOOD).encode("utf-16")[:-1],
        "the text is damaged",
    ),
    "gzip cut short": ("a.csv.gz", PACKED[: len(PACKED) // 2], "the gzip data is cut short"),
    "gzip header alone": ("a.csv.gz", PACKED[:4], "the gzip data is cut short"),
    "gzip with flipped bytes": (
        "a.csv.gz",
        PACKED[:40] + bytes(byte ^ 255 for byte in PACKED[40:60]) + PACKED[60:],
        "the gzip data is cut short or damaged",
    ),
    "text named .parquet": ("a.parquet", HEADER + GOOD, "not a readable Parquet file"),
    "Parquet cut short": (
        "a.parquet",
        lambda p: (parquet([{"id": "1"}])(p), p.write_bytes(p.read_bytes()[:-20]), p)[2],
        "not a readable Parquet file",
    ),
    "entity bomb": ("a.xml", BOMB, "a DOCTYPE (lolz) is refused"),
    "external entity": ("a.xml", EXTERNAL, "a DOCTYPE (r) is refused"),
    "XML cut short": ("a.xml", "<rss><channel><item><id>1</id>", "not well-formed XML"),
    "XML of no known encoding": (
        "a.xml",
        b'<?xml version="1.0" encoding="klingon"?><rss/>',
        "not well-formed XML",
    ),
    "JSON array cut short": (
        "a.json",
        '[{"id": "1", "image": "a.jpg"}, {"id"',
        "the JSON array is cut short or broken after element 1",
    ),
    "text after a JSON array": ("a.json", '[{"id": 1, "image": "a.jpg"}] x', "text after the end"),
    "broken JSON document": ("a.json", '{"id": 1,\n "image"', "neither JSON nor JSON Lines"),
    "no line is JSON": ("a.jsonl", "{\n}{\n", "no row can be read; row 1: not JSON"),
    "array named .jsonl": (
        "a.jsonl",
        '[{"id": 1}]',
        "no row can be read; row 1: not a JSON object",
    ),
    "missing": ("a.csv", lambda p: p, "cannot be read (No such file or directory)"),
    "below a file": ("a.csv", file_as_folder, "cannot be read (Not a directory)"),
    "link to itself": ("a.csv", loop, "cannot be read (Too many levels of symbolic links)"),
    "name too long": ("a" * 300, lambda p: p, "cannot be read (File name too long)"),
    "NUL in the path": ("a", lambda p: Path(f"{p}\0.csv"), "may not hold a NUL"),
    "pipe": ("a.csv", fifo, "neither a file nor a folder"),
    "empty folder": ("a", folder_with(), "the folder holds no pictures"),
    "folder around a catalog": (
        "a",
        folder_with(a_jpg=b"", products_csv=b""),
        "the folder holds products.csv; give that file, or --profile folder",
    ),
    "folder named .csv": ("a.csv", folder_with(readme_txt=b""), "the folder holds no pictures"),
}


@pytest.mark.parametrize(("name", "content", "message"), WHOLE.values(), ids=WHOLE)
def test_a_catalog_that_cannot_be_read_as_a_whole(
    name: str, content: Made, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(CatalogError, match=re.escape(message)) as caught:
        list(read_catalog(path))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


def line(**cells: Any) -> str:
    return json.dumps({"id": "a", "image": "a.jpg", **cells}) + "\n"


GOOD_LINE = line(id="good")

# File name, content, ids that stay, rejects as (row, id, field, part of the reason, scope).
ROWS = {
    "UTF-16 with a mark": ("a.csv", (HEADER + GOOD).encode("utf-16"), ["good"], []),
    "UTF-8 with a mark": ("a.csv", b"\xef\xbb\xbf" + (HEADER + GOOD).encode(), ["good"], []),
    "old Mac line ends": ("a.csv", (HEADER + GOOD).replace("\n", "\r"), ["good"], []),
    "trailing empty fields": ("a.csv", HEADER + "x,,,x.jpg,,,\n" + GOOD, ["x", "good"], []),
    "blank lines between": ("a.csv", HEADER + "\n\n" + GOOD + "\n", ["good"], []),
    "bytes that are not UTF-8": (
        "a.csv",
        HEADER.encode() + b"1,Hat \xe9,5,a.jpg\n" + GOOD.encode(),
        ["good"],
        [(1, None, "row", "byte 0xE9 is not UTF-8", "row")],
    ),
    "NUL in a field": (
        "a.csv",
        HEADER + "1,H\0at,5,a.jpg\n" + GOOD,
        ["good"],
        [(1, None, "row", "NUL", "row")],
    ),
    "too many fields": (
        "a.csv",
        HEADER + "1,Hat,red,5,a.jpg\n" + GOOD,
        ["good"],
        [(1, None, "row", "5 fields where the header has 4", "row")],
    ),
    "too few fields": (
        "a.csv",
        HEADER + "1,Hat\n" + GOOD,
        ["good"],
        [(1, "1", "image", "the row names no picture", "row")],
    ),
    "a field of 10 MB": (
        "a.csv",
        HEADER + f"1,{'x' * 10_000_000},5,a.jpg\n" + GOOD,
        ["good"],
        [(1, None, "title", "longer than 1,000,000 characters", "row")],
    ),
    "a field of 10 MB over many lines": (
        "a.csv",
        HEADER + '1,"' + ("x" * 99 + "\n") * 100_000 + '",5,a.jpg\n' + GOOD,
        ["good"],
        [(1, None, "title", "longer than 1,000,000 characters", "row")],
    ),
    "a row of 20 MB": (
        "a.csv",
        HEADER + f"1,{'x' * 20_000_000},5,a.jpg\n" + GOOD,
        ["good"],
        [(1, None, "row", "longer than 16,777,216 characters", "row")],
    ),
    "a quote that is never closed": (
        "a.csv",
        HEADER + '1,"Hat,5,a.jpg\n' + "2,Cap,5,b.jpg\n" + GOOD,
        ["2", "good"],
        [(1, None, "row", "not a CSV record (unexpected end of data)", "row")],
    ),
    "a quote that the next row closes": (
        "a.csv",
        HEADER + '1,"Hat,5,a.jpg\n' + '2,"Cap",5,b.jpg\n' + GOOD,
        ["2", "good"],
        [(1, None, "row", "not a CSV record", "row")],
    ),
    "no id": (
        "a.csv",
        HEADER + " ,Hat,5,a.jpg\n" + GOOD,
        ["good"],
        [(1, None, "id", "the id is missing", "row")],
    ),
    "NaN as an id": (
        "a.csv",
        HEADER + "NaN,Hat,5,a.jpg\n" + GOOD,
        ["good"],
        [(1, "NaN", "id", "the id is missing", "row")],
    ),
    "NaN as a Parquet id": (
        "a.parquet",
        parquet([{"id": float("nan"), "image": "a.jpg"}, {"id": 7.0, "image": "b.jpg"}]),
        ["7"],
        [(1, "nan", "id", "not a finite number", "row")],
    ),
    "an id of a million characters": (
        "a.csv",
        HEADER + f"{'9' * 1_000_000},Hat,5,a.jpg\n" + GOOD,
        ["good"],
        [(1, "9" * 199 + "…", "id", "at most 512 characters", "row")],
    ),
    "a bell in an id": (
        "a.csv",
        HEADER + "a\ab,Hat,5,a.jpg\n" + GOOD,
        ["good"],
        [(1, "a\\x07b", "id", "control characters", "row")],
    ),
    "negative price": (
        "a.csv",
        HEADER + "1,Hat,-5,a.jpg\n2,Hat,$-5.00,a.jpg\n3,Hat,−5,a.jpg\n" + GOOD,
        ["1", "2", "3", "good"],
        [(n, str(n), "price", "the price is negative", "field") for n in (1, 2, 3)],
    ),
    "prices that are none": (
        "a.csv",
        HEADER + "".join(f'{n},H,"{p}",a.jpg\n' for n, p in enumerate(
            ("NaN", "inf", "Free", "1,2,3", "10.00-20.00 USD", "1e3", "$5 USD", "9" * 400,
             "from 4.99", "N/A", "12.99 pcs"), 1)) + GOOD,
        [*map(str, range(1, 12)), "good"],
        [(n, str(n), "price", "not a price; write it like", "field") for n in range(1, 12)],
    ),
    "../../etc/passwd": (
        "a.csv",
        HEADER + "1,Hat,5,../../etc/passwd\n2,Hat,5,x/../../a.jpg\n" + GOOD,
        ["good"],
        [(n, str(n), "image", "'..' may not stand", "row") for n in (1, 2)],
    ),
    "paths from elsewhere": (
        "a.csv",
        HEADER + "1,,,/etc/passwd\n2,,,C:\\a.jpg\n3,,,a\\b.jpg\n4,,,//host/a.jpg\n5,,,.\n" + GOOD,
        ["good"],
        [
            (1, "1", "image", "an absolute path", "row"),
            (2, "2", "image", "a Windows path", "row"),
            (3, "3", "image", "a backslash", "row"),
            (4, "4", "image", "a URL without http", "row"),
            (5, "5", "image", "names no file", "row"),
        ],
    ),
    "schemes": (
        "a.csv",
        HEADER + "1,H,,file:///etc/passwd\n2,H,,FILE:a.jpg\n3,H,,data:image/png;base64\n"
        "4,H,,ftp://x/a.jpg\n5,H,,https://x/a.jpg\n" + GOOD,
        ["good"],
        [
            (1, "1", "image", "file: locations are refused", "row"),
            (2, "2", "image", "file: locations are refused", "row"),
            (3, "3", "image", "data: locations are refused", "row"),
            (4, "4", "image", "ftp: locations are refused", "row"),
            (5, "5", "image", "URLs are not fetched unless --allow-urls", "row"),
        ],
    ),
    "a picture path of 5,000 characters": (
        "a.csv",
        HEADER + f"1,H,,{'a' * 5000}.jpg\n" + GOOD,
        ["good"],
        [(1, "1", "image", "longer than 4096 characters", "row")],
    ),
    "lines that are no objects": (
        "a.jsonl",
        '{"id": \n[1]\n"text"\nnull\n3\n\n' + GOOD_LINE,
        ["good"],
        [(1, None, "row", "not JSON", "row")]
        + [(n, None, "row", "not a JSON object", "row") for n in (2, 3, 4, 5)],
    ),
    "a line nested too deeply": (
        "a.jsonl",
        deep(100_000) + "\n" + GOOD_LINE,
        ["good"],
        [(1, None, "row", "nested too deeply", "row")],
    ),
    "a line of 20 MB": (
        "a.jsonl",
        line(title="x" * 20_000_000) + GOOD_LINE,
        ["good"],
        [(1, None, "row", "longer than 16,777,216 characters", "row")],
    ),
    "a number of 5,000 digits": (
        "a.jsonl",
        '{"id": ' + "9" * 5000 + "}\n" + GOOD_LINE,
        ["good"],
        [(1, None, "row", "not JSON (a number of too many digits)", "row")],
    ),
    "a line that is not UTF-8": (
        "a.jsonl",
        b'{"id": "\xff"}\n' + GOOD_LINE.encode(),
        ["good"],
        [(1, None, "row", "byte 0xFF is not UTF-8", "row")],
    ),
    "ids of other types": (
        "a.jsonl",
        "".join(line(id=i) for i in (True, None, [1], {"a": 1}, 1e300, float("inf"))) + GOOD_LINE,
        ["good"],
        [
            (1, "True", "id", "must be a text or a number", "row"),
            (2, None, "id", "the id is missing", "row"),
            (3, "[1]", "id", "must be a text or a number", "row"),
            (4, "{'a': 1}", "id", "must be a text or a number", "row"),
            (5, "1e+300", "id", "lost digits", "row"),
            (6, "inf", "id", "not a finite number", "row"),
        ],
    ),
    "titles and prices of other types": (
        "a.jsonl",
        "".join(line(title=t) for t in (True, {"en": "Hat"}, [["Hat"]], "\ud800"))
        + "".join(line(id=p, price=c) for p, c in zip(
            "vwxyz", (True, [5], float("nan"), -0.01, 10**400), strict=True))
        + line(id="good", title=None, price=None, description=["a", None, "b"]),
        [*"vwxyz", "good"],
        [(n, "a", "title", "title must be text", "row") for n in (1, 2, 3)]
        + [(4, "a", "title", "a lone surrogate", "row")]
        + [(n, "vw"[n - 5], "price", "must be a number", "field") for n in (5, 6)]
        + [(7, "x", "price", "not a finite number", "field")]
        + [(8, "y", "price", "the price is negative", "field")]
        + [(9, "z", "price", "not a finite number", "field")],
    ),
    "a title of 200,000 characters": (
        "a.jsonl",
        line(title="x" * 200_000) + GOOD_LINE,
        ["good"],
        [(1, "a", "title", "at most 100000 characters", "row")],
    ),
    "currencies that are none": (
        "a.jsonl",
        line(id="x", currency="US Dollars") + line(id="y", currency={"code": "USD"})
        + line(id="good", price="5 USD", currency="US Dollars"),
        ["x", "y", "good"],
        [(1, "x", "currency", "not a currency; write its code, like USD", "field"),
         (2, "y", "currency", "currency must be text", "field")],
    ),
    "attributes of broken text": (
        "a.jsonl",
        line(id="x", **{"\ud800": "red", "size": "S"}) + line(id="good", colour="\ud800"),
        ["x", "good"],
        [(1, "x", "\\ud800", "the name of an attribute holds broken text", "field"),
         (2, "good", "colour", "colour holds broken text", "field")],
    ),
    "a bad price of a row without pictures": (
        "a.csv",
        HEADER + "1,Hat,free,\n" + GOOD,
        ["good"],
        [(1, "1", "image", "the row names no picture", "row")],
    ),
    "a quote that a later inch mark closes": (
        "a.csv",
        HEADER + '1,"Best mug,5,a.jpg\n2,Cup,5,b.jpg\n3,Bowl,5,c.jpg\n'
        + '4,Plate 19",5,d.jpg\n' + GOOD,
        ["2", "3", "4", "good"],
        [(1, None, "row", "a quote that is not closed; each line after it is a row", "row")],
    ),
    "a quote that an inch mark far below closes": (
        "a.csv",
        HEADER + '0,"Big, red","5",0.jpg\n1,"Best mug,5,a.jpg\n'
        + "".join(f"n{n},Cup,5,b.jpg\n" for n in range(500)) + '4,Plate 19",5,d.jpg\n' + GOOD,
        ["0", *(f"n{n}" for n in range(500)), "4", "good"],
        [(2, None, "row", "a quote that is not closed", "row")],
    ),
    "texts of many lines with commas in them": (
        "a.csv",
        HEADER + '1,"Mug, red, large\nwarm, blue",5,a.jpg\n'
        + '2,"Mug\nred,blue",5,b.jpg\n3,"Mug, a, b\nid, c, d\n\nid, e",5,c.jpg\n' + GOOD,
        ["1", "2", "3", "good"],
        [],
    ),
    "pictures of other types": (
        "a.jsonl",
        "".join(line(image=i) for i in (True, 5, [[]], {"alt": "x"}, [], {}, "")) + GOOD_LINE,
        ["good"],
        [(n, "a", "image", "a picture location must be text", "row") for n in (1, 2, 3, 4)]
        + [(n, "a", "image", "the row names no picture", "row") for n in (5, 6, 7)],
    ),
    "NUL and broken text in picture names": (
        "a.jsonl",
        line(image="a\0.jpg") + line(image="\ud800.jpg") + GOOD_LINE,
        ["good"],
        [(n, "a", "image", "a control character or text that is not UTF-8", "row") for n in (1, 2)],
    ),
    "one bad picture of two": (
        "a.jsonl",
        line(id="good", image=["file:///etc/passwd", "a.jpg"]),
        ["good"],
        [(1, "good", "image", "file: locations are refused", "image")],
    ),
    "two bad pictures of two": (
        "a.jsonl",
        line(image=["/a.jpg", "file:b.jpg"]) + GOOD_LINE,
        ["good"],
        [(1, "a", "image", "an absolute path; write it relative to the images root (and so on "
          "for all 2 pictures)", "row")],
    ),
    "a Parquet text that is not UTF-8": (
        "a.parquet",
        lambda p: (pq.write_table(pa.table({
            "id": pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers()),
            "image": ["a.jpg"] * 3}), p), p)[1],
        ["a", "c"],
        [(2, None, "row", "broken UTF-8", "row")],
    ),
    "nested Parquet ids": (
        "a.parquet",
        parquet([{"id": [1], "image": "a.jpg"}, {"id": None, "image": "a.jpg"}]),
        [],
        [(1, "[1]", "id", "a text or a number", "row"), (2, None, "id", "missing", "row")],
    ),
    "an XML text of 2 MB": (
        "a.xml",
        f"<r><item><id>a</id><title>{'x' * 2_000_000}</title><image_link>a.jpg</image_link></item>"
        "<item><id>good</id><image_link>a.jpg</image_link></item></r>",
        ["good"],
        [(1, None, "title", "longer than 1,000,000 characters", "row")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "ids", "expected"), ROWS.values(), ids=ROWS)
def test_a_bad_row_costs_itself_alone(
    name: str,
    content: Made,
    ids: list[str],
    expected: list[tuple[int, str | None, str, str, str]],
    tmp_path: Path,
) -> None:
    counts, found, rejects = read(write(tmp_path, name, content))
    assert found == ids
    given = [(r.row, r.id, r.field, r.reason, r.scope) for r in rejects]
    assert len(given) == len(expected)
    for (*place, reason, scope), (*wanted, part, wanted_scope) in zip(given, expected, strict=True):
        assert (place, scope) == (wanted, wanted_scope)
        assert part in reason
    scopes = [scope for *_, scope in expected]
    rejected = scopes.count("row")
    counted = (0, rejected, scopes.count("image"), scopes.count("field"))
    assert counts == (len(ids) + rejected, len(ids), *counted)


def test_damage_far_into_a_gzip_file_is_found_after_the_rows_before_it(tmp_path: Path) -> None:
    rows = "".join(f"{n},{os.urandom(300).hex()},5,{n}.jpg\n" for n in range(1000))
    path = write(tmp_path, "a.csv.gz", gzip.compress((HEADER + rows).encode())[:-5000])
    found: list[str] = []
    with pytest.raises(CatalogError, match="cut short or damaged"):
        found.extend(product.id for product in read_catalog(path))
    assert found == [str(n) for n in range(len(found))]
    assert 900 < len(found) < 1000


def test_links_that_lead_out_or_back_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    (root / "in").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (root / "in" / "real.jpg").write_bytes(b"x")
    (root / "inside.jpg").symlink_to("in/real.jpg")
    (root / "outside.jpg").symlink_to("../secret.jpg")
    (root / "absolute.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "twice.jpg").symlink_to("outside.jpg")
    (root / "loop.jpg").symlink_to("pool.jpg")
    (root / "pool.jpg").symlink_to("loop.jpg")
    (root / "out").symlink_to(tmp_path)
    (root / "ring").symlink_to("ring")
    (tmp_path / "shop-too").mkdir()
    (root / "sibling.jpg").symlink_to(tmp_path / "shop-too" / "a.jpg")
    names = ["inside", "outside", "absolute", "twice", "loop", "out/secret", "ring/a", "sibling"]
    rows = "".join(f"{name},,,{name}.jpg\n" for name in names)
    counts, ids, rejects = read(write(root, "a.csv", HEADER + rows))
    assert counts == (8, 1, 0, 7, 0, 0)
    assert ids == ["inside"]
    assert {reject.id: reject.reason for reject in rejects} == {
        "outside": "a link that leads out of the images root",
        "absolute": "a link that leads out of the images root",
        "twice": "a link that leads out of the images root",
        "loop": "a link that leads back to itself",
        "out/secret": "a link that leads out of the images root",
        "ring/a": "a link that leads back to itself",
        "sibling": "a link that leads out of the images root",
    }
    [product] = read_catalog(root / "a.csv")
    assert product.images[0].path == root / "in" / "real.jpg"
    assert product.images[0].location == "inside.jpg"


def test_duplicate_ids(tmp_path: Path) -> None:
    rows = "x,first,1,a.jpg\ny,other,2,b.jpg\nx,bad,-1,/c.jpg\nx,second,3,d.jpg\nx,last,4,e.jpg\n"
    path = write(tmp_path, "a.csv", HEADER + rows)
    with pytest.raises(DuplicateIdError) as caught:
        list(read_catalog(path))
    assert "rows 1 and 4 both have the id 'x'" in str(caught.value)
    assert "--on-duplicate first|last" in str(caught.value)

    for keep, titles, kept in (("first", ["first", "other"], 1), ("last", ["other", "last"], 5)):
        counts, _, rejects = read(path, on_duplicate=keep)
        assert counts == (5, 2, 0, 3, 0, 0)
        assert [product.title for product in read_catalog(path, on_duplicate=keep)] == titles  # type: ignore[arg-type]
        lost = {reject.row: reject.reason for reject in rejects}
        assert sorted(lost) == sorted({1, 3, 4, 5} - {kept})
        assert lost.pop(3).startswith("an absolute path")
        assert set(lost.values()) == {f"duplicate id; row {kept} is kept"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "ebay"}, "no profile is named 'ebay'; choose one of auto, shopify"),
        ({"profile": "folder"}, "the profile folder cannot read a file"),
        ({"profile": "shopify"}, "the shopify profile finds no column for id (handle, url_handle)"),
        ({"on_duplicate": "newest"}, "--on-duplicate newest: choose error, first or last"),
        ({"mapping": {"colour": "title"}}, "--map colour=title: no such field; choose of id"),
        ({"mapping": {"id": "code"}}, "has no such column (found: id, title, price, image)"),
        ({"images_root": "/no/such/folder"}, "--images-root /no/such/folder: no such folder"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=re.escape(message)):
        read_catalog(write(tmp_path, "a.csv", HEADER + GOOD), **options)
