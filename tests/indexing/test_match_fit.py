"""Calibration on small shops whose answers can be worked out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.match import DEPTH, background_rows, features
from indexing.match_fit import Asks, Same, ask, calibrate, record_of
from indexing.match_queries import (
    MAX_EACH,
    MIN_PRODUCTS,
    NoQueriesError,
    image_queries,
    title_queries,
    with_titles,
)
from indexing.near import main_pictures
from indexing.store import OpenIndex, open_index
from indexing.vectors import ExactIndex
from tests.conftest import pictures_of


def write_shop(folder: Path, products: int, views: int, noise: int = 12) -> Path:
    """Products that differ in 4 x 4 coloured cells, with views that differ a little."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(products):
        cells = rng.integers(30, 226, (4, 4, 3))
        names = [f"{number}-{view}.png" for view in range(views)]
        for name in names:
            seen = (cells + rng.integers(-noise, noise + 1, cells.shape)).astype(np.uint8)
            Image.fromarray(seen).resize((48, 48), Image.Resampling.NEAREST).save(folder / name)
        rows.append({"id": f"p{number}", "title": f"thing {number}", "images": names})
    path = folder / "shop.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def made(folder: Path, encoder: Any, products: int, views: int, **more: Any) -> OpenIndex:
    folder.mkdir(exist_ok=True)
    catalog = read_catalog(write_shop(folder, products, views, **more))
    build_index(catalog, encoder, folder / "index")
    return open_index(folder / "index", encoder=encoder)


def test_a_small_shop_is_not_calibrated_and_says_why(tmp_path: Path, tiny_encoder: Any) -> None:
    match = made(tmp_path, tiny_encoder, 5, 2).manifest.match
    assert match is not None
    assert match.modes == {}
    assert match.skipped == {
        "image": "5 products with a picture file; at least 50 are needed",
        "text": "5 different titles; at least 50 are needed",
        "image+text": "5 products with a picture file; at least 50 are needed",
    }


def test_further_pictures_are_asked_for(tmp_path: Path, tiny_encoder: Any) -> None:
    index = made(tmp_path, tiny_encoder, 60, 3)
    assert index.manifest.match is not None
    record = index.manifest.match.modes["image"]
    assert record.queries == "further pictures"
    assert (record.asked, record.products) == (120, 60)
    # Views of a product differ far less than products do: it is an easy shop.
    assert record.right == 1
    assert record.auroc > 0.99
    assert record.threshold is not None
    assert record.precision is not None
    assert record.precision >= 0.95
    # All titles are grey to the tiny encoder: whether a product is there makes no difference.
    text = index.manifest.match.modes["text"]
    assert text.auroc < 0.6
    assert text.threshold is None
    both = index.manifest.match.modes["image+text"]
    assert both.queries == "further pictures with titles"


def test_crops_are_asked_where_products_have_one_picture(tmp_path: Path, tiny_encoder: Any) -> None:
    index = made(tmp_path, tiny_encoder, 55, 1)
    assert index.manifest.match is not None
    record = index.manifest.match.modes["image"]
    assert record.queries == "crops"
    assert (record.asked, record.products) == (55 * MAX_EACH, 55)
    assert 0.5 < record.auroc <= 1


def test_a_second_build_calibrates_alike(tmp_path: Path, tiny_encoder: Any) -> None:
    first = made(tmp_path / "a", tiny_encoder, 55, 1).manifest.match
    second = made(tmp_path / "b", tiny_encoder, 55, 1).manifest.match
    assert first == second


def test_an_update_that_changes_nothing_keeps_the_record(tmp_path: Path, tiny_encoder: Any) -> None:
    index = made(tmp_path, tiny_encoder, 55, 2)
    assert made(tmp_path, tiny_encoder, 55, 2).manifest == index.manifest


def test_an_index_can_do_without(tmp_path: Path, tiny_encoder: Any) -> None:
    catalog = read_catalog(write_shop(tmp_path, 55, 1))
    out = tmp_path / "index"
    build_index(catalog, tiny_encoder, out, match=False)
    assert open_index(out, encoder=tiny_encoder).manifest.match is None
    assert tiny_encoder.encoded == 55
    assert build_index(catalog, tiny_encoder, out, match=False).up_to_date
    # Asked for later, it is learned from the vectors that are there.
    learned = build_index(catalog, tiny_encoder, out)
    assert (learned.up_to_date, learned.encoded) == (False, 0)
    match = open_index(out, encoder=tiny_encoder).manifest.match
    assert match == made(tmp_path / "again", tiny_encoder, 55, 1).manifest.match
    assert build_index(catalog, tiny_encoder, out).up_to_date


def test_an_encoder_without_texts_breaks_nothing(
    tmp_path: Path, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_texts: object) -> object:
        raise NotImplementedError("no text tower")

    monkeypatch.setattr(tiny_encoder, "embed_texts", refuse)
    match = made(tmp_path, tiny_encoder, 60, 2).manifest.match
    assert match is not None
    assert list(match.modes) == ["image"]
    assert match.skipped == {
        "text": "the encoder cannot embed them: no text tower",
        "image+text": "the encoder cannot embed them: no text tower",
    }


def test_pictures_all_alike_break_nothing(tiny_encoder: Any) -> None:
    vectors = np.tile(tiny_encoder.embed_texts(["red"]), (120, 1))
    images = pictures_of([row // 2 for row in range(120)], main=[True, False] * 60)
    index = ExactIndex.from_vectors(vectors)
    match = calibrate([None] * 60, images, vectors, index, tiny_encoder)
    assert match.modes == {}
    assert match.skipped["image"] == "all products are the same"


def test_few_products_are_no_basis() -> None:
    asks = Asks(np.zeros((2, 90, 3)), np.ones(90, np.bool_), np.arange(90) % 49)
    with pytest.raises(NoQueriesError, match="49 products that others are left besides"):
        record_of("titles", asks)


def test_asks_against_plain_loops(tmp_path: Path, tiny_encoder: Any) -> None:
    index = made(tmp_path, tiny_encoder, 60, 3, noise=120)
    images, vectors = index.images, index.vectors
    titles = [f"thing {number // 2}" for number in range(60)]  # two products of each title
    same = Same(titles, images, vectors)
    assert same.of(7) >= {6, 7}
    queries = image_queries(images, same.mains, vectors, tiny_encoder, lambda _a, _b: None)
    asks = ask(queries, same, images, vectors, index.index)
    background = vectors[background_rows(len(vectors))]
    for number in range(0, len(queries.products), 7):
        picture, product = int(queries.pictures[number]), int(queries.products[number])
        assert images.product[picture] == product
        assert queries.vectors[number].tolist() == vectors[picture].tolist()
        scores = vectors.astype(float) @ vectors[picture]
        for side, gone in enumerate(({-1}, same.of(product))):
            best: dict[int, float] = {}
            for row in np.argsort(-scores).tolist():
                owner = int(images.product[row])
                if owner not in gone and images.sha256[row] != images.sha256[picture]:
                    best.setdefault(owner, float(scores[row]))
            top = np.array(list(best.values())[:DEPTH], np.float32)
            expected = features(top, background @ vectors[picture])
            assert asks.features[side, number] == pytest.approx(expected, abs=1e-5)
            if side == 0:
                assert asks.right[number] == (next(iter(best)) in same.of(product))
    assert 0 < asks.right.mean() < 1


def test_queries_are_few_and_spread_over_the_products(tiny_encoder: Any) -> None:
    count = 800
    images = pictures_of([row // 3 for row in range(3 * count)], main=[True, False, False] * count)
    vectors = np.tile(tiny_encoder.embed_texts(["red"]), (3 * count, 1))
    mains = main_pictures(images.product, images.main, count)
    found = image_queries(images, mains, vectors, tiny_encoder, lambda _a, _b: None)
    assert len(found.products) == len(set(found.products.tolist())) == 500
    assert all(row % 3 for row in found.pictures)  # never a main picture
    titles = [f"thing {number % 300}" for number in range(count)]
    asked = title_queries(titles, tiny_encoder)
    assert len({titles[product] for product in asked.products}) == len(asked.products) == 300
    both = with_titles(found, titles, tiny_encoder)
    assert np.linalg.norm(both.vectors, axis=1) == pytest.approx(1, abs=1e-6)
    few = [title if number < MIN_PRODUCTS - 1 else " " for number, title in enumerate(titles)]
    with pytest.raises(NoQueriesError, match="49 different titles; at least 50 are needed"):
        title_queries(few, tiny_encoder)
