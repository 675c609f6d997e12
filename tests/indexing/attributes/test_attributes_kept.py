"""What becomes of the attributes of an index when it changes, and what the merchant says."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.upgrade import upgrade
from benchmarks.upgrade_queries import own_queries
from indexing.attributes.exporting import export_csv
from indexing.attributes.predicting import columns_of
from indexing.attributes.vocabulary import ABSTAINED, Attribute, Calibration
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.committing import roll_back
from indexing.compact import compact
from indexing.manifest import ATTRIBUTES
from indexing.match_record import MODES
from indexing.store import OpenIndex, open_index
from indexing.update import delete_products, update_index


class Shop:
    """A catalog beside plain pictures named after their colours, and its index."""

    def __init__(self, place: Path, encoder: Any, classifier: Any) -> None:
        self.place, self.encoder, self.classifier = place, encoder, classifier
        self.folder = place / "index"

    def catalog(self, *rows: str, head: str = "id,title,image,color,kind") -> Any:
        """Of rows of CSV; pictures that are not there yet are drawn."""
        path = self.place / "catalog.csv"
        path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
        for row in csv.DictReader(path.open(encoding="utf-8")):
            for name in row["image"].split("|"):
                if not (self.place / name).exists():
                    Image.new("RGB", (8, 8), name[:-4]).save(self.place / name)
        return read_catalog(path)

    def build(self, *rows: str, **options: Any) -> Any:
        catalog = self.catalog(*rows, **options)
        return build_index(catalog, self.encoder, self.folder, classifiers=[self.classifier])

    def upgrade(self, new: Any, change: Callable[[], object] = lambda: None) -> OpenIndex:
        """To another encoder; `change` happens before."""
        before = open_index(self.folder)
        change()
        upgrade(before, self.encoder, new, own_queries(before), margin=1, force=True)
        self.encoder = new
        return open_index(self.folder)

    def known(self) -> dict[str, str]:
        """What is known of each product: `color Red filled`, say."""
        index = open_index(self.folder)
        return {
            product_id: ", ".join(
                f"{name} {own.value} {own.source}" for name, own in index.known(row).items()
            )
            for row, product_id in enumerate(index.products.ids)
        }

    def exported(self) -> dict[str, dict[str, str]]:
        file = io.StringIO()
        export_csv(open_index(self.folder), file)
        return {row["id"]: row for row in csv.DictReader(io.StringIO(file.getvalue()))}


@pytest.fixture
def shop(tmp_path: Path, tiny_encoder: Any, tiny_classifier: Any) -> Shop:
    return Shop(tmp_path, tiny_encoder, tiny_classifier)


ROWS = ("a,red mug,red.png,,", "b,thing,blue.png,,sock", "c,thing,lime.png,Red,")
KNOWN = {
    "a": "color Red filled, kind mug filled",
    "b": "color Blue filled, kind sock given",
    "c": "color Red given",
}


def test_an_upgrade_keeps_attributes_and_a_build_fits_the_order_anew(
    shop: Shop, other_encoder: Any
) -> None:
    shop.build(*ROWS)
    before = open_index(shop.folder)
    index = shop.upgrade(other_encoder)
    assert shop.known() == KNOWN
    old, new = before.manifest.attributes, index.manifest.attributes
    assert old is not None
    assert new is not None
    assert new.rerank == {}
    assert all("run `shoplens index` once more" in new.skipped[mode] for mode in MODES)
    assert new.model_copy(update={"skipped": old.skipped}) == old
    report = shop.build(*ROWS)
    assert not report.up_to_date
    assert shop.classifier.predicted == 3  # by the first build alone
    built = open_index(shop.folder).manifest.attributes
    assert built is not None
    assert not any("once more" in why for why in built.skipped.values())
    roll_back(shop.folder)
    assert open_index(shop.folder).manifest.attributes == new
    assert shop.known() == KNOWN


def test_an_upgrade_drops_the_attributes_of_products_that_it_drops(
    shop: Shop, other_encoder: Any
) -> None:
    # One picture of forty may be gone.
    rows = [f"p{n},{'mug' if n % 2 else 'sock'},red.png,," for n in range(39)]
    shop.build(*rows[:20], "gone,mug,blue.png,,", *rows[20:])
    shop.upgrade(other_encoder, (shop.place / "blue.png").unlink)
    assert shop.known() == {
        f"p{n}": f"color Red filled, kind {'mug' if n % 2 else 'sock'} filled" for n in range(39)
    }


def test_a_picture_that_was_drawn_anew_before_an_upgrade_is_read_by_the_next_build(
    shop: Shop, other_encoder: Any
) -> None:
    shop.build("a,thing,red.png,,", "b,thing,blue.png,,", "c,thing,lime.png,,")
    shop.upgrade(
        other_encoder,
        lambda: Image.new("RGB", (9, 9), "blue").save(shop.place / "red.png"),
    )
    compact(shop.folder)
    assert shop.known()["a"] == "color Red filled"  # an upgrade reads no attributes
    shop.build("a,thing,red.png,,", "b,thing,blue.png,,", "c,thing,lime.png,,", "d,,lime.png,,")
    assert shop.known() == {
        "a": "color Blue filled",
        "b": "color Blue filled",
        "c": "color Green filled",
        "d": "color Green filled",
    }
    assert shop.classifier.predicted == 3 + 2  # a and d


def test_a_further_picture_does_not_get_what_was_read_off_a_main_one_that_is_gone(
    shop: Shop, other_encoder: Any
) -> None:
    rows = [f"p{n},,red.png,," for n in range(39)]
    shop.build("a,,blue.png|lime.png,,", *rows)
    shop.upgrade(other_encoder, (shop.place / "blue.png").unlink)
    assert shop.known()["a"] == "color Blue filled"
    catalog = shop.place / "catalog.csv"
    catalog.write_text(catalog.read_text().replace("blue.png|", ""))
    build_index(read_catalog(catalog), shop.encoder, shop.folder, classifiers=[shop.classifier])
    assert shop.known()["a"] == "color Green filled"
    assert shop.classifier.predicted == 2 + 1


def test_another_encoder_costs_no_predictions(shop: Shop, other_encoder: Any) -> None:
    shop.build(*ROWS)
    files = open_index(shop.folder).manifest.segments[0].files
    shop.encoder = other_encoder
    shop.build(*ROWS)
    assert shop.classifier.predicted == 3
    again = open_index(shop.folder).manifest
    assert again.version == 2
    assert again.segments[0].files[ATTRIBUTES] == files[ATTRIBUTES]


def test_a_rollback_brings_attributes_back_or_takes_them_away(shop: Shop) -> None:
    build_index(shop.catalog(*ROWS), shop.encoder, shop.folder)
    shop.build(*ROWS)
    assert shop.known() == KNOWN
    roll_back(shop.folder)
    assert shop.known() == {"a": "", "b": "", "c": ""}
    assert open_index(shop.folder).attributes == {}
    update_index(shop.catalog("d,mug,red.png,,"), shop.encoder, shop.folder)
    roll_back(shop.folder, 2)
    assert shop.known() == KNOWN


def test_an_index_that_is_opened_after_another_has_its_own_attributes(shop: Shop) -> None:
    build_index(shop.catalog(*ROWS), shop.encoder, shop.folder)
    bare = open_index(shop.folder)
    shop.build(*ROWS)
    filled = open_index(shop.folder, before=bare)
    update_index(
        shop.catalog("d,mug,red.png,,"), shop.encoder, shop.folder, classifiers=[shop.classifier]
    )
    delete_products(shop.folder, ["b"])
    index = open_index(shop.folder, before=filled)
    assert index.segments[0] is filled.segments[0]
    colors = index.attributes["color"].decided(np.arange(3)).tolist()
    assert (index.products.ids, colors) == (["a", "c", "d"], [0, 0, 0])
    roll_back(shop.folder, 1)
    assert open_index(shop.folder, before=index).attributes == {}


def test_all_products_can_go_and_come_again(shop: Shop) -> None:
    shop.build(*ROWS)
    delete_products(shop.folder, ["a", "b", "c"])
    assert len(open_index(shop.folder).attributes["color"]) == 0
    assert compact(shop.folder).products == 0
    update_index(shop.catalog(ROWS[1]), shop.encoder, shop.folder, classifiers=[shop.classifier])
    assert shop.known() == {"b": KNOWN["b"]}


def test_a_value_that_is_no_class_is_given_all_the_same_and_one_that_means_nothing_is_not(
    shop: Shop,
) -> None:
    shop.build("plate,a sock,red.png,Puce,plate", "unsaid,a sock,red.png,?,?", "none,x,red.png,,?")
    index = open_index(shop.folder)
    assert shop.known() == {
        "plate": "",
        "unsaid": "color Red filled, kind sock filled",
        "none": "color Red filled",
    }
    assert index.attributes["kind"].filled.tolist() == [ABSTAINED, 1, ABSTAINED]
    assert index.products.column("kind").tolist() == ["plate", "sock", "?"]
    assert index.products.column("color").tolist() == ["Puce", "Red", "Red"]
    assert index.products.fields(1)["kind"] == "?"  # the merchant's own
    rows = shop.exported()
    assert [(row["kind"], row["kind_source"]) for row in rows.values()] == [
        ("plate", "given"), ("sock", "filled"), ("?", "given"),
    ]  # fmt: skip


def test_where_the_main_picture_is_broken_the_next_one_is_read(shop: Shop) -> None:
    (shop.place / "red.png").write_bytes(b"no picture")
    report = shop.build("a,thing,red.png|blue.png,,", "b,red,lime.png,,")
    assert report.counts.images_rejected == 1
    assert shop.known() == {"a": "color Blue filled", "b": ""}


def test_what_is_not_finite_has_the_shares_of_training(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = shop.classifier.predict

    def overflown(*args: Any) -> Any:
        found = predict(*args)
        found["color"][0, 1] = np.nan
        return found

    monkeypatch.setattr(shop.classifier, "predict", overflown)
    shop.build("a,red mug,red.png,,", "b,red mug,blue.png,,")
    index = open_index(shop.folder)
    assert shop.known()["a"] == ""
    assert index.attributes["color"].predicted(np.array([0])).tolist() == [[0.25] * 4]
    assert index.attributes["kind"].predicted(np.array([0, 1]))[:, 0] == pytest.approx(
        [0.5, 0.8], abs=1e-3
    )


@given(st.integers(1, 40), st.sampled_from([0.03, 0.3, 5, 1e6]), st.integers(0, 2**32 - 1))
def test_what_is_predicted_from_a_row_is_that_row(classes: int, evenness: float, seed: int) -> None:
    """So a product that is carried along from build to build never changes."""
    rng = np.random.default_rng(seed)
    sure = Calibration(classes=tuple(rng.choice([None, 0.02, 0.1, 0.5]) for _ in range(classes)))
    attribute = Attribute(
        name="a", values=tuple(map(str, range(classes))), prior=(1 / classes,) * classes,
        calibration=dict.fromkeys(MODES, sure),
    )  # fmt: skip
    chances = rng.dirichlet(np.full(classes, evenness), 20).astype(np.float32)
    modes = rng.integers(0, len(MODES), 20).astype(np.int8)
    said = {"a": np.full(20, ABSTAINED, np.int16)}
    first = columns_of([attribute], chances, modes, said)["a"]
    again = columns_of([attribute], first.predicted(np.arange(20)), modes, said)["a"]
    for name in ("top", "probabilities", "filled"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def test_an_export_can_be_read_as_a_catalog_and_exported_again(shop: Shop) -> None:
    shop.build(*ROWS, 'd,"thing, ""one""",white.png,,')
    first = shop.exported()
    assert [row["color_source"] for row in first.values()] == ["filled", "filled", "given", ""]
    path = shop.place / "filled.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        export_csv(open_index(shop.folder), file)
    head, *lines = path.read_text().splitlines()
    images = ["red.png", "blue.png", "lime.png", "white.png"]
    again = [f"{line},{image}" for line, image in zip(lines, images, strict=True)]
    shop.build(*again, head=f"{head},image")
    second = shop.exported()
    file = io.StringIO()
    export_csv(open_index(shop.folder), file)
    names = next(csv.reader(io.StringIO(file.getvalue())))
    assert len(names) == len(set(names))  # no column of the first export beside its own
    for name in ("title", "color", "kind"):
        assert [row[name] for row in second.values()] == [row[name] for row in first.values()]
    assert [row["color_source"] for row in second.values()] == ["given", "given", "given", ""]
