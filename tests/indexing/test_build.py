from __future__ import annotations

import csv
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from indexing import durable
from indexing.build import BuildReport, build_index
from indexing.catalog import Catalog, Reject, read_catalog
from indexing.committing import earlier_versions
from indexing.errors import CatalogError, DuplicateIdError, IndexFolderError
from indexing.store import open_index

REPOSITORY = Path(__file__).parents[2]
Row = tuple[str, str, str]  # id, title, pictures

# A build of its own process, which the test's encoder kills by SIGKILL at its n-th batch.
KILLED_BUILD = """
import importlib.util, os, signal, sys
from pathlib import Path
from indexing.build import build_index
from indexing.catalog import read_catalog
spec = importlib.util.spec_from_file_location("conftest", "tests/conftest.py")
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)

class Killed(conftest.TinyEncoder):
    batches = 0
    def embed_pixels(self, pixels):
        self.batches += 1
        if self.batches == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed_pixels(pixels)

build_index(read_catalog(sys.argv[1]), Killed(), Path(sys.argv[2]), batch_size=2, shard_size=5)
"""


class Stopped(BaseException):
    """Stands for the death of the process: nothing catches it."""


def write_catalog(folder: Path, rows: list[Row]) -> Path:
    path = folder / "catalog.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "image"])
        writer.writerows(rows)
    return path


def write_picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Twelve products, some of two pictures: 16 in all, of which two are the same."""
    rows = []
    for number in range(12):
        names = [f"{number}.png"] + ([f"{number}b.png"] if number % 3 == 0 else [])
        for seed, name in enumerate(names, 2 * number):
            write_picture(tmp_path / name, seed)
        rows.append((f"SKU/{number}", f"thing {number}", "|".join(names)))
    (tmp_path / "7.png").write_bytes((tmp_path / "2.png").read_bytes())
    return rows


@pytest.fixture
def catalog(tmp_path: Path, rows: list[Row]) -> Path:
    return write_catalog(tmp_path, rows)


def build(catalog: Path, encoder: Any, out: Path, **options: Any) -> BuildReport:
    sizes = {"batch_size": 2, "shard_size": 5}
    return build_index(read_catalog(catalog), encoder, out, **{**sizes, **options})


def content(folder: Path) -> dict[str, Any]:
    """Every file of an index by name, but for the time at which it was made."""
    files: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = json.loads(files["manifest.json"])
    return {**files, "manifest.json": {**manifest, "created": None, "sha256": None}}


def rejects(report: BuildReport) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.rejects.read_text().splitlines()]


def test_each_vector_is_of_the_picture_and_product_it_says(
    tmp_path: Path, catalog: Path, rows: list[Row], tiny_encoder: Any
) -> None:
    report = build(catalog, tiny_encoder, tmp_path / "index")
    index = open_index(tmp_path / "index", encoder=tiny_encoder)
    expected = [(product, name) for product, _, names in rows for name in names.split("|")]
    owners = [index.products.ids[row] for row in index.images.product]
    assert list(zip(owners, index.images.column("location"), strict=True)) == expected
    for row, (_, name) in enumerate(expected):
        picture = Image.open(tmp_path / name).convert("RGB")
        assert index.vectors[row].tolist() == tiny_encoder.embed_images([picture])[0].tolist()
    assert index.images.column("role") == [
        "main" if "b" not in name else "additional" for _, name in expected
    ]
    assert (report.encoded, report.reused, report.up_to_date) == (15, 1, False)
    assert report.counts.model_dump() == {
        "rows": 12,
        "products": 12,
        "merged": 0,
        "rejected": 0,
        "images": 16,
        "images_rejected": 0,
        "fields_rejected": 0,
        "unchanged": 0,
    }
    assert rejects(report) == []
    assert not (tmp_path / "index" / ".staging").exists()


def test_broken_pictures_and_rows_take_nothing_else_with_them(
    tmp_path: Path, rows: list[Row], tiny_encoder: Any
) -> None:
    rows[4:4] = [("", "no id", "1.png"), ("SKU/out", "leaves the folder", "../1.png")]
    catalog = write_catalog(tmp_path, rows)
    (tmp_path / "0.png").write_bytes(b"<html>gone</html>")  # 0b.png is left to the product
    (tmp_path / "5.png").write_bytes(b"")
    (tmp_path / "9.png").unlink()
    (tmp_path / "9b.png").write_bytes(b"%PDF-1.7")
    report = build(catalog, tiny_encoder, tmp_path / "index")
    index = open_index(tmp_path / "index")

    lost = {"SKU/5", "SKU/9", "", "SKU/out"}
    kept = [row for row in rows if row[0] not in lost]
    assert index.products.ids == [row[0] for row in kept]
    assert [index.products.fields(row)["title"] for row in range(10)] == [row[1] for row in kept]
    expected = [
        (product, name)
        for product, _, names in kept
        for name in names.split("|")
        if name != "0.png"
    ]
    owners = [index.products.ids[row] for row in index.images.product]
    assert list(zip(owners, index.images.column("location"), strict=True)) == expected
    for row, (_, name) in enumerate(expected):
        picture = Image.open(tmp_path / name).convert("RGB")
        assert index.vectors[row].tolist() == tiny_encoder.embed_images([picture])[0].tolist()

    counts = report.counts
    assert (counts.rows, counts.products, counts.rejected, counts.merged) == (14, 10, 4, 0)
    assert (counts.images, counts.images_rejected) == (len(expected), 4)
    found = [(item["row"], item["id"], item["value"], item["scope"]) for item in rejects(report)]
    assert found == [
        (5, None, "", "row"),
        (6, "SKU/out", "../1.png", "row"),
        (1, "SKU/0", "0.png", "image"),
        (8, "SKU/5", "5.png", "image"),
        (8, "SKU/5", "", "row"),
        (12, "SKU/9", "9.png", "image"),
        (12, "SKU/9", "9b.png", "image"),
        (12, "SKU/9", "", "row"),
    ]
    reasons = [item["reason"] for item in rejects(report)]
    assert "HTML" in reasons[2]
    assert "0 bytes" in reasons[3]
    assert reasons[4] == "none of its pictures can be used"
    assert "No such file" in reasons[5]
    assert "PDF" in reasons[6]


def test_rejects_still_reach_whoever_asked_the_catalog_for_them(
    tmp_path: Path, rows: list[Row], tiny_encoder: Any
) -> None:
    asked: list[Reject] = []
    path = write_catalog(tmp_path, [*rows, ("", "no id", "1.png")])
    catalog = read_catalog(path, on_reject=asked.append)
    for out in ("one", "two"):
        report = build_index(catalog, tiny_encoder, tmp_path / out)
        assert [item["row"] for item in rejects(report)] == [13]
    assert [item.row for item in asked] == [13, 13]


def test_a_product_of_many_rows_is_rejected_by_its_first(
    tmp_path: Path, rows: list[Row], tiny_encoder: Any
) -> None:
    text = (
        "Handle,Variant Price,Image Src\na,1,0.png\n,,\nb,free,1.png\nb,,gone.png\nc,3,lost.png\n"
    )
    (tmp_path / "products.csv").write_text(text)
    report = build(tmp_path / "products.csv", tiny_encoder, tmp_path / "index")
    assert [(item["row"], item["id"], item["scope"]) for item in rejects(report)] == [
        (2, None, "row"),
        (3, "b", "field"),
        (3, "b", "image"),
        (5, "c", "image"),
        (5, "c", "row"),
    ]
    counts = report.counts
    assert (counts.products, counts.images_rejected, counts.fields_rejected) == (2, 2, 1)
    assert open_index(tmp_path / "index").manifest.segments[0].counts == counts


def test_the_same_command_again_does_nothing(
    tmp_path: Path, catalog: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    before = content(out)
    stamp = (out / "manifest.json").read_bytes()
    tiny_encoder.encoded = 0
    report = build(catalog, tiny_encoder, out)
    assert (tiny_encoder.encoded, report.encoded, report.reused) == (0, 0, 16)
    assert report.up_to_date
    assert content(out) == before
    assert (out / "manifest.json").read_bytes() == stamp


def test_a_changed_picture_is_encoded_alone(
    tmp_path: Path, catalog: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    old = open_index(out)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "4.png")
    tiny_encoder.encoded = 0
    report = build(catalog, tiny_encoder, out)
    assert (tiny_encoder.encoded, report.encoded, report.reused) == (1, 1, 15)
    new = open_index(out)
    changed = [not np.array_equal(*pair) for pair in zip(old.vectors, new.vectors, strict=True)]
    assert [new.images.location(int(row)) for row in np.flatnonzero(changed)] == ["4.png"]
    red = tiny_encoder.embed_texts(["red"])
    _, nearest = new.index.search(red, 1)
    assert new.images.location(int(nearest[0, 0])) == "4.png"
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == ["s000001", "s000002", "versions"]


def test_a_changed_row_is_answered_without_encoding(
    tmp_path: Path, rows: list[Row], catalog: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    old = open_index(out)
    rows[3] = (rows[3][0], "a new title", rows[3][2])
    tiny_encoder.encoded = 0
    report = build(write_catalog(tmp_path, rows), tiny_encoder, out)
    assert (tiny_encoder.encoded, report.up_to_date) == (0, False)
    new = open_index(out)
    assert new.products.fields(3)["title"] == "a new title"
    assert new.products.fields(4)["title"] == "thing 4"
    assert new.vectors.tolist() == old.vectors.tolist()


def test_rows_that_come_go_and_move_keep_their_vectors(
    tmp_path: Path, rows: list[Row], catalog: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    write_picture(tmp_path / "new.png", 99)
    changed = [("SKU/new", "new", "new.png"), *reversed(rows[2:])]
    tiny_encoder.encoded = 0
    report = build(write_catalog(tmp_path, changed), tiny_encoder, out)
    assert (tiny_encoder.encoded, report.encoded) == (1, 1)
    index = open_index(out)
    assert index.products.ids == [row[0] for row in changed]
    for row, location in enumerate(index.images.column("location")):
        picture = Image.open(tmp_path / location).convert("RGB")
        assert index.vectors[row].tolist() == tiny_encoder.embed_images([picture])[0].tolist()


def test_another_encoder_encodes_everything_anew(
    tmp_path: Path, catalog: Path, tiny_encoder: Any, other_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    report = build(catalog, other_encoder, out)
    assert (other_encoder.encoded, report.encoded, report.up_to_date) == (15, 15, False)
    assert open_index(out, encoder=other_encoder).index.ntotal == 16


def test_a_renamed_encoder_is_recorded_and_encodes_nothing(
    tmp_path: Path, catalog: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    tiny_encoder.name, tiny_encoder.encoded = "moved", 0
    build(catalog, tiny_encoder, out)
    assert open_index(out).manifest.encoder.name == "moved"
    assert tiny_encoder.encoded == 0


def test_a_damaged_index_is_made_whole(tmp_path: Path, catalog: Path, tiny_encoder: Any) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    for name in ("manifest.json", "s000002/vectors.npy"):
        (out / name).write_bytes(b"x")
        build(catalog, tiny_encoder, out)
        assert open_index(out).index.ntotal == 16


def test_no_usable_product_is_an_error_that_names_the_rejects(
    tmp_path: Path, tiny_encoder: Any
) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    rows = [("A", "a", "empty.png"), ("", "b", "empty.png"), ("C", "c", "gone.png")]
    out = tmp_path / "index"
    with pytest.raises(CatalogError) as caught:
        build(write_catalog(tmp_path, rows), tiny_encoder, out)
    assert f"see {out / 'rejects.jsonl'}" in str(caught.value)
    assert "3 rows and 2 pictures rejected" in str(caught.value)
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(line["row"], line["scope"]) for line in lines] == [
        (2, "row"),
        (1, "image"),
        (1, "row"),
        (3, "image"),
        (3, "row"),
    ]
    assert sorted(path.name for path in out.iterdir()) == [".shoplens.lock", "rejects.jsonl"]
    with pytest.raises(IndexFolderError, match=r"no product could be used: see .*rejects\.jsonl"):
        open_index(out)
    # Mended, it works, and the list of the failure is gone.
    write_picture(tmp_path / "empty.png", 1)
    report = build(tmp_path / "catalog.csv", tiny_encoder, out)
    assert (report.counts.products, report.counts.rejected) == (1, 2)
    assert not (out / "rejects.jsonl").exists()


def test_pictures_out_of_reach_leave_the_old_index(
    tmp_path: Path, rows: list[Row], catalog: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    before = content(out)
    write_picture(tmp_path / "11.png", 99)
    away = [tmp_path / name for row in rows[1:7] for name in row[2].split("|")]
    for path in away:
        path.rename(path.with_suffix(".away"))
    tiny_encoder.encoded = 0
    for _ in range(2):
        with pytest.raises(IndexFolderError) as caught:
            build(catalog, tiny_encoder, out)
        assert str(caught.value) == (
            f"8 of 16 pictures of {out} can no longer be read, first {tmp_path / '1.png'}: cannot "
            "be read: No such file or directory; mount or restore them, or drop them with "
            "--accept-missing; the index is unchanged"
        )
        assert content(out).items() > before.items()
    assert tiny_encoder.encoded == 1  # the new 11.png, once
    for path in away:
        path.with_suffix(".away").rename(path)
    report = build(catalog, tiny_encoder, out)
    assert (tiny_encoder.encoded, report.counts.images) == (1, 16)


def test_missing_pictures_may_be_accepted(
    tmp_path: Path, rows: list[Row], catalog: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    for number in range(1, 12):
        (tmp_path / f"{number}.png").unlink()
    report = build(catalog, tiny_encoder, out, accept_missing=True)
    assert report.counts.images_rejected == 11
    assert open_index(out).images.column("location") == [
        "0.png",
        "0b.png",
        "3b.png",
        "6b.png",
        "9b.png",
    ]
    assert build(catalog, tiny_encoder, out).up_to_date  # what the index has lost is gone


def test_an_index_whose_pictures_are_all_out_of_reach_says_so(
    tmp_path: Path, catalog: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    before = content(out)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(IndexFolderError, match="16 of 16 pictures"):
        build(catalog, tiny_encoder, out)
    assert content(out) == before


@pytest.mark.parametrize(("missing", "refused"), [(2, False), (3, True)])
def test_one_in_twenty_pictures_may_go_missing(
    tmp_path: Path, tiny_encoder: Any, missing: int, refused: bool
) -> None:
    for number in range(40):
        write_picture(tmp_path / f"{number}.png", number)
    catalog = write_catalog(tmp_path, [(str(n), "", f"{n}.png") for n in range(40)])
    build(catalog, tiny_encoder, tmp_path / "index")
    for number in range(missing):
        (tmp_path / f"{number}.png").unlink()
    if refused:
        with pytest.raises(IndexFolderError, match="3 of 40 pictures"):
            build(catalog, tiny_encoder, tmp_path / "index")
    else:
        report = build(catalog, tiny_encoder, tmp_path / "index")
        assert report.counts.products == 40 - missing


def test_other_losses_than_missing_pictures_are_taken_as_meant(
    tmp_path: Path, rows: list[Row], catalog: Path, tiny_encoder: Any, other_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    for name in ("0.png", "0b.png", "1.png"):
        (tmp_path / name).write_bytes(b"<html>moved</html>")  # can be read, to no avail
    for name in ("2.png", "3.png", "3b.png"):
        (tmp_path / name).unlink()  # and the catalog no longer names them
    rows = [("SKU/new", "never seen", "nowhere.png"), *rows[:2], *rows[4:]]
    report = build(write_catalog(tmp_path, rows), tiny_encoder, out)
    assert report.counts.products == 8
    (tmp_path / "4.png").unlink()
    (tmp_path / "5.png").unlink()
    # Of another encoder, the old vectors are of no use.
    assert build(catalog, other_encoder, out).counts.products == 6


def test_an_error_in_the_catalog_leaves_no_trace_but_work_that_counts(
    tmp_path: Path, rows: list[Row], tiny_encoder: Any
) -> None:
    out = tmp_path / "index"
    twice = write_catalog(tmp_path, [*rows, rows[0]])
    for _ in range(2):
        with pytest.raises(DuplicateIdError):
            build(twice, tiny_encoder, out)
        assert not out.exists()
    catalog = write_catalog(tmp_path, rows)
    with pytest.raises(Stopped):
        build(catalog, StopsAtBatch(tiny_encoder, 4), out)
    with pytest.raises(DuplicateIdError):
        build(write_catalog(tmp_path, [*rows, rows[0]]), tiny_encoder, out)
    assert [path.name for path in (out / ".staging" / "build").iterdir()] == [
        tiny_encoder.fingerprint[:16]
    ]
    tiny_encoder.encoded = 0
    build(write_catalog(tmp_path, rows), tiny_encoder, out)
    assert tiny_encoder.encoded == 10  # all but the first shard


def test_an_error_in_the_catalog_leaves_the_old_index(
    tmp_path: Path, rows: list[Row], catalog: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    ids = open_index(out).products.ids
    with pytest.raises(DuplicateIdError):
        build(write_catalog(tmp_path, [*rows, rows[0]]), tiny_encoder, out)
    assert open_index(out).products.ids == ids


class StopsAtBatch:
    """An encoder that dies before its n-th batch."""

    def __init__(self, encoder: Any, batch: int) -> None:
        self._encoder = encoder
        self._left = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def embed_pixels(self, pixels: NDArray[np.float32]) -> Any:
        if self._left == 0:
            raise Stopped
        self._left -= 1
        return self._encoder.embed_pixels(pixels)


@pytest.mark.parametrize("batch", range(8))
def test_a_build_that_died_while_encoding_goes_on_to_the_same_bytes(
    tmp_path: Path, catalog: Path, tiny_encoder: Any, batch: int
) -> None:
    (tmp_path / "3.png").write_bytes(b"broken")
    build(catalog, tiny_encoder, tmp_path / "whole")
    with pytest.raises(Stopped):
        build(catalog, StopsAtBatch(tiny_encoder, batch), tmp_path / "index")
    tiny_encoder.encoded = 0
    build(catalog, tiny_encoder, tmp_path / "index")
    assert content(tmp_path / "index") == content(tmp_path / "whole")
    # The shards have 4, 5, 4 and 1 new pictures, in 2, 3, 2 and 1 batches.
    in_finished_shards = [0, 0, 4, 4, 4, 9, 9, 13][batch]
    assert tiny_encoder.encoded == 14 - in_finished_shards


@contextmanager
def failing_fsync(
    monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
) -> Iterator[None]:
    """Whatever makes things durable fails at the n-th time, and from then on."""
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > number:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", fsync)
        yield


def syncs_of_a_build(monkeypatch: pytest.MonkeyPatch, *build_of: Any) -> int:
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", calls.append)
        build(*build_of)
    return len(calls)


def test_a_build_that_died_at_any_write_goes_on_to_the_same_bytes(
    tmp_path: Path, catalog: Path, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = syncs_of_a_build(monkeypatch, catalog, tiny_encoder, tmp_path / "whole")
    assert syncs > 12  # shards, the files of the generation, its folder, the manifest
    for number in range(syncs):
        out = tmp_path / str(number)
        with failing_fsync(monkeypatch, number, Stopped()), pytest.raises(Stopped):
            build(catalog, tiny_encoder, out)
        try:
            assert open_index(out).index.ntotal == 16  # dead after the commit
        except IndexFolderError as error:
            # Dead before a shard was whole, it leaves nothing.
            begun = "run the same `shoplens index` command" if number else "does not exist"
            assert begun in str(error)  # noqa: PT017
        build(catalog, tiny_encoder, out)
        assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("error", [Stopped(), OSError(errno.ENOSPC, "No space left on device")])
def test_at_any_moment_of_an_update_the_old_index_or_the_new_one_is_there(
    tmp_path: Path,
    rows: list[Row],
    catalog: Path,
    tiny_encoder: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    titles = [row[1] for row in rows]
    number = 0
    while True:
        rows = [(row[0], f"{row[1]}!", row[2]) for row in rows]
        write_picture(tmp_path / "1.png", 1000 + number)  # so that there is a shard to write
        write_catalog(tmp_path, rows)
        new_titles = [row[1] for row in rows]
        expected = IndexFolderError if isinstance(error, OSError) else Stopped
        try:
            with failing_fsync(monkeypatch, number, error):
                build(catalog, tiny_encoder, out)
            break
        except expected as caught:
            assert caught is error or "No space left on device" in str(caught)  # noqa: PT017
        index = open_index(out)
        answers = [index.products.fields(row)["title"] for row in range(12)]
        assert answers in (titles, new_titles)
        titles = answers
        number += 1
    assert number > 10
    index = open_index(out)
    assert [index.products.fields(row)["title"] for row in range(12)] == new_titles
    write_catalog(tmp_path, [(row[0], "the same", row[2]) for row in rows])
    build(catalog, tiny_encoder, out)  # takes away what the failures have left
    index = open_index(out)
    assert sorted(path.name for path in out.iterdir()) == [
        ".shoplens.lock",
        "manifest.json",
        *sorted(
            {part.name for m in [index.manifest, *earlier_versions(out)] for part in m.segments}
        ),
        "versions",
    ]


@pytest.mark.parametrize("limit", [0, 100, 1000, 2500, 3200])
def test_a_file_that_cannot_be_written_to_its_end_leaves_the_old_index(
    tmp_path: Path, rows: list[Row], catalog: Path, tiny_encoder: Any, limit: int
) -> None:
    out = tmp_path / "index"
    build(catalog, tiny_encoder, out)
    before = content(out)
    changed = [(row[0], f"{row[1]} again", row[2]) for row in rows]
    write_catalog(tmp_path, changed)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(
            IndexFolderError, match=r"cannot be written: .*the same command goes on"
        ):
            build(catalog, tiny_encoder, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    now = content(out)
    assert {name: now[name] for name in before} == before
    build(catalog, tiny_encoder, out)
    assert open_index(out).products.fields(0)["title"] == "thing 0 again"


@pytest.mark.parametrize("batch", [2, 7])
def test_a_killed_process_is_resumed_to_the_same_bytes(
    tmp_path: Path, catalog: Path, tiny_encoder: Any, batch: int
) -> None:
    build(catalog, tiny_encoder, tmp_path / "whole")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BUILD, catalog, tmp_path / "index", str(batch)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    tiny_encoder.encoded = 0
    build(catalog, tiny_encoder, tmp_path / "index")
    assert content(tmp_path / "index") == content(tmp_path / "whole")
    assert tiny_encoder.encoded == {2: 15, 7: 5}[batch]


def test_shards_of_any_size_give_the_same_products_and_pictures(
    tmp_path: Path, catalog: Path, tiny_encoder: Any
) -> None:
    build(catalog, tiny_encoder, tmp_path / "a")
    build(catalog, tiny_encoder, tmp_path / "b", batch_size=64, shard_size=1000)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_memory_of_products_is_bounded_by_reading_in_pieces(
    tmp_path: Path, rows: list[Row], tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexing.spool.ROWS", 5)
    catalog = write_catalog(tmp_path, rows)
    (tmp_path / "6.png").write_bytes(b"")
    (tmp_path / "6b.png").write_bytes(b"")
    build(catalog, tiny_encoder, tmp_path / "index")
    index = open_index(tmp_path / "index")
    kept = [row for row in rows if row[0] != "SKU/6"]
    assert index.products.ids == [row[0] for row in kept]
    titles = [index.products.fields(row)["title"] for row in range(len(kept))]
    assert titles == [row[1] for row in kept]
    owners = [index.products.ids[row] for row in index.images.product]
    assert owners == [row[0] for row in kept for _ in row[2].split("|")]


def test_a_catalog_may_be_built_twice(tmp_path: Path, catalog: Path, tiny_encoder: Any) -> None:
    source: Catalog = read_catalog(catalog)
    first = build_index(source, tiny_encoder, tmp_path / "index")
    second = build_index(source, tiny_encoder, tmp_path / "index")
    assert first.counts == second.counts
    assert second.up_to_date
