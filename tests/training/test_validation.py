"""Ranks and recall against a plain count, with ties."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.validation import first_hit_ranks, recall_at


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-1, 1])), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_ranks_count_the_wrong_answers_above(
    gallery: list[tuple[int, int]], queries: list[tuple[int, int]], block: int
) -> None:
    """One-dimensional vectors of whole numbers: scores are exact and ties are common."""
    ranks = first_hit_ranks(
        np.array([[value] for _, value in queries], np.float32),
        np.array([[value] for _, value in gallery], np.float32),
        np.array([key for key, _ in queries]),
        np.array([key for key, _ in gallery]),
        block=block,
    )
    for rank, (key, value) in zip(ranks, queries, strict=True):
        right = [value * other for k, other in gallery if k == key]
        wrong = [value * other for k, other in gallery if k != key]
        if not right:
            assert rank == np.inf
            continue
        best = max(right)
        assert rank == 1 + sum(s > best for s in wrong) + sum(s == best for s in wrong) / 2


def test_recall_is_the_share_of_queries_within_k() -> None:
    ranks = np.array([1.0, 1.5, 5.0, 5.5, 11.0, np.inf])
    assert recall_at(ranks) == {1: 1 / 6, 5: 3 / 6, 10: 4 / 6}
