"""Near-duplicates folded, against a plain loop; and all ways to order answers together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexing.near import MAX_BITS, MIN_COSINE
from search.engine import SearchEngine
from search.neighbours import Neighbours
from search.rank import Ranker


class Fixed:
    """An encoder that reads every text as one vector."""

    image_size = 4
    name = "fixed"

    def __init__(self, query: NDArray[np.float32]) -> None:
        self._query = query

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        return np.stack([self._query] * len(texts))


def circle(degrees: list[float]) -> NDArray[np.float32]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


QUERY = circle([0])[0]
FAR = 2**40 - 1  # 40 bits from 0


def test_the_best_stands_for_those_that_look_like_it(make_index: Any) -> None:
    # 1 is near 0; 2 is near in the embedding only, 3 by the hash only; 4 is a copy far down.
    index = make_index(range(6), circle([10, 12, 14, 60, 11, 90]), [0, 1, FAR, 0, 3, 0])
    found = Ranker(index).ranked(Neighbours(index, QUERY), 6, collapse=True)
    assert [(c.product, c.duplicates) for c in found] == [(0, (1, 4)), (2, ()), (3, ()), (5, ())]
    engine = SearchEngine(index, Fixed(QUERY))  # type: ignore[arg-type]
    hits = engine.search(text="x", collapse=True, k=2)
    assert [(hit.product_id, hit.duplicates, hit.rank) for hit in hits] == [
        ("p0", ("p1", "p4"), 1), ("p2", (), 2),
    ]  # fmt: skip
    assert hits[0].to_json()["duplicates"] == ["p1", "p4"]
    # A filter decides who can stand for whom.
    hits = engine.search(text="x", collapse=True, where="price >= 1 and price != 4")
    assert [(hit.product_id, hit.duplicates) for hit in hits[:2]] == [("p1", ()), ("p2", ())]
    assert [hit.product_id for hit in engine.similar("p5", collapse=True)] == ["p3", "p2", "p1"]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 20))
def test_folding_against_a_plain_loop(make_index: Any, seed: int, count: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = circle(list(rng.integers(0, 12, count) * 10.0))
    hashes = [int(value) for value in rng.choice([0, 1, 7, 31, FAR], count)]
    index = make_index(range(count), vectors, hashes)
    order = index.index.search(QUERY[np.newaxis], count)[1][0].tolist()
    expected: list[tuple[int, tuple[int, ...]]] = []
    taken: set[int] = set()
    for row in order:
        if row in taken:
            continue
        own = tuple(
            other
            for other in range(count)
            if other != row
            and other not in taken
            and (hashes[row] ^ hashes[other]).bit_count() <= MAX_BITS
            and float(vectors[row].astype(float) @ vectors[other]) >= MIN_COSINE
        )
        taken.update((row, *own))
        expected.append((row, own))
    found = Ranker(index).ranked(Neighbours(index, QUERY), k, collapse=True)
    assert [(c.product, c.duplicates) for c in found] == expected[:k]


def test_copies_in_the_first_places_leave_k_answers(make_index: Any) -> None:
    degrees = [*[5.0] * 300, 50.0, 100.0, 150.0]
    index = make_index(range(303), circle(degrees))
    engine = SearchEngine(index, Fixed(QUERY))  # type: ignore[arg-type]
    hits = engine.search(text="x", k=4, collapse=True)
    assert [hit.product_id for hit in hits] == ["p0", "p300", "p301", "p302"]
    assert len(hits[0].duplicates) == 299
    assert [h.product_id for h in engine.search(text="x", k=4)] == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize("fuse", ["max", "top2"])
@pytest.mark.parametrize("collapse", [True, False])
@pytest.mark.parametrize("diversity", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("where", [None, "price < 30"])
def test_k_answers_whenever_k_match(
    make_index: Any, fuse: Any, collapse: bool, diversity: float, where: str | None
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((150, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    owners = [*range(50), *rng.integers(0, 50, 100).tolist()]
    index = make_index(owners, vectors)
    engine = SearchEngine(index, Fixed(vectors[0]))  # type: ignore[arg-type]
    options = {"fuse": fuse, "collapse": collapse, "diversity": diversity, "where": where}
    there = 50 if where is None else 30
    whole = engine.search(text="x", k=there, **options)
    assert sorted(hit.product_id for hit in whole) == sorted(f"p{row}" for row in range(there))
    for k in (1, 10):
        hits = engine.search(text="x", k=k, **options)
        assert hits == whole[:k]
        assert [hit.rank for hit in hits] == list(range(1, k + 1))
    for hit in whole:  # the score stays the cosine of the best picture
        own = [row for row, owner in enumerate(owners) if hit.product_id == f"p{owner}"]
        assert hit.score == pytest.approx(float((vectors[own] @ vectors[0]).max()), abs=1e-6)
