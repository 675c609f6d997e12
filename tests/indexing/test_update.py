from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from indexing import compact as compaction
from indexing.build import BuildReport, build_index
from indexing.catalog import read_catalog
from indexing.committing import earlier_versions, locked_folder, roll_back
from indexing.compact import compact, worth_compacting
from indexing.errors import IndexFolderError, IndexMismatchError, QueryError
from indexing.manifest import read_manifest
from indexing.store import OpenIndex, open_index
from indexing.update import delete_products, update_index

Shop = dict[str, tuple[str, list[str]]]  # id -> title, colours of its pictures


@dataclass
class Bench:
    """A folder with pictures of plain colours, catalogs of them, and their index."""

    place: Path
    encoder: Any

    @property
    def folder(self) -> Path:
        return self.place / "index"

    def catalog(self, shop: Shop) -> Path:
        path = self.place / "catalog.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "title", "image"])
            for product_id, (title, colours) in shop.items():
                for colour in colours:
                    picture = self.place / f"{colour}.png"
                    if not picture.exists():
                        Image.new("RGB", (8, 8), colour).save(picture)
                writer.writerow([product_id, title, "|".join(f"{c}.png" for c in colours)])
        return path

    def build(self, shop: Shop) -> BuildReport:
        return build_index(read_catalog(self.catalog(shop)), self.encoder, self.folder)

    def update(self, shop: Shop) -> BuildReport:
        return update_index(read_catalog(self.catalog(shop)), self.encoder, self.folder)

    def open(self) -> OpenIndex:
        return open_index(self.folder, encoder=self.encoder)


@pytest.fixture
def bench(tmp_path: Path, tiny_encoder: Any) -> Bench:
    return Bench(tmp_path, tiny_encoder)


START: Shop = {"a": ("one", ["red"]), "b": ("two", ["lime", "blue"]), "c": ("three", ["white"])}


def held(index: OpenIndex) -> Shop:
    """What an index says it holds."""
    shop: Shop = {
        product_id: (str(index.products.fields(row)["title"]), [])
        for row, product_id in enumerate(index.products.ids)
    }
    for row, owner in enumerate(index.images.product):
        shop[index.products.id_of(int(owner))][1].append(index.images.location(row)[:-4])
    return shop


def check(index: OpenIndex, encoder: Any, expected: Shop) -> None:
    """It holds what is expected; each vector is its picture's; answers are those of brute force."""
    assert held(index) == expected
    colours = [name[:-4] for name in index.images.column("location") if name is not None]
    pictures = [Image.new("RGB", (8, 8), colour) for colour in colours]
    vectors = np.asarray(index.vectors[:])
    if pictures:
        assert vectors.tolist() == encoder.embed_images(pictures).tolist()
        for row in {0, len(colours) // 2, len(colours) - 1}:
            assert index.vectors[row].tolist() == vectors[row].tolist()
    assert (index.index.ntotal, index.index.dim) == (len(colours), 49)
    queries = encoder.embed_texts(["red", "blue", "gray"])
    scores, rows = index.index.search(queries, 4)
    products = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32)
    for query in range(3):
        best = sorted(range(len(colours)), key=lambda row: (-products[query, row], row))[:4]
        assert rows[query].tolist() == best + [-1] * (4 - len(best))
        assert scores[query, : len(best)] == pytest.approx(products[query, best], abs=1e-6)
        assert np.isneginf(scores[query, len(best) :]).all()


def test_an_update_brings_new_and_changed_products_and_leaves_the_rest(bench: Bench) -> None:
    bench.build(START)
    bench.encoder.encoded = 0
    report = bench.update(
        {
            "b": ("two", ["lime", "blue"]),
            "c": ("three, but new", ["white"]),
            "d": ("four", ["red", "navy"]),
        }
    )
    counts = report.counts
    assert (counts.rows, counts.products, counts.unchanged, counts.rejected) == (3, 2, 1, 0)
    assert (report.encoded, bench.encoder.encoded, report.images) == (1, 1, 6)  # navy alone
    index = bench.open()
    check(
        index,
        bench.encoder,
        {
            "a": ("one", ["red"]),
            "b": ("two", ["lime", "blue"]),
            "c": ("three, but new", ["white"]),
            "d": ("four", ["red", "navy"]),
        },
    )
    manifest = index.manifest
    assert (manifest.version, manifest.products, manifest.images) == (2, 4, 6)
    assert [segment.counts.products for segment in manifest.segments] == [3, 2]
    # What was there was not written again.
    assert manifest.segments[0] == earlier_versions(bench.folder)[0].segments[0]


@pytest.mark.parametrize(
    "change",
    [("b", ("two!", ["lime", "blue"])), ("b", ("two", ["blue", "lime"])), ("b", ("two", ["lime"]))],
)
def test_any_change_of_a_product_is_seen(bench: Bench, change: Any) -> None:
    bench.build(START)
    assert bench.update(dict([change])).counts.products == 1
    check(bench.open(), bench.encoder, {**without("b"), **dict([change])})


def without(*ids: str) -> Shop:
    return {name: product for name, product in START.items() if name not in ids}


def test_a_picture_that_is_drawn_anew_is_seen_under_its_old_name(bench: Bench) -> None:
    bench.build(START)
    Image.new("RGB", (8, 8), "black").save(bench.place / "red.png")
    report = bench.update(START)
    assert (report.counts.products, report.counts.unchanged, report.encoded) == (1, 2, 1)
    black = bench.encoder.embed_images([Image.new("RGB", (8, 8), "black")])
    index = bench.open()
    _, rows = index.index.search(black, 1)
    assert index.products.id_of(int(index.images.product[rows[0, 0]])) == "a"


def test_an_update_that_changes_nothing_makes_no_version(bench: Bench) -> None:
    bench.build(START)
    before = (bench.folder / "manifest.json").read_bytes()
    report = bench.update(START)
    assert (report.up_to_date, report.encoded, report.counts.unchanged) == (True, 0, 3)
    assert (bench.folder / "manifest.json").read_bytes() == before
    assert not (bench.folder / ".staging").exists()


def test_a_product_that_lost_its_pictures_stays_and_is_reported(bench: Bench) -> None:
    bench.build(START)
    path = bench.catalog({"a": ("one, new", ["red"]), "d": ("four", ["navy"])})
    (bench.place / "red.png").unlink()
    report = update_index(read_catalog(path), bench.encoder, bench.folder)
    assert (report.counts.products, report.counts.rejected) == (1, 1)
    rejects = [json.loads(line) for line in report.rejects.read_text().splitlines()]
    assert [(item["row"], item["id"], item["scope"]) for item in rejects] == [
        (1, "a", "image"),
        (1, "a", "row"),
    ]
    assert held(bench.open()) == {**START, "d": ("four", ["navy"])}


def test_rejects_of_an_update_without_change_are_kept(bench: Bench) -> None:
    bench.build(START)
    path = bench.catalog({"a": ("one", ["red"]), "d": ("four", ["navy"])})
    (bench.place / "navy.png").unlink()
    report = update_index(read_catalog(path), bench.encoder, bench.folder)
    assert report.up_to_date
    assert '"id": "d"' in report.rejects.read_text()


def test_deleted_products_are_gone_and_may_come_again(bench: Bench) -> None:
    bench.build(START)
    assert delete_products(bench.folder, ["b", "nobody", "b"]) == ["nobody"]
    check(bench.open(), bench.encoder, without("b"))
    bench.encoder.encoded = 0
    report = bench.update({"b": ("two", ["lime", "blue"])})
    assert (report.counts.products, bench.encoder.encoded) == (1, 0)  # its vectors were kept
    check(bench.open(), bench.encoder, {**without("b"), "b": START["b"]})
    with pytest.raises(KeyError):
        bench.open().products.row_of("nobody")


def test_all_products_can_be_deleted_and_others_brought_in(bench: Bench) -> None:
    bench.build(START)
    delete_products(bench.folder, START)
    check(bench.open(), bench.encoder, {})
    bench.update({"b": START["b"]})
    check(bench.open(), bench.encoder, {"b": START["b"]})


def test_deleting_nothing_that_is_there_is_an_error_that_names_it(bench: Bench) -> None:
    bench.build(START)
    before = (bench.folder / "manifest.json").read_bytes()
    with pytest.raises(QueryError, match=r"does not hold 'w', 'x', 'y' and 1 more"):
        delete_products(bench.folder, ["w", "x", "y", "z"])
    with pytest.raises(QueryError, match="no id given"):
        delete_products(bench.folder, [])
    assert (bench.folder / "manifest.json").read_bytes() == before


def test_what_another_encoder_made_is_not_updated(bench: Bench, other_encoder: Any) -> None:
    bench.build(START)
    with pytest.raises(IndexMismatchError, match="was made by encoder tiny"):
        update_index(read_catalog(bench.catalog(START)), other_encoder, bench.folder)


def test_the_second_writer_is_refused(bench: Bench) -> None:
    bench.build(START)
    with locked_folder(bench.folder, "update"):
        for change in (
            lambda: bench.update({"d": ("four", ["navy"])}),
            lambda: delete_products(bench.folder, ["a"]),
            lambda: roll_back(bench.folder),
        ):
            with pytest.raises(IndexFolderError, match="being written by another process"):
                change()
    assert held(bench.open()) == START


def test_compaction_keeps_what_is_alive_in_one_segment(bench: Bench) -> None:
    bench.build(START)
    bench.update({"c": ("three, new", ["white"]), "d": ("four", ["navy"])})
    delete_products(bench.folder, ["a"])
    before = held(bench.open())
    manifest = compact(bench.folder)
    index = bench.open()
    check(index, bench.encoder, before)
    assert index.manifest == manifest
    counts = manifest.segments[0].counts
    assert (len(manifest.segments), counts.products, counts.images) == (1, 3, 4)
    assert counts.rows == counts.products + counts.merged + counts.rejected
    assert compact(bench.folder) == manifest  # nothing to do
    check(open_index(bench.folder), bench.encoder, before)


def while_merging(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Lets `change` happen when a compaction has merged its segments and not yet swapped them."""
    merge = compaction._merge

    def slowly(index: OpenIndex, work: Path) -> Any:
        merged = merge(index, work)
        change()
        return merged

    monkeypatch.setattr(compaction, "_merge", slowly)


def test_updates_that_come_while_the_index_is_compacted_stay(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.build(START)
    bench.update({"d": ("four", ["navy"])})

    def change() -> None:
        bench.update({"a": ("one, new", ["red"]), "e": ("five", ["gold"])})
        delete_products(bench.folder, ["b"])

    while_merging(monkeypatch, change)
    manifest = compact(bench.folder)
    assert [segment.counts.products for segment in manifest.segments] == [4, 2, 0]
    check(
        bench.open(),
        bench.encoder,
        {
            "c": ("three", ["white"]),
            "d": ("four", ["navy"]),
            "a": ("one, new", ["red"]),
            "e": ("five", ["gold"]),
        },
    )


def test_a_rebuild_that_comes_while_the_index_is_compacted_wins(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.build(START)
    bench.update({"d": ("four", ["navy"])})
    while_merging(monkeypatch, lambda: bench.build({"z": ("last", ["red"])}))
    with pytest.raises(IndexFolderError, match="built anew or rolled back meanwhile"):
        compact(bench.folder)
    assert held(bench.open()) == {"z": ("last", ["red"])}


def test_compaction_pays_for_many_segments_or_a_large_share(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexing.compact.MANY_SEGMENTS", 4)
    many: Shop = {f"p{n}": ("one of many", ["red"]) for n in range(40)}
    bench.build(many)
    assert not worth_compacting(bench.open())
    for number in range(4):
        bench.update({f"q{number}": ("a new one", ["red"])})
        assert worth_compacting(bench.open()) == (number == 3)
    bench.build(many)
    bench.update({f"p{n}": ("changed", ["red"]) for n in range(4)})
    assert not worth_compacting(bench.open())
    bench.update({f"p{n}": ("changed", ["red"]) for n in range(10, 20)})
    assert worth_compacting(bench.open())


def test_a_rollback_makes_an_earlier_version_hold_and_can_be_undone(bench: Bench) -> None:
    bench.build(START)
    bench.update({"a": ("one, new", ["navy"])})
    delete_products(bench.folder, ["b", "c"])
    manifest = roll_back(bench.folder)
    assert (manifest.version, manifest.change) == (4, "rollback to version 2")
    check(bench.open(), bench.encoder, {**without("a"), "a": ("one, new", ["navy"])})
    roll_back(bench.folder, 1)
    check(bench.open(), bench.encoder, START)
    roll_back(bench.folder, 3)
    assert held(bench.open()) == {"a": ("one, new", ["navy"])}
    assert [old.version for old in earlier_versions(bench.folder)] == [5, 4, 3, 2, 1]


def test_a_version_that_is_not_there_is_refused_with_those_that_are(bench: Bench) -> None:
    bench.build(START)
    with pytest.raises(IndexFolderError, match="no files of an earlier version: kept are none"):
        roll_back(bench.folder)
    delete_products(bench.folder, ["a"])
    with pytest.raises(IndexFolderError, match="no files of version 7: kept are 1"):
        roll_back(bench.folder, 7)
    (bench.folder / "s000001" / "vectors.npy").write_bytes(b"x")
    with pytest.raises(IndexFolderError, match=r"vectors\.npy has 1 bytes"):
        roll_back(bench.folder, 1)
    assert read_manifest(bench.folder).version == 2


def test_versions_are_kept_while_their_base_is_one_of_the_last_two(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexing.committing.KEPT_VERSIONS", 4)
    for title in ("first", "second", "third"):
        bench.build({"a": (title, ["red"])})
        bench.update({"b": (title, ["blue"])})
    kept = earlier_versions(bench.folder)
    assert [old.version for old in kept] == [5, 4, 3]
    names = {segment.name for old in [bench.open().manifest, *kept] for segment in old.segments}
    assert {path.name for path in bench.folder.glob("s*")} == names
    for number in range(6):
        bench.update({"c": (str(number), ["lime"])})
    assert [old.version for old in earlier_versions(bench.folder)] == [11, 10, 9, 8]
    assert held(bench.open())["c"] == ("5", ["lime"])


CHANGES = st.lists(
    st.one_of(
        st.tuples(
            st.just("update"),
            st.dictionaries(
                st.sampled_from("abcdef"),
                st.tuples(
                    st.sampled_from(["x", "y"]),
                    st.lists(st.sampled_from(["red", "lime", "blue", "gold"]), min_size=1,
                             max_size=2, unique=True),
                ),
                min_size=1,
                max_size=3,
            ),
        ),
        st.tuples(st.just("delete"), st.lists(st.sampled_from("abcdef"), max_size=3)),
        st.tuples(st.just("compact"), st.none()),
        st.tuples(st.just("rollback"), st.none()),
    ),
    max_size=4,
)  # fmt: skip


@given(CHANGES)
@settings(max_examples=8)
def test_any_changes_leave_what_a_plain_dict_would_hold(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, Any]]
) -> None:
    from tests.conftest import TinyEncoder

    bench = Bench(tmp_path_factory.mktemp("shop"), TinyEncoder())
    bench.build(START)
    expected, before = dict(START), [dict(START)]
    for kind, what in changes:
        version = read_manifest(bench.folder).version
        if kind == "update":
            changed = {k: v for k, v in what.items() if expected.get(k) != v}
            bench.update(what)
            expected = {k: v for k, v in expected.items() if k not in changed} | changed
        elif kind == "delete" and set(what) & set(expected):
            delete_products(bench.folder, what)
            expected = {k: v for k, v in expected.items() if k not in what}
        elif kind == "compact":
            compact(bench.folder)
        elif kind == "rollback" and len(before) > 1:
            roll_back(bench.folder)
            expected = before[-2]
        if read_manifest(bench.folder).version != version:
            before.append(dict(expected))
        check(bench.open(), bench.encoder, expected)


def test_where_there_is_no_index_nothing_is_made(tmp_path: Path) -> None:
    for change in (
        lambda: delete_products(tmp_path / "nowhere", ["a"]),
        lambda: compact(tmp_path / "nowhere"),
        lambda: roll_back(tmp_path / "nowhere"),
    ):
        with pytest.raises(IndexFolderError, match="does not exist: make it"):
            change()
    assert not (tmp_path / "nowhere").exists()
