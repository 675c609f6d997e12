"""Attributes in an index: predicted, given, filled in, and kept through all that changes it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from indexing.attributes import predicting
from indexing.attributes.columns import TOP, Column, Known
from indexing.attributes.exporting import export_csv
from indexing.attributes.predicting import columns_of
from indexing.attributes.storing import read_columns, write_columns
from indexing.attributes.vocabulary import Attribute, Calibration
from indexing.build import BuildReport, build_index
from indexing.catalog import read_catalog
from indexing.committing import roll_back
from indexing.compact import compact
from indexing.errors import IndexCorruptError, IndexMismatchError
from indexing.manifest import ATTRIBUTES, read_manifest
from indexing.match_record import MODES
from indexing.store import OpenIndex, open_index
from indexing.update import delete_products, update_index
from search.where import compile_where
from shoplens import app

# id -> title, colour of the picture, the merchant's color and kind
Shop = dict[str, tuple[str, str, str, str]]

SHOP: Shop = {
    "given": ("red mug", "red", "Blue", "mug"),
    "seen": ("thing", "blue", "", ""),
    "both": ("green sock", "lime", "", ""),
    "torn": ("red thing", "blue", "", "sock"),
    "rare": ("thing", "white", "Puce", ""),
    "nothing": ("", "white", "", ""),
}


@dataclass
class Bench:
    """Catalogs, their index, and what fills it in."""

    place: Path
    encoder: Any
    classifier: Any

    @property
    def folder(self) -> Path:
        return self.place / "index"

    def catalog(self, shop: Shop) -> Any:
        path = self.place / "catalog.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "title", "image", "color", "kind"])
            for product_id, (title, colour, color, kind) in shop.items():
                picture = self.place / f"{product_id}-{colour}.png"
                Image.new("RGB", (8, 8), colour).save(picture)
                writer.writerow([product_id, title, picture.name, color, kind])
        return read_catalog(path)

    def build(self, shop: Shop) -> BuildReport:
        return build_index(
            self.catalog(shop), self.encoder, self.folder, classifiers=[self.classifier]
        )

    def update(self, shop: Shop) -> BuildReport:
        return update_index(
            self.catalog(shop), self.encoder, self.folder, classifiers=[self.classifier]
        )

    def open(self) -> OpenIndex:
        return open_index(self.folder)


@pytest.fixture
def bench(tmp_path: Path, tiny_encoder: Any, tiny_classifier: Any) -> Bench:
    return Bench(tmp_path, tiny_encoder, tiny_classifier)


def known(index: OpenIndex) -> dict[str, dict[str, tuple[str, str]]]:
    """What is given or filled in, by product and attribute."""
    return {
        product_id: {name: (own.value, own.source) for name, own in index.known(row).items()}
        for row, product_id in enumerate(index.products.ids)
    }


KNOWN = {
    "given": {"color": ("Blue", "given"), "kind": ("mug", "given")},
    "seen": {"color": ("Blue", "filled")},
    "both": {"color": ("Green", "filled"), "kind": ("sock", "filled")},
    "torn": {"kind": ("sock", "given")},
    "rare": {},
    "nothing": {},
}


def test_what_is_given_filled_in_and_left_open(bench: Bench) -> None:
    bench.build(SHOP)
    index = bench.open()
    assert known(index) == KNOWN
    assert index.known(1)["color"].confidence == pytest.approx(0.8, abs=1e-3)
    assert index.known(0)["color"].confidence == 1
    record = index.manifest.attributes
    assert record is not None
    assert record.fingerprints == (bench.classifier.fingerprint,)
    assert ("Red", "Red") in record.words["color"]
    modes = [MODES[mode] for mode in index.modes]
    assert modes == ["image+text"] * 5 + ["image"]


def test_distributions_are_what_the_classifier_said(bench: Bench) -> None:
    bench.build(SHOP)
    color = bench.open().attributes["color"]
    rows = np.array([3, 0, 5])
    np.testing.assert_allclose(
        color.predicted(rows),
        [[(0.8 + 0.2 / 3) / 2] * 2 + [0.2 / 3] * 2, [0.8, *[0.2 / 3] * 3], [0.25] * 4],
        atol=1e-3,
    )
    assert color.of(rows)[1].tolist() == [0, 1, 0, 0]
    # Torn between red and blue, blue by the merchant, and a value that is too rare.
    assert color.decided(np.array([3, 0, 4])).tolist() == [-1, 1, 3]


@given(st.integers(2, 30), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_stored_distributions_come_back(classes: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = tuple(f"v{number}" for number in range(classes))
    sure = Calibration(classes=tuple(rng.choice([None, 0.2, 0.5]) for _ in values))
    attribute = Attribute(
        name="a b", values=values, prior=(1 / classes,) * classes,
        calibration=dict.fromkeys(MODES, sure),
    )  # fmt: skip
    chances = rng.dirichlet(np.full(classes, 0.3), count).astype(np.float32)
    modes = rng.integers(0, len(MODES), count).astype(np.int8)
    own = {"a b": rng.integers(-1, classes, count).astype(np.int16)}
    columns = columns_of([attribute], chances, modes, own)
    place = Path(str(seed))
    with pytest.MonkeyPatch.context() as patch:
        import tempfile

        folder = tempfile.TemporaryDirectory()
        patch.chdir(folder.name)
        write_columns(place, columns, modes)
        found, back = read_columns(place, [attribute])
    np.testing.assert_array_equal(back, modes)
    column, stored = columns["a b"], found["a b"]
    for name in ("top", "probabilities", "given", "filled"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(column, name))
    rows = np.arange(count)
    spread = stored.predicted(rows)
    np.testing.assert_allclose(spread.sum(axis=1), 1, atol=3e-3)
    for row in range(count):
        best = np.argsort(-chances[row], kind="stable")[:TOP]
        np.testing.assert_allclose(spread[row, best], chances[row, best], rtol=1e-3, atol=1e-6)
        rest = [c for c in range(classes) if c not in best]
        if rest:
            tail = 1 - chances[row, best].sum()
            np.testing.assert_allclose(spread[row, rest], tail / len(rest), atol=1e-3)
    folder.cleanup()


def test_filters_find_what_was_filled_in_and_a_given_value_wins(bench: Bench) -> None:
    bench.build(SHOP)
    products = bench.open().products

    def matching(where: str) -> list[str]:
        mask = compile_where(where).mask(products)
        return [products.id_of(int(row)) for row in np.flatnonzero(mask)]

    assert matching("color == 'blue'") == ["given", "seen"]
    assert matching("color == 'red'") == []
    assert matching("color is missing") == ["torn", "nothing"]
    assert matching("color == 'puce'") == ["rare"]
    assert matching("color == 'other'") == []
    assert matching("kind == 'sock' and color == 'green'") == ["both"]
    assert "color" not in products.fields(1)  # the merchant said nothing


def test_an_attribute_that_no_product_has_is_filled_in_all_the_same(bench: Bench) -> None:
    shop = {name: (title, colour, "", "") for name, (title, colour, _, _) in SHOP.items()}
    bench.build(shop)
    products = bench.open().products
    assert "color" in products.names()
    assert products.column("color").tolist() == ["Red", "Blue", "Green", None, None, None]


def test_updates_deletions_compaction_and_rollback_keep_the_right_rows(bench: Bench) -> None:
    bench.build(SHOP)
    bench.update({"seen": ("thing", "red", "", ""), "new": ("blue sock", "blue", "", "")})
    changed = {**KNOWN, "seen": {"color": ("Red", "filled")}}
    changed["new"] = {"color": ("Blue", "filled"), "kind": ("sock", "filled")}
    assert known(bench.open()) == changed
    delete_products(bench.folder, ["given", "both"])
    left = {name: own for name, own in changed.items() if name not in ("given", "both")}
    assert known(bench.open()) == left
    compact(bench.folder)
    index = bench.open()
    assert len(index.segments) == 1
    assert known(index) == left
    assert [MODES[mode] for mode in index.modes].count("image") == 1
    roll_back(bench.folder, 1)
    assert known(bench.open()) == KNOWN


def test_what_is_as_it_was_is_not_predicted_again(bench: Bench) -> None:
    bench.build(SHOP)
    assert bench.classifier.predicted == 6
    assert bench.build(SHOP).up_to_date
    bench.update({"seen": ("thing", "blue", "Red", "")})  # another value, the same picture
    assert bench.classifier.predicted == 6
    assert known(bench.open())["seen"] == {"color": ("Red", "given")}
    bench.build({**SHOP, "new": ("blue sock", "blue", "", "")})
    assert bench.classifier.predicted == 7
    assert {k: v for k, v in known(bench.open()).items() if k != "new"} == KNOWN


def test_another_classifier_makes_another_version_and_none_takes_them_away(bench: Bench) -> None:
    bench.build(SHOP)
    bench.classifier = type(bench.classifier)("other")
    assert not bench.build(SHOP).up_to_date
    assert bench.classifier.predicted == 6
    with pytest.raises(IndexMismatchError, match="which is another"):
        update_index(
            bench.catalog(SHOP), bench.encoder, bench.folder,
            classifiers=[type(bench.classifier)("third")],
        )  # fmt: skip
    with pytest.raises(IndexMismatchError, match=r"has attributes by tiny.*given is none"):
        update_index(bench.catalog(SHOP), bench.encoder, bench.folder)
    build_index(bench.catalog(SHOP), bench.encoder, bench.folder)
    index = bench.open()
    assert index.attributes == {}
    assert index.manifest.attributes is None
    assert not (bench.folder / index.manifest.segments[0].name / ATTRIBUTES).exists()
    with pytest.raises(IndexMismatchError, match="has no attributes"):
        bench.update(SHOP)


def test_a_run_that_was_stopped_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "_SHARD", 2)
    predict, calls = bench.classifier.predict, 0

    def stops(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return predict(*args)

    monkeypatch.setattr(bench.classifier, "predict", stops)
    with pytest.raises(KeyboardInterrupt):
        bench.build(SHOP)
    assert bench.classifier.predicted == 4
    bench.build(SHOP)
    assert bench.classifier.predicted == 6
    assert known(bench.open()) == KNOWN


def test_a_picture_that_is_gone_is_read_from_its_title(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = predicting.load_pixels

    def gone(picture: Any, eye: Any) -> Any:
        if "both" in picture.location:
            (bench.place / picture.location).unlink()
        return load(picture, eye)

    monkeypatch.setattr(predicting, "load_pixels", gone)
    bench.build(SHOP)
    index = bench.open()
    assert known(index) == KNOWN
    assert [MODES[mode] for mode in index.modes] == [
        "image+text", "image+text", "text", "image+text", "image+text", "image",
    ]  # fmt: skip
    # It is tried again once the picture is back.
    monkeypatch.setattr(predicting, "load_pixels", load)
    bench.build({**SHOP, "new": ("thing", "red", "", "")})
    assert MODES[bench.open().modes[2]] == "image+text"


def test_the_progress_ends_at_all(bench: Bench) -> None:
    seen: list[tuple[int, int]] = []
    build_index(
        bench.catalog(SHOP), bench.encoder, bench.folder, classifiers=[bench.classifier],
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert (6, 6) in seen


def test_a_damaged_file_is_found(bench: Bench) -> None:
    bench.build(SHOP)
    path = bench.folder / read_manifest(bench.folder).segments[0].name / ATTRIBUTES
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IndexCorruptError, match=r"attributes\.parquet is damaged"):
        bench.open()


def test_a_file_of_other_attributes_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.build(SHOP)
    path = bench.folder / read_manifest(bench.folder).segments[0].name / ATTRIBUTES
    color, kind = bench.classifier.attributes
    with pytest.raises(ValueError, match=r"does not fit|lists of"):
        read_columns(path, [kind, color])
    with pytest.raises(KeyError):
        read_columns(path, [color, kind, kind])
    table = pq.read_table(path)
    place = table.schema.get_field_index("mode")
    pq.write_table(
        table.set_column(place, "mode", pa.array([7] * 6, pa.int8())), tmp_path / "bad.parquet"
    )
    with pytest.raises(ValueError, match="a mode that is none"):
        read_columns(tmp_path / "bad.parquet", [color, kind])


def test_a_column_says_where_a_value_is_from(bench: Bench) -> None:
    bench.build(SHOP)
    color = bench.open().attributes["color"]
    assert color.known(0) == Known("Blue", 1.0, "given")
    assert color.known(3) is None
    assert color.known(4) == Known("other", 1.0, "given")
    assert len(color) == 6
    twice = Column.concatenated([color.take(np.array([0, 1])), color.take(np.array([4]))])
    assert [own and own.value for own in map(twice.known, range(3))] == ["Blue", "Blue", "other"]


def test_export_says_what_is_given_and_what_was_filled_in(bench: Bench) -> None:
    shop = {**SHOP, "sum": ("=1+2", "red", "", "")}
    bench.build(shop)
    file = io.StringIO()
    export_csv(bench.open(), file)
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(file.getvalue()))}
    assert list(rows) == list(shop)
    assert [rows["given"][f"color{end}"] for end in ("", "_confidence", "_source")] == [
        "Blue", "1", "given",
    ]  # fmt: skip
    assert [rows["seen"][f"color{end}"] for end in ("", "_confidence", "_source")] == [
        "Blue", "0.800", "filled",
    ]  # fmt: skip
    assert [rows["torn"][f"color{end}"] for end in ("", "_confidence", "_source")] == ["", "", ""]
    assert rows["rare"]["color"] == "Puce"
    assert rows["rare"]["color_source"] == "given"
    assert rows["sum"]["title"] == "'=1+2"


def test_the_commands(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.build(SHOP)
    done = CliRunner().invoke(app, ["info", str(bench.folder)])
    assert "attributes by tiny classifier" in done.stdout
    assert "rerank:   text: off, " in done.stdout
    assert "color:    2 given (33%), 2 filled in (33%), 2 not sure (33%)" in done.stdout
    out = tmp_path / "filled.csv"
    assert CliRunner().invoke(app, ["export", str(bench.folder), "--out", str(out)]).exit_code == 0
    shown = CliRunner().invoke(app, ["export", str(bench.folder)]).stdout
    assert out.read_text() == shown
    assert len(shown.splitlines()) == 7
    record = json.loads(CliRunner().invoke(app, ["info", str(bench.folder), "--json"]).stdout)
    assert record["attributes"]["sources"][0]["name"] == "tiny classifier"
