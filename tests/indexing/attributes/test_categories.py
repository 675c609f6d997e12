"""A categoriser as one more source of attributes: by titles, alone and beside the classifier."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from indexing.attributes import predicting
from indexing.attributes.columns import Known
from indexing.attributes.exporting import export_csv
from indexing.attributes.joined import Joined
from indexing.attributes.vocabulary import OTHER
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.committing import roll_back
from indexing.compact import compact
from indexing.errors import IndexMismatchError, ModelError
from indexing.match_record import MODES
from indexing.store import OpenIndex, open_index
from indexing.update import update_index
from shoplens import app
from tests.conftest import TinyCategorizer, TinyClassifier, tiny_shelves

# id, title, picture, color, shelf
ROWS = (
    "given,clothes hanger,red.png,,Garden",
    "synonym,toys,red.png,,cooking",
    "filled,Kitchen scales,blue.png,,",
    "unsure,a thing,blue.png,,",
    "rare,toys,red.png,,Attic",
    "untitled,,red.png,,",
)
KNOWN = {
    "given": ("Garden", "given"),
    "synonym": ("Kitchen", "given"),
    "filled": ("Kitchen", "filled"),
    "unsure": None,
    "rare": None,  # the merchant's own value, whatever the title says
    "untitled": None,
}


class Shop:
    def __init__(self, place: Path, encoder: Any) -> None:
        self.place, self.encoder, self.folder = place, encoder, place / "index"
        self.categorizer, self.classifier = TinyCategorizer(), TinyClassifier()
        self.shelves = tiny_shelves(self.categorizer)

    def catalog(self, *rows: str) -> Any:
        for color in ("red", "blue"):
            Image.new("RGB", (8, 8), color).save(self.place / f"{color}.png")
        path = self.place / "catalog.csv"
        path.write_text("\n".join(["id,title,image,color,shelf", *rows]) + "\n")
        return read_catalog(path)

    def build(self, *classifiers: Any, rows: tuple[str, ...] = ROWS) -> Any:
        return build_index(self.catalog(*rows), self.encoder, self.folder, classifiers=classifiers)

    def update(self, *classifiers: Any, rows: tuple[str, ...]) -> Any:
        return update_index(self.catalog(*rows), self.encoder, self.folder, classifiers=classifiers)

    def open(self) -> OpenIndex:
        return open_index(self.folder)

    def shelf(self) -> dict[str, tuple[str, str] | None]:
        index = self.open()
        found = {}
        for row, product_id in enumerate(index.products.ids):
            own = index.known(row).get("shelf")
            found[product_id] = own and (own.value, own.source)
        return found


@pytest.fixture
def shop(tmp_path: Path, tiny_encoder: Any) -> Shop:
    return Shop(tmp_path, tiny_encoder)


def test_a_reader_says_what_the_categoriser_says_and_is_never_sure_of_nothing() -> None:
    shelves = tiny_shelves()
    [attribute] = shelves.attributes
    assert attribute.values == TinyCategorizer.categories
    assert attribute.prior == pytest.approx((0.5, 0.25, 0.15, 0.1))  # by the label table
    found = shelves.predict(None, ["Toys for all", " ", "thing"])["shelf"]
    assert found.dtype == np.float32
    expected = [[0.2 / 3, 0.2 / 3, 0.8, 0.2 / 3], [0.5, 0.25, 0.15, 0.1], [0.25] * 4]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [attribute.decide(found, mode).tolist() for mode in MODES] == [
        [-1, -1, -1], [2, -1, -1], [2, -1, -1],
    ]  # fmt: skip
    assert shelves.value_of("shelf", "COOKING ") == "Kitchen"
    assert shelves.value_of("shelf", "Attic") == OTHER
    assert shelves.value_of("shelf", " ") is None
    assert ("Cooking", "Kitchen") in shelves.ways_of_writing()["shelf"]


def test_a_reader_of_other_labels_has_another_fingerprint() -> None:
    one, same = tiny_shelves(), tiny_shelves()
    assert one.fingerprint == same.fingerprint
    assert tiny_shelves(TinyCategorizer("new")).fingerprint != one.fingerprint
    same._labels = type(same._labels)(same._labels.rows[:-1])
    assert same.fingerprint != one.fingerprint


def test_without_counts_all_categories_are_alike() -> None:
    from indexing.attributes.categories import _shares
    from indexing.attributes.labels import Labels

    assert _shares("shelf", ("a", "b"), Labels([])) == (0.5, 0.5)


def test_pictures_alone_and_several_at_once(tiny_classifier: TinyClassifier) -> None:

    joined = Joined([tiny_classifier, tiny_shelves()])
    assert [attribute.name for attribute in joined.attributes] == ["color", "kind", "shelf"]
    assert joined.image_size == 4
    red = np.zeros((2, 3, 4, 4), np.float32)
    red[:, 0] = 1
    found = joined.predict(red, None)
    assert found["color"].argmax(axis=1).tolist() == [0, 0]
    np.testing.assert_allclose(found["shelf"], [[0.5, 0.25, 0.15, 0.1]] * 2)
    both = joined.predict(red, ["toys mug", ""])
    assert both["shelf"][:, 2] == pytest.approx([0.8, 0.15])
    assert both["kind"][:, 0] == pytest.approx([0.8, 0.5])
    assert Joined([tiny_shelves()]).image_size == 0


def test_given_filled_in_and_left_open_by_titles_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "load_pixels", None)  # no picture is looked at
    shop.build(shop.shelves)
    assert shop.shelf() == KNOWN
    index = shop.open()
    assert index.known(2)["shelf"] == Known("Kitchen", pytest.approx(0.8, abs=1e-3), "filled")
    assert index.attributes["shelf"].given.tolist() == [3, 0, -1, -1, -1, -1]
    record = index.manifest.attributes
    assert record is not None
    assert [(source.kind, source.name) for source in record.sources] == [
        ("categories", "tiny categories")
    ]
    assert record.sure_from == {"shelf": None}  # too few products to tell
    assert index.products.column("shelf").tolist() == [
        "Garden", "cooking", "Kitchen", None, "Attic", None,
    ]  # fmt: skip


def test_export_and_info_count_them(shop: Shop) -> None:
    shop.build(shop.shelves)
    file = io.StringIO()
    export_csv(shop.open(), file)
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(file.getvalue()))}
    assert [rows["filled"][f"shelf{end}"] for end in ("", "_confidence", "_source")] == [
        "Kitchen", "0.800", "filled",
    ]  # fmt: skip
    assert rows["rare"]["shelf"] == "Attic"
    lines = CliRunner().invoke(app, ["info", str(shop.folder)]).stdout.splitlines()
    place = lines.index("  categories by tiny categories")
    assert lines[place + 1] == "  shelf:    2 given (33%), 1 filled in (17%), 3 not sure (50%)"


def test_beside_a_classifier_each_fills_in_its_own(shop: Shop) -> None:
    shop.build(shop.classifier, shop.shelves)
    assert shop.shelf() == KNOWN
    index = shop.open()
    assert list(index.attributes) == ["color", "kind", "shelf"]
    assert index.known(2) == {
        "color": Known("Blue", pytest.approx(0.8, abs=1e-3), "filled"),
        "shelf": Known("Kitchen", pytest.approx(0.8, abs=1e-3), "filled"),
    }
    assert [MODES[mode] for mode in index.modes] == ["image+text"] * 5 + ["image"]


def test_one_is_added_and_taken_away_without_reading_anew_for_the_other(shop: Shop) -> None:
    shop.build(shop.classifier)
    read = shop.classifier.predicted
    assert shop.shelf() == dict.fromkeys(KNOWN)
    shop.build(shop.classifier, shop.shelves)
    assert (shop.classifier.predicted, shop.categorizer.read) == (read, 4)  # toys but once
    assert shop.shelf() == KNOWN
    assert shop.build(shop.classifier, shop.shelves).up_to_date
    shop.build(shop.shelves)
    assert list(shop.open().attributes) == ["shelf"]
    assert (shop.classifier.predicted, shop.categorizer.read) == (read, 4)
    roll_back(shop.folder)
    assert list(shop.open().attributes) == ["color", "kind", "shelf"]
    shop.build()
    assert shop.open().attributes == {}
    assert shop.open().manifest.attributes is None


def test_an_update_keeps_them_and_reads_new_titles_alone(shop: Shop) -> None:
    shop.build(shop.classifier, shop.shelves)
    before = shop.categorizer.read
    rows = ("unsure,garden chair,blue.png,,", "new,toys,blue.png,,", "given,clothes,red.png,,")
    shop.update(shop.classifier, shop.shelves, rows=rows)
    changed = {
        **KNOWN,
        "unsure": ("Garden", "filled"),
        "given": ("Clothes", "filled"),  # the merchant has taken the value back
        "new": ("Toys", "filled"),
    }
    assert shop.shelf() == changed
    assert shop.categorizer.read == before + 2  # `toys` was read before
    compact(shop.folder)
    assert shop.shelf() == changed


def test_another_categoriser_and_none_are_refused_by_an_update(shop: Shop) -> None:
    shop.build(shop.shelves)
    with pytest.raises(IndexMismatchError, match=r"has categories by tiny categories .*is none"):
        shop.update(rows=ROWS)
    other = tiny_shelves(TinyCategorizer("other"))
    with pytest.raises(IndexMismatchError, match=r"which is another: .* with --categories FOLDER"):
        shop.update(other, rows=ROWS)
    with pytest.raises(IndexMismatchError, match="has no attributes: fill them in by"):
        shop.update(shop.classifier, shop.shelves, rows=ROWS)
    assert not shop.build(other).up_to_date


def test_two_that_read_the_same_are_refused_before_any_work(shop: Shop) -> None:
    shop.categorizer.label = "kind"
    with pytest.raises(ModelError) as error:
        shop.build(shop.classifier, tiny_shelves(shop.categorizer))
    assert str(error.value) == (
        "tiny classifier and tiny categories both read 'kind': leave one of them out, or train "
        "--attributes without it"
    )
    assert not shop.folder.exists()


def test_the_commands(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(kind: str, folder: object) -> Any:
        if str(folder) not in ("shelves", "tiny categories", "cma", "tiny classifier"):
            raise ModelError(f"{folder} is nothing")
        return shop.shelves if kind == "categories" else shop.classifier

    monkeypatch.setattr("indexing.attributes.opening.load_classifier", load)
    monkeypatch.setattr("indexing.models.load_encoder", lambda _name: shop.encoder)
    shop.catalog(*ROWS)

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    catalog = shop.place / "catalog.csv"
    both = ("--attributes", "cma", "--categories", "shelves")
    made = run("index", catalog, "--out", shop.folder, *both)
    assert made.exception is None
    assert "  shelf:    2 given (33%), 1 filled in (17%), 3 not sure (50%)" in made.stdout
    shop.catalog("new,toys,blue.png,,")
    assert run("update", shop.folder, catalog).exception is None
    assert shop.shelf()["new"] == ("Toys", "filled")
    shop.catalog(*ROWS)
    again = run("index", catalog, "--out", shop.folder, "--attributes", "cma")
    assert (
        f"{shop.folder} has categories, and will have none: --categories tiny categories keeps them"
        in again.stderr
    )
    assert "has attributes" not in again.stderr
    record = json.loads(run("info", shop.folder, "--json").stdout)["attributes"]
    assert [source["kind"] for source in record["sources"]] == ["attributes"]
    shop.build(shop.shelves)
    shop.categorizer.fingerprint = "f" * 64
    refused = run("update", shop.folder, catalog).exception
    assert isinstance(refused, IndexMismatchError)
    moved = run("update", shop.folder, catalog, "--categories", "nowhere").exception
    assert isinstance(moved, ModelError)
