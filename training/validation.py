"""Recall@K while training: title to picture, every product of the same title is right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Keys = NDArray[np.int64]


def first_hit_ranks(
    queries: Floats, gallery: Floats, query_keys: Keys, gallery_keys: Keys, *, block: int = 1024
) -> NDArray[np.float64]:
    """Rank of the best right answer of each query, exactly.

    A right answer is a gallery row with the query's key. Its rank is 1 + the number of wrong
    rows with a higher score + half the number of wrong rows with the same score, so that
    ties neither help nor hurt. Infinite where the gallery holds no right answer.

    Args:
        queries: float32 [q, d]; gallery: float32 [n, d].
        query_keys: int64 [q]; gallery_keys: int64 [n].
        block: queries scored at once; memory is block x n scores.

    Returns:
        float64 [q].
    """
    ranks = np.empty(len(queries), np.float64)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        scores = queries[rows] @ gallery.T
        right = query_keys[rows, None] == gallery_keys[None, :]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
        above = ((scores > best) & ~right).sum(axis=1)
        tied = ((scores == best) & ~right).sum(axis=1)
        found = right.any(axis=1)
        ranks[rows] = np.where(found, 1 + above + tied / 2, np.inf)
    return ranks


def recall_at(
    ranks: NDArray[np.float64], cutoffs: tuple[int, ...] = (1, 5, 10)
) -> dict[int, float]:
    """Share of queries whose best right answer is among the first K, for each K."""
    return {k: float((ranks <= k).mean()) if len(ranks) else float("nan") for k in cutoffs}
