"""Answers that differ from each other: Maximal Marginal Relevance.

Carbonell and Goldstein, SIGIR 1998: the next answer is the one with the largest

    lambda * relevance - (1 - lambda) * largest similarity to an answer before it

with lambda = 1 - diversity. Cosines of a text with pictures lie much closer together than those of
pictures with each other, and each encoder has its own range. So the relevance is the cosine as a
share of the way from the worst to the best candidate: the same diversity then does about the same
for a text and for a photo.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexing.errors import QueryError
from indexing.vectors import inner_products

POOL = 100  # candidates at least: the answers are the same for every k up to half of this
MAX_DIVERSE = 1_000  # answers: the work grows with their square


def check_diversity(diversity: float, k: int) -> None:
    """Raises QueryError for a diversity outside 0..1, or for too many diverse answers."""
    if not 0 <= diversity <= 1:  # also catches NaN
        raise QueryError(f"diversity is {diversity:g}: must be between 0 and 1")
    if diversity and k > MAX_DIVERSE:
        raise QueryError(
            f"k is {k:,}: with diversity at most {MAX_DIVERSE:,} answers can be ordered; ask "
            "for fewer, or without it"
        )


def pool_size(k: int) -> int:
    """How many candidates k diverse answers are chosen from."""
    return max(POOL, 2 * k)


def relative(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values, float64 [n], between the smallest (0) and the largest (1); all 1 if equal."""
    if not len(values) or np.ptp(values) == 0:
        return np.ones(len(values))
    return np.asarray((values - values.min()) / np.ptp(values))


def diverse(
    relevance: NDArray[np.float64],
    vectors: NDArray[np.float32],
    k: int,
    diversity: float,
    before: NDArray[np.float32] | None = None,
) -> list[int]:
    """The places of k candidates in the order of their marginal relevance.

    The candidate that stands first among equals is taken.

    Args:
        relevance: float64 [n].
        vectors: float32 [n, dim], unit; their inner products are the similarities.
        before: float32 [m, dim], answers that stand before all of these.
    """
    nearest = np.full(len(relevance), -np.inf)  # the largest similarity so far
    for vector in () if before is None else before:
        nearest = np.maximum(nearest, inner_products(vector[np.newaxis], vectors))
    left = np.ones(len(relevance), np.bool_)
    chosen: list[int] = []
    while len(chosen) < min(k, len(relevance)):
        # The first of all answers has none before it: it is the best, whatever the diversity.
        first = np.isneginf(nearest).all()
        marginal = relevance if first else (1 - diversity) * relevance - diversity * nearest
        place = int(np.argmax(np.where(left, marginal, -np.inf)))
        chosen.append(place)
        left[place] = False
        nearest = np.maximum(nearest, inner_products(vectors[place][np.newaxis], vectors))
    return chosen
