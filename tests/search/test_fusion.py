"""Products by their pictures, against plain loops over all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexing.errors import QueryError
from search.fusion import Fusion, PicturesOf
from search.neighbours import Neighbours


def unit(cosine: float) -> list[float]:
    """A vector at this cosine from (1, 0)."""
    return [cosine, (1 - cosine**2) ** 0.5]


QUERY = np.array([1, 0], np.float32)


def fused(index: Any, fuse: Any, allowed: Any = None) -> Fusion:
    near = Neighbours(index, QUERY, allowed)
    return Fusion(index, near, PicturesOf(index.images.product), fuse)


def names(fusion: Fusion, count: int) -> list[int]:
    return [candidate.product for candidate in fusion.first(count)]


def test_two_good_pictures_beat_one_better(make_index: Any) -> None:
    owners = [0, 0, 1, 1, 2, 2]
    vectors = np.array([unit(c) for c in (0.9, 0.1, 0.8, 0.7, 0.6, 0.6)], np.float32)
    index = make_index(owners, vectors)
    assert names(fused(index, "max"), 3) == [0, 1, 2]
    assert names(fused(index, "top2"), 3) == [1, 2, 0]
    best = fused(index, "top2").first(1)[0]
    assert (best.picture, best.score) == (2, pytest.approx(0.8))
    assert best.value == pytest.approx(0.75)


def test_a_lone_picture_counts_as_it_is(make_index: Any) -> None:
    vectors = np.array([unit(c) for c in (0.9, 0.7, 0.9, 0.5, 0.75)], np.float32)
    found = fused(make_index([0, 0, 1, 1, 2], vectors), "top2").first(3)
    assert [c.product for c in found] == [0, 2, 1]
    assert [c.value for c in found] == pytest.approx([0.8, 0.75, 0.7], abs=1e-6)


def test_where_no_product_has_two_pictures_both_ways_agree(make_index: Any) -> None:
    vectors = np.array([unit(c) for c in (0.3, 0.9, -0.5, 0.9)], np.float32)
    index = make_index([0, 1, 2, 3], vectors)
    assert fused(index, "top2").first(4) == fused(index, "max").first(4)
    assert names(fused(index, "top2"), 4) == [1, 3, 0, 2]


def test_a_filter_takes_second_pictures_away_too(make_index: Any) -> None:
    vectors = np.array([unit(c) for c in (0.9, 0.8, 0.7, 0.6)], np.float32)
    index = make_index([0, 0, 1, 1], vectors)
    allowed = np.array([True, False, True, True])
    assert [c.value for c in fused(index, "top2", allowed).first(2)] == pytest.approx(
        [0.9, 0.65], abs=1e-6
    )


def test_an_unknown_fusion_is_refused(make_index: Any) -> None:
    with pytest.raises(QueryError, match="fuse is 'mean': must be max or top2"):
        fused(make_index([0], np.array([unit(1)], np.float32)), "mean")


def by_loops(
    owners: list[int], scores: NDArray[np.float32], allowed: NDArray[np.bool_]
) -> list[tuple[int, float]]:
    own: dict[int, list[float]] = {}
    order = sorted(range(len(owners)), key=lambda row: (-scores[row], row))
    kept = [row for row in order if allowed[row]]
    for row in kept:
        own.setdefault(owners[row], []).append(float(scores[row]))
    values = {p: (s[0] + s[1]) / 2 if len(s) > 1 else s[0] for p, s in own.items()}
    return sorted(values.items(), key=lambda item: (-item[1], item[0]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_two_best_against_plain_loops(make_index: Any, data: st.DataObject) -> None:
    owners = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=400))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    # Few different scores, so that many are tied.
    cosines = rng.choice(np.linspace(-1, 1, data.draw(st.integers(2, 300))), len(owners))
    vectors = np.array([unit(c) for c in cosines], np.float32)
    allowed = rng.random(len(owners)) < 0.8
    expected = by_loops(owners, vectors[:, 0], allowed)
    for count in (1, 3, 50):
        found = fused(make_index(owners, vectors), "top2", allowed).first(count)
        assert [c.product for c in found] == [product for product, _ in expected[:count]]
        assert [c.value for c in found] == pytest.approx([v for _, v in expected[:count]], abs=1e-6)


def test_pictures_of_products_in_any_order() -> None:
    rows, place = PicturesOf(np.array([2, 0, 2, 1, 0]))(np.array([2, 5, 0]))
    assert (rows.tolist(), place.tolist()) == ([0, 2, 1, 4], [0, 0, 2, 2])
