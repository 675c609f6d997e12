from __future__ import annotations

import csv
import fcntl
import hashlib
import json
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from indexing import segments
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.catalog.product import Product, ProductImage
from indexing.committing import locked_folder
from indexing.durable import write_atomically
from indexing.errors import (
    CatalogError,
    IndexCorruptError,
    IndexFolderError,
    IndexMismatchError,
)
from indexing.manifest import FILES, FileRecord, parse_manifest, read_manifest
from indexing.store import OpenIndex, open_index
from indexing.table import PRODUCT_SCHEMA, Products, product_batch

COLOURS = {"P-1": "red", "P-2": "lime", "P-3": "blue"}


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Three products of one plain picture each, and one row without a picture."""
    with (tmp_path / "catalog.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "price", "shade", "image"])
        for number, (product_id, colour) in enumerate(COLOURS.items()):
            Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
            writer.writerow(
                [product_id, f"a {colour} thing", number + 0.5, colour, f"{colour}.png"]
            )
        writer.writerow(["P-4", "nothing to see", 9, "", ""])
    return tmp_path / "catalog.csv"


@pytest.fixture
def folder(tmp_path: Path, catalog: Path, tiny_encoder: Any) -> Path:
    build_index(read_catalog(catalog), tiny_encoder, tmp_path / "index")
    return tmp_path / "index"


def nearest(index: OpenIndex, encoder: Any, text: str) -> str:
    _, rows = index.index.search(encoder.embed_texts([text]), 1)
    return index.products.ids[index.images.product[rows[0, 0]]]


def signed(content: dict[str, Any]) -> bytes:
    body = {key: value for key, value in content.items() if key != "sha256"}
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": checksum}, indent=2, ensure_ascii=False) + "\n").encode()


def test_an_index_opens_with_what_was_put_in(
    folder: Path, tmp_path: Path, tiny_encoder: Any
) -> None:
    index = open_index(folder, encoder=tiny_encoder)
    assert index.products.ids == ["P-1", "P-2", "P-3"]
    assert index.products.fields(1) == {"title": "a lime thing", "price": 1.5, "shade": "lime"}
    assert index.images.product.tolist() == [0, 1, 2]
    names = ["red.png", "lime.png", "blue.png"]
    assert index.images.column("location") == names
    assert [index.images.path(row) for row in range(3)] == [tmp_path / name for name in names]
    assert index.images.main.tolist() == [True] * 3
    assert index.images.column("sha256") == [
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names
    ]
    direct = tiny_encoder.embed_images([Image.new("RGB", (8, 8), c) for c in COLOURS.values()])
    assert index.vectors.tolist() == direct.tolist()
    assert index.vectors.dtype == np.float32
    assert not index.vectors.flags.writeable
    assert (index.index.ntotal, index.index.dim) == (3, 49)
    for product_id, colour in COLOURS.items():
        assert nearest(index, tiny_encoder, colour) == product_id
    counts = index.manifest.segments[0].counts
    assert (counts.rows, counts.products, counts.merged, counts.rejected) == (4, 3, 0, 1)
    assert (counts.images, counts.images_rejected) == (3, 0)
    assert (index.manifest.products, index.manifest.images) == (3, 3)
    assert index.manifest.encoder.fingerprint == tiny_encoder.fingerprint


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused_and_the_file_named(folder: Path, name: str) -> None:
    path = folder / "s000001" / name
    whole = path.read_bytes()
    for place in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(IndexCorruptError, match=rf"{name} is damaged.*shoplens index"):
            open_index(folder)
    path.write_bytes(whole)
    open_index(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_refused_and_named(folder: Path, name: str) -> None:
    path = folder / "s000001" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        IndexCorruptError, match=f"{name} has {len(whole) - 1} bytes and must have {len(whole)}"
    ):
        open_index(folder)
    path.unlink()
    with pytest.raises(IndexCorruptError, match=f"{name} is missing"):
        open_index(folder)


def test_every_flipped_byte_of_the_manifest_is_refused(folder: Path) -> None:
    whole = (folder / "manifest.json").read_bytes()
    assert parse_manifest(whole, folder / "manifest.json") == read_manifest(folder)
    for place in range(len(whole)):
        flipped = whole[place] ^ (1, 0x2A, 0xFF)[place % 3]
        with pytest.raises((IndexCorruptError, IndexMismatchError)):
            parse_manifest(
                whole[:place] + bytes([flipped]) + whole[place + 1 :], folder / "manifest.json"
            )


def test_every_cut_of_the_manifest_is_refused_and_named(folder: Path) -> None:
    whole = (folder / "manifest.json").read_bytes()
    for length in range(len(whole)):
        with pytest.raises(IndexCorruptError, match=r"manifest\.json is damaged"):
            parse_manifest(whole[:length], folder / "manifest.json")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"segments": []},
        {"surprise": 1},
        {"products": -1},
    ],
)
def test_a_manifest_that_says_impossible_things_is_refused(
    folder: Path, change: dict[str, Any]
) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    assert signed(content) == path.read_bytes()
    path.write_bytes(signed({**content, **change}))
    with pytest.raises(IndexCorruptError, match=r"manifest\.json is damaged"):
        open_index(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc"},
        {"name": "s1"},
        {"files": {}},
        {"counts": {}},
        {"surprise": 1},
        {"index": {"type": "magic"}},
    ],
)
def test_a_segment_that_says_impossible_things_is_refused(
    folder: Path, change: dict[str, Any]
) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    path.write_bytes(signed({**content, "segments": [{**content["segments"][0], **change}]}))
    with pytest.raises(IndexCorruptError, match=r"manifest\.json is damaged"):
        open_index(folder)


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b'{"schema_version": "1"}', b"\xff"])
def test_a_manifest_of_something_else_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(IndexCorruptError, match=r"manifest\.json is damaged"):
        open_index(folder)


def test_counts_that_disagree_with_the_files_are_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    for name in ("products", "images"):
        segment = content["segments"][0]
        counts = {**segment["counts"], name: 2}
        path.write_bytes(signed({**content, "segments": [{**segment, "counts": counts}]}))
        with pytest.raises(IndexCorruptError, match="disagrees with its manifest"):
            open_index(folder)
        path.write_bytes(signed({**content, name: 2}))
        with pytest.raises(IndexCorruptError, match="disagrees with its manifest"):
            open_index(folder)


def test_another_schema_version_is_refused_with_the_way_out(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"schema_version": 5, "whatever": "is new"}))
    with pytest.raises(
        IndexMismatchError, match="schema 5 and this shoplens reads schema 4: update"
    ):
        open_index(folder)
    path.write_text(json.dumps({"schema_version": 0}))
    with pytest.raises(IndexMismatchError, match="schema 4: rebuild it with `shoplens index"):
        open_index(folder)


def test_another_encoder_is_refused_by_name_and_fingerprint(
    folder: Path, other_encoder: Any
) -> None:
    with pytest.raises(IndexMismatchError) as caught:
        open_index(folder, encoder=other_encoder)
    made_by = read_manifest(folder).encoder.fingerprint
    assert made_by[:12] in str(caught.value)
    assert other_encoder.fingerprint[:12] in str(caught.value)
    assert "--model" not in str(caught.value)  # it has the same name, so that would not help
    other_encoder.name = "other"
    with pytest.raises(IndexMismatchError, match="search with --model tiny or rebuild"):
        open_index(folder, encoder=other_encoder)


def test_what_is_no_index_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match="does not exist: make it with `shoplens index"):
        open_index(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(IndexFolderError, match="not a folder"):
        open_index(tmp_path / "file")
    with pytest.raises(IndexFolderError, match=r"is not an index \(it has no manifest"):
        open_index(tmp_path)
    with locked_folder(tmp_path / "begun", "build") as staging:
        (staging / "shard").touch()
    with pytest.raises(IndexFolderError, match="unfinished build: run the same"):
        open_index(tmp_path / "begun")


def test_a_reader_keeps_the_version_it_opened(
    folder: Path, catalog: Path, tiny_encoder: Any
) -> None:
    old = open_index(folder)
    row = catalog.read_text()
    for title in ("a pear", "a plum", "a fig"):
        catalog.write_text(row.replace("a lime thing", title))
        build_index(read_catalog(catalog), tiny_encoder, folder)
    assert not (folder / "s000001").exists()
    assert old.products.fields(1)["title"] == "a lime thing"
    assert old.vectors.tolist() == open_index(folder).vectors.tolist()
    assert open_index(folder).products.fields(1)["title"] == "a fig"


def test_an_index_replaced_while_it_is_opened_opens_anew(
    folder: Path, catalog: Path, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = segments._check_file
    calls = 0

    def replaced_meanwhile(path: Path, record: FileRecord) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            monkeypatch.setattr(segments, "_check_file", check)
            catalog.write_text(catalog.read_text().replace("a lime thing", "a pear"))
            build_index(read_catalog(catalog), tiny_encoder, folder)
            rmtree(folder / "s000001")  # as many more versions would
        check(path, record)

    monkeypatch.setattr(segments, "_check_file", replaced_meanwhile)
    index = open_index(folder)
    assert index.manifest.version == 2
    assert index.products.fields(1)["title"] == "a pear"


def test_an_index_replaced_after_it_was_checked_opens_anew(
    folder: Path, catalog: Path, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = segments._check_file

    def replaced_afterwards(path: Path, record: FileRecord) -> None:
        check(path, record)
        if path.name == FILES[-1]:
            monkeypatch.setattr(segments, "_check_file", check)
            catalog.write_text(catalog.read_text().replace("a lime thing", "a pear"))
            build_index(read_catalog(catalog), tiny_encoder, folder)
            rmtree(folder / "s000001")

    monkeypatch.setattr(segments, "_check_file", replaced_afterwards)
    index = open_index(folder)
    assert index.manifest.version == 2
    assert index.products.fields(1)["title"] == "a pear"


@pytest.mark.parametrize("name", sorted(set(FILES) - {"rejects.jsonl"}))
def test_a_file_that_is_lost_after_the_check_is_corruption(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_check_file", lambda path, record: None)
    (folder / "s000001" / name).unlink()
    with pytest.raises(IndexCorruptError, match=r"s000001 misses a file .*shoplens index"):
        open_index(folder)


def fail_in(out: Path) -> None:
    with locked_folder(out, "build") as staging:
        (staging / "encoder").mkdir(exist_ok=True)
        raise CatalogError


def test_a_builder_that_stages_nothing_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    new, empty, begun = tmp_path / "new", tmp_path / "empty", tmp_path / "begun"
    empty.mkdir()
    with locked_folder(begun, "build") as staging:
        (staging / "shard").touch()
    index = sorted(path.name for path in folder.iterdir())
    for out in (new, empty, begun, folder):
        with pytest.raises(CatalogError):
            fail_in(out)
    assert not new.exists()
    assert list(empty.iterdir()) == []
    assert (begun / ".staging" / "build" / "shard").exists()
    assert sorted(path.name for path in folder.iterdir()) == index


def test_a_lock_that_was_removed_by_its_holder_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder tidies up between our opening the file and our locking it."""
    out = tmp_path / "index"
    flock = fcntl.flock

    def too_late(descriptor: int, operation: int) -> None:
        (out / ".shoplens.lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with (
        pytest.raises(IndexFolderError, match="being written by another"),
        locked_folder(out, "build"),
    ):
        pass


def test_one_builder_at_a_time(folder: Path, catalog: Path, tiny_encoder: Any) -> None:
    with (
        locked_folder(folder, "build"),
        pytest.raises(IndexFolderError, match="being written by another process"),
    ):
        build_index(read_catalog(catalog), tiny_encoder, folder)
    assert build_index(read_catalog(catalog), tiny_encoder, folder).up_to_date


def test_a_folder_of_other_things_is_left_alone(
    tmp_path: Path, catalog: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "site"
    out.mkdir()
    (out / "manifest.json").write_text('{"name": "a web app"}')
    for _ in range(2):
        with pytest.raises(IndexFolderError, match=r"holds other files.*choose another --out"):
            build_index(read_catalog(catalog), tiny_encoder, out)
    assert [path.name for path in out.iterdir()] == ["manifest.json"]
    with pytest.raises(IndexFolderError, match="is not a folder"):
        build_index(read_catalog(catalog), tiny_encoder, catalog)


def test_an_index_that_was_copied_without_its_hidden_files_can_be_rebuilt(
    folder: Path, catalog: Path, tiny_encoder: Any
) -> None:
    (folder / ".shoplens.lock").unlink()
    assert build_index(read_catalog(catalog), tiny_encoder, folder).up_to_date


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def products_table(*products: Product) -> Products:
    return Products(pa.Table.from_batches([product_batch(products)], PRODUCT_SCHEMA))


def test_products_give_fields_and_columns() -> None:
    images = (ProductImage(location="a.jpg"),)
    products = products_table(
        Product(
            id="é-1",
            title="Mug",
            price=0.0,
            currency="EUR",
            attributes={"size": "XL", "empty": "", "brand": "hidden"},
            images=images,
        ),
        Product(id="2", brand="Acme", attributes={"colour": "red"}, images=images),
    )
    assert len(products) == 2
    assert products.ids == ["é-1", "2"]
    assert [products.row_of(product_id) for product_id in products.ids] == [0, 1]
    with pytest.raises(KeyError):
        products.row_of("1")
    assert products.fields(0) == {"title": "Mug", "price": 0.0, "currency": "EUR", "size": "XL"}
    assert products.fields(1) == {"brand": "Acme", "colour": "red"}
    own = ["id", "title", "description", "brand", "category", "price", "currency", "availability"]
    assert products.names() == [*own, "colour", "size"]
    price = products.column("price")
    assert price.dtype == np.float64
    assert price[0] == 0.0
    assert np.isnan(price[1])
    assert products.column("title").tolist() == ["Mug", None]
    assert products.column("brand").tolist() == [None, "Acme"]
    assert products.column("size").tolist() == ["XL", None]
    assert products.column("colour").tolist() == [None, "red"]
    assert products.column("id").tolist() == ["é-1", "2"]
    assert products.column("title").dtype == object
    for name in ("empty", "attributes", "no such field"):
        with pytest.raises(KeyError):
            products.column(name)
