"""A query's confidence is the calibration's model applied to what the query finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from indexing.match import features, probability
from indexing.match_fit import calibrate
from indexing.match_record import MatchRecord, ModeRecord
from search.confidence import Confidence
from search.neighbours import Neighbours

RECORD = ModeRecord(
    queries="titles", asked=1, products=1, weights=(1.0, 2.0, -0.5), bias=0.1, auroc=0.9,
    auroc_cosine=0.8, right=0.5, threshold=0.5, precision=0.95, found=0.5,
)  # fmt: skip


def shop(make_index: Any, products: int, match: MatchRecord | None) -> Any:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3 * products, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return make_index([row // 3 for row in range(3 * products)], vectors, match=match)


@pytest.mark.parametrize("already", [0, 1, 500])
def test_the_model_reads_the_ten_best_products(make_index: Any, already: int) -> None:
    index = shop(make_index, 40, MatchRecord(modes={"image": RECORD}, skipped={}))
    query = index.vectors[7]
    near = Neighbours(index, query)
    near.fetch(already)
    scores = index.vectors.astype(float) @ query
    best = sorted((max(scores[row : row + 3]) for row in range(0, 120, 3)), reverse=True)[:10]
    expected = probability(RECORD, features(np.array(best, np.float32), scores))
    chance, good = Confidence(index).of(near, image=True, text=False)
    assert chance == pytest.approx(expected, abs=1e-5)
    assert good == (expected >= 0.5)
    assert Confidence(index).of(near, image=False, text=True) == (None, None)
    assert Confidence(index).of(near, image=True, text=True) == (None, None)


def test_without_a_record_or_with_one_product_nothing_is_said(make_index: Any) -> None:
    index = shop(make_index, 5, None)
    near = Neighbours(index, index.vectors[0])
    assert Confidence(index).of(near, image=True, text=False) == (None, None)
    index = shop(make_index, 5, MatchRecord(modes={"image": RECORD}, skipped={}))
    alone = Neighbours(index, index.vectors[0], index.images.product == 2)
    assert Confidence(index).of(alone, image=True, text=False) == (None, None)
    nothing = Neighbours(index, index.vectors[0], index.images.product == 9)
    assert Confidence(index).of(nothing, image=True, text=False) == (None, None)


def test_a_query_of_the_shop_is_told_from_one_of_another(
    make_index: Any, tiny_encoder: Any
) -> None:
    rng = np.random.default_rng(0)
    products = rng.standard_normal((120, 16))
    views = np.repeat(products, 3, axis=0) + 0.4 * rng.standard_normal((360, 16))
    vectors = (views / np.linalg.norm(views, axis=1, keepdims=True)).astype(np.float32)
    index = make_index(
        [row // 3 for row in range(300)],
        vectors[:300],
        hashes=[2**20 - 1 if row % 2 else row for row in range(300)],
        main=[row % 3 == 0 for row in range(300)],
    )
    match = calibrate([None] * 100, index.images, index.vectors, index.index, tiny_encoder)
    index.manifest.match = match
    judge = Confidence(index)

    def chance(vector: Any) -> float:
        found, _ = judge.of(Neighbours(index, vector), image=True, text=False)
        assert found is not None
        return found

    again = products[:100] + 0.4 * rng.standard_normal((100, 16))
    there = [chance((q / np.linalg.norm(q)).astype(np.float32)) for q in again]
    gone = [chance(vector) for vector in vectors[300:]]
    assert np.mean(there) > 0.8
    assert np.mean(gone) < 0.3
