"""Facts of picture files: what is true of them, what is kept of a stop, and what is not."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.esci import scan as scanning
from benchmarks.esci.pictures import Paths
from benchmarks.esci.scan import SCHEMA, Facts, scan
from indexing.catalog.locations import ImageRoot
from indexing.errors import BenchmarkError, FetchError
from indexing.phash import phash


def picture(level: int = 100, size: tuple[int, int] = (120, 110)) -> bytes:
    noise = np.random.default_rng(level).integers(256, size=(8, 8), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).resize(size).save(data, "PNG")
    return data.getvalue()


def paths(*names: str, urls: list[str | None] | None = None, web: bool = False) -> Paths:
    flags = np.array([url is not None or web for url in urls or [None] * len(names)])
    return Paths(pa.array(sorted(names)), flags, pa.array(urls, pa.string()) if urls else None)


def reasons(facts: Facts) -> list[str]:
    return [facts.reasons[code] for code in facts.reason]


@pytest.fixture
def root(tmp_path: Path) -> ImageRoot:
    (tmp_path / "images").mkdir()
    return ImageRoot(tmp_path / "images")


def test_facts_are_true_of_the_file(root: ImageRoot, tmp_path: Path) -> None:
    data = picture()
    (root.folder / "a.png").write_bytes(data)
    facts = scan(paths("a.png"), root, tmp_path / "shards")
    assert facts.sha256[0].tobytes() == hashlib.sha256(data).digest()
    assert facts.phash[0] == phash(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (facts.width[0], facts.height[0]) == (120, 110)
    assert (facts.missing[0], reasons(facts)) == (False, [""])


def test_each_way_to_be_unusable_has_its_reason(root: ImageRoot, tmp_path: Path) -> None:
    (root.folder / "cut.png").write_bytes(picture()[:-100])
    (root.folder / "page.jpg").write_bytes(b"<html>no")
    (root.folder / "sub").mkdir()
    (root.folder / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (tmp_path / "outside.jpg").write_bytes(picture())
    names = ["../outside.jpg", "cut.png", "gone.jpg", "link.jpg", "page.jpg", "sub", "x" * 300]
    facts = scan(paths(*names), root, tmp_path / "shards")
    assert facts.missing.tolist() == [True, False, True, True, False, True, True]
    found = reasons(facts)
    assert found[0] == "refused: '..' may not stand in a picture path"
    assert found[1].startswith("PNG data that cannot be decoded")
    assert found[2] == found[6] == "no such file under the images root"
    assert found[3] == "refused: a link that leads out of the images root"
    assert "an HTML page" in found[4]
    assert found[5] == "a folder, not a file"


def test_a_url_without_its_file_says_so(root: ImageRoot, tmp_path: Path) -> None:
    facts = scan(paths("a.jpg", web=True), root, tmp_path / "shards")
    assert facts.missing.all()
    assert "--allow-urls" in reasons(facts)[0]


def test_urls_are_fetched_into_the_images_root(
    root: ImageRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        if url.endswith("b.png"):
            raise FetchError(f"{url}: the server answered 404 (Not Found)")
        return picture(7)

    monkeypatch.setattr(scanning, "fetch_image", fetch)
    (root.folder / "c.png").write_bytes(picture(8))
    urls = [f"https://x.org/{name}.png" for name in "abc"]
    facts = scan(paths("a.png", "b.png", "c.png", urls=urls), root, tmp_path / "shards")
    assert sorted(asked) == urls[:2]  # the third is there
    assert (root.folder / "a.png").read_bytes() == picture(7)
    assert facts.missing.tolist() == [False, True, False]
    assert reasons(facts)[1] == "the server answered 404 (Not Found)"


def drawn_files(root: ImageRoot, count: int) -> Paths:
    for number in range(count):
        data = picture(number) if number % 3 else picture(number)[:-90]
        (root.folder / f"{number:02d}.png").write_bytes(data)
    return paths(*[f"{number:02d}.png" for number in range(count)], "gone.png")


def same(a: Facts, b: Facts) -> bool:
    names = ("sha256", "phash", "width", "height", "missing")
    equal = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)
    return equal and reasons(a) == reasons(b)


def test_a_stopped_scan_goes_on(
    root: ImageRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "SHARD", 4)
    files = drawn_files(root, 20)
    whole = scan(files, root, tmp_path / "other")

    def stop(done: int, total: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(files, root, tmp_path / "shards", progress=stop)
    seen: list[tuple[int, int]] = []
    again = scan(files, root, tmp_path / "shards", progress=lambda *args: seen.append(args))
    assert seen[0] == (0, 13)  # two shards of four were there
    assert seen[-1] == (13, 13)
    assert same(whole, again)
    third: list[tuple[int, int]] = []
    assert same(whole, scan(files, root, tmp_path / "shards", progress=lambda *a: third.append(a)))
    assert third[-1] == (1, 1)  # what is missing is looked for each time


def test_shards_of_another_images_root_are_not_believed(root: ImageRoot, tmp_path: Path) -> None:
    other = ImageRoot(tmp_path)
    (root.folder / "a.png").write_bytes(picture(1))
    (tmp_path / "a.png").write_bytes(picture(2))
    scan(paths("a.png"), root, tmp_path / "shards")
    facts = scan(paths("a.png"), other, tmp_path / "shards")
    assert facts.sha256[0].tobytes() == hashlib.sha256(picture(2)).digest()


def test_a_facts_file_spares_the_pictures(root: ImageRoot, tmp_path: Path) -> None:
    files = drawn_files(root, 9)
    whole = scan(files, root, tmp_path / "shards")
    pq.write_table(pa.concat_tables(whole.tables(files.names, 2)), tmp_path / "scan.parquet")
    for number in range(9):
        (root.folder / f"{number:02d}.png").unlink()
    again = scan(files, root, tmp_path / "new", tmp_path / "scan.parquet")
    assert same(whole, again)
    some = paths("05.png", "nowhere.png")
    assert scan(some, root, tmp_path / "new", tmp_path / "scan.parquet").missing.tolist() == [
        False,
        True,
    ]


def test_the_table_of_facts_has_nulls_where_there_is_an_error(
    root: ImageRoot, tmp_path: Path
) -> None:
    files = drawn_files(root, 2)
    table = pa.concat_tables(scan(files, root, tmp_path / "shards").tables(files.names, 10))
    broken, sound = table.to_pylist()
    assert broken["path"] == "00.png"
    assert broken["error"].startswith("PNG data")
    assert [broken[name] for name in ("sha256", "phash", "width", "height")] == [None] * 4
    assert sound["sha256"] == hashlib.sha256(picture(1)).digest()
    assert (sound["width"], sound["height"], sound["error"]) == (120, 110, None)


def test_facts_that_are_not_whole_are_looked_up_anew(root: ImageRoot, tmp_path: Path) -> None:
    (root.folder / "a.png").write_bytes(picture(1))
    row = {"path": "a.png", "sha256": b"x" * 32, "phash": 3, "width": None, "height": 5}
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), tmp_path / "scan.parquet")
    facts = scan(paths("a.png"), root, tmp_path / "shards", tmp_path / "scan.parquet")
    assert facts.sha256[0].tobytes() == hashlib.sha256(picture(1)).digest()


def test_a_facts_file_of_other_columns_is_refused(root: ImageRoot, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "scan.parquet")
    with pytest.raises(BenchmarkError, match=r"scan\.parquet: has no column sha256"):
        scan(paths("a.png"), root, tmp_path / "shards", tmp_path / "scan.parquet")


def test_an_images_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no such folder"):
        scan(paths("a.png"), ImageRoot(tmp_path / "gone"), tmp_path / "shards")
