"""Maximal Marginal Relevance, against the formula in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexing.errors import QueryError
from search.diversity import MAX_DIVERSE, check_diversity, diverse, relative


def units(count: int, seed: int, dim: int = 5) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_loops(
    relevance: list[float], vectors: NDArray[np.float64], k: int, diversity: float,
    before: NDArray[np.float64],
) -> list[int]:  # fmt: skip
    chosen: list[int] = []
    answers = list(before)
    while len(chosen) < min(k, len(relevance)):
        best, best_value = -1, -math.inf
        for place, value in enumerate(relevance):
            if place in chosen:
                continue
            if answers:
                redundancy = max(float(vectors[place] @ answer) for answer in answers)
                value = (1 - diversity) * value - diversity * redundancy
            if value > best_value + 1e-9:
                best, best_value = place, value
        chosen.append(best)
        answers.append(vectors[best])
    return chosen


@given(
    st.integers(0, 10_000), st.integers(0, 25), st.integers(1, 30),
    st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.integers(0, 3),
)  # fmt: skip
def test_against_plain_loops(seed: int, count: int, k: int, diversity: float, before: int) -> None:
    vectors, earlier = units(count, seed), units(before, seed + 1)
    relevance = np.sort(np.random.default_rng(seed).random(count))[::-1]
    found = diverse(relevance, vectors, k, diversity, earlier)
    expected = by_loops(relevance.tolist(), vectors.astype(float), k, diversity,
                        earlier.astype(float))  # fmt: skip
    assert found == expected


def test_no_diversity_is_the_order_of_relevance() -> None:
    assert diverse(np.array([0.9, 0.9, 0.5, 0.1]), units(4, 0), 4, 0.0) == [0, 1, 2, 3]


def test_a_copy_of_an_answer_waits_for_something_else() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    relevance = np.array([0.9, 0.9, 0.3])
    assert diverse(relevance, vectors, 3, 0.5) == [0, 2, 1]
    # (1 - d) * .9 - d against (1 - d) * .3: even at d = 3 / 8.
    assert diverse(relevance, vectors, 3, 0.37) == [0, 1, 2]
    assert diverse(relevance, vectors, 3, 0.38) == [0, 2, 1]


def test_the_first_of_equals_is_taken() -> None:
    same = np.tile(units(1, 0), (5, 1))
    assert diverse(np.full(5, 0.5), same, 5, 1.0) == [0, 1, 2, 3, 4]


def test_relevance_is_the_share_of_the_way_to_the_best() -> None:
    assert relative(np.array([0.3, 0.2, 0.25])).tolist() == pytest.approx([1, 0, 0.5])
    assert relative(np.array([0.3, 0.3])).tolist() == [1, 1]
    assert relative(np.array([])).tolist() == []


@pytest.mark.parametrize("diversity", [-0.1, 1.5, math.nan])
def test_bad_values_are_refused(diversity: float) -> None:
    with pytest.raises(QueryError, match=f"diversity is {diversity:g}: must be between 0 and 1"):
        check_diversity(diversity, 10)


def test_too_many_diverse_answers_are_refused() -> None:
    check_diversity(0.0, MAX_DIVERSE + 1)
    check_diversity(0.5, MAX_DIVERSE)
    with pytest.raises(QueryError, match="k is 1,001: with diversity at most 1,000"):
        check_diversity(0.5, MAX_DIVERSE + 1)
