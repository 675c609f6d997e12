"""The experiment on real titles, on made-up ones: kinds of words, and who may see what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import datasets
from benchmarks.pruning import fashion
from benchmarks.pruning.fashion import (
    BRANDS,
    VISUAL_KINDS,
    Lexicon,
    _brand_end,
    _grocery,
    _kept,
    _words,
    held_out_pairs,
    kept_by_kind,
    training_pairs,
)
from indexing.catalog import read_catalog
from indexing.catalog.product import Product, ProductImage
from training.builtin import is_test_title

# --- kinds of words


def product(title: str, color: str = "", article_type: str = "") -> Product:
    image = ProductImage(location="a.jpg")
    about = {"color": color, "article_type": article_type}
    return Product(id=title, title=title, attributes=about, images=(image,))


def of_brands(count: int, words: str) -> list[Product]:
    return [product(f"Brand{number} Men {words}") for number in range(count)]


LEXICON = Lexicon.of(
    [
        product("Mother Earth Women Aug Bagru Red Kurtas", "Navy Blue", "Kurtas"),
        product("Fabindia Printed Dress", "Red", "Dress"),
        product("Titan Men Analog Dial", "", "Sports Shoes"),
        *of_brands(BRANDS, "striped 100 xl MEN"),
        *of_brands(BRANDS - 1, "sandalwood"),
        # What brands have in their names is no word of theirs.
        *(product(f"House Of{number} Women striped") for number in range(BRANDS)),
        # However often: they are all of one brand.
        *(product(f"Mother Earth Women aug{number} unseen") for number in range(30)),
    ]
)


def kinds(title: str) -> list[str]:
    return LEXICON.kinds(_words(title))


def test_a_lexicon_holds_what_the_catalog_says() -> None:
    assert LEXICON.colours == {"navy", "blue", "red"}
    assert LEXICON.types == {"kurtas", "kurta", "dress", "dres", "sports", "sport", "shoes", "shoe"}
    # Neither numbers nor words of two letters, nor what fewer brands use.
    assert LEXICON.shared == {"striped"}


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        (
            "Mother Earth Women Aug Bagru Red Kurtas",
            ["brand", "brand", "audience", "rare", "rare", "colour", "type"],
        ),
        ("RED Kurta striped", ["brand", "type", "shared"]),  # no audience: the brand is one word
        ("Red Tape Men's red Shoe", ["brand", "brand", "audience", "audience", "colour", "type"]),
        ("Women red kurtas", ["audience", "colour", "type"]),
        ("acme b c d e f Men red", ["brand", *["rare"] * 5, "audience", "colour"]),
        ("", []),
    ],
)
def test_kinds_are_by_word_and_place(title: str, expected: list[str]) -> None:
    assert kinds(title) == expected


def test_capitals_make_no_difference() -> None:
    assert LEXICON.kinds(["ACME", "MEN", "Red", "KURTA"]) == kinds("acme men red kurta")


@pytest.mark.parametrize(
    ("title", "end"),
    [
        ("acme women red", 1),
        ("mother earth women red", 2),
        ("women red", 1),
        ("acme red shirt", 1),
        ("a b c d e men", 5),
        ("a b c d e f men", 1),
        ("", 1),
    ],
)
def test_the_brand_ends_where_the_audience_is_named(title: str, end: int) -> None:
    assert _brand_end(title.split()) == end


def test_pictures_show_colours_types_and_shared_words_wherever_they_stand() -> None:
    words = ["Red", "kurta", "striped", "Navy/unknown", "men", "aug", "100", "&", "dial"]
    assert [word for word in words if LEXICON.visible(word)] == words[:4]


def test_kept_by_kind_counts_words(keeping: Any) -> None:
    kept = ["Mother", "Women", "Red", "Kurtas", ",", "striped"]
    encoder = keeping(kept, ["Earth", "Aug", "&", "s", "'"])
    titles = ["Mother Earth Women's Red, striped & Aug Kurtas", "Mother Women Aug"]
    # Punctuation is no word, and an audience neither visual nor noise.
    assert kept_by_kind(_kept(encoder, titles), LEXICON) == {
        "all": 7 / 11,
        "audience": 2 / 3,
        "brand": 2 / 3,
        "colour": 1.0,
        "noise": 2 / 5,
        "rare": 0.0,
        "shared": 1.0,
        "type": 1.0,
        "visual": 1.0,
    }
    assert VISUAL_KINDS == ("colour", "type", "shared")


# --- who sees what


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """fashion/ with 400 products, two of a title, and grocery/ with three."""
    for name in ("fashion", "grocery"):
        (tmp_path / name / "images").mkdir(parents=True)
    lines = ["id,title,article_type,color,image"]
    lines += [f"{n},Acme Men Shirt {n // 2},Shirts,Red,images/{n}.jpg" for n in range(400)]
    (tmp_path / "fashion/catalog.csv").write_text("\n".join(lines))
    products = []
    for number, photos in enumerate([["test/a1", "test/a2", "val/a3"], ["test/b1"], ["train/c"]]):
        paths = [f"images/iconic/{number}.jpg", *(f"images/{photo}.jpg" for photo in photos)]
        images = [{"path": path} for path in paths]
        products.append(json.dumps({"id": f"g{number}", "title": f"g {number}", "images": images}))
    (tmp_path / "grocery/catalog.jsonl").write_text("\n".join(products))
    for line in (tmp_path / "grocery/catalog.jsonl").read_text().splitlines():
        for image in json.loads(line)["images"]:
            file = tmp_path / "grocery" / image["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    for number in range(400):
        (tmp_path / f"fashion/images/{number}.jpg").touch()
    return tmp_path


def test_no_title_is_in_two_of_the_halves_and_the_test_set(data: Path) -> None:
    products = list(read_catalog(data / "fashion/catalog.csv"))
    parts = [training_pairs(products, second_half=half) for half in (False, True)]
    parts.append(held_out_pairs(products))
    titles = [set(part.titles) for part in parts]
    assert sum(map(len, titles)) == len(set.union(*titles)) == 200
    assert sum(map(len, parts)) == 400
    assert not any(is_test_title(title) for title in titles[0] | titles[1])
    assert all(is_test_title(title) for title in titles[2])
    # Halves of the training titles, within 2 standard deviations.
    assert abs(len(titles[0]) - len(titles[1])) < 2 * (200 - len(titles[2])) ** 0.5


def test_the_test_set_is_the_gallery_of_bench_recall(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (17, 5000):  # cut, and not
        for module in (fashion, datasets):
            monkeypatch.setattr(module, "FASHION_GALLERY", size)
        pairs = held_out_pairs(read_catalog(data / "fashion/catalog.csv"))
        (task,) = datasets.fashion(data)
        assert pairs.products == task.gallery.ids
        assert pairs.pictures == task.gallery.pictures


def test_grocery_asks_with_test_photos_for_iconic_pictures(data: Path) -> None:
    photos, icons = _grocery(data)
    names = ["images/test/a1.jpg", "images/test/a2.jpg", "images/test/b1.jpg"]
    assert [picture.location for picture in photos.pictures] == names
    assert photos.keys.tolist() == [0, 0, 1]
    expected = [f"images/iconic/{number}.jpg" for number in range(3)]
    assert [picture.location for picture in icons.pictures] == expected
    assert icons.keys.tolist() == [0, 1, 2]
    task = datasets.grocery(data)[0]
    assert task.queries.pictures == photos.pictures
    assert task.gallery.pictures == icons.pictures
    assert task.queries.products.tolist() == photos.keys.tolist()
