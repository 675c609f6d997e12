"""Has the catalog what was asked for? A probability from how the answers score.

A flat limit on the cosine fails, as some queries are near to everything and others to nothing.
So a logistic model reads three features of an answer list, with s1, s2, ... the best cosines of
different products:

    s1                                the best cosine
    s1 - mean(s2 .. s10)              how far it stands out of the next nine
    (s1 - mean) / standard deviation  how far it stands out of a sample of the catalog
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from indexing.match_record import ModeRecord

DEPTH = 10  # products whose scores the features read
BACKGROUND = 1024  # pictures, at most, that stand for the catalog
PRECISION = 0.95  # of those said to have a match
MIN_SAID = 30  # different products
FOLDS = 5
_Z = 1.959963984540054  # of a two-sided 95% interval
_RIDGE = 1.0  # on standardised features; keeps weights finite where classes do not overlap
_STEPS = 50
_SMALL = 1e-6

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def background_rows(count: int) -> Ints:
    """The rows, of `count`, of the pictures that stand for the catalog; evenly spread."""
    return np.linspace(0, count - 1, min(count, BACKGROUND)).astype(np.int64)


def features(scores: NDArray[np.float32], background: NDArray[np.float32]) -> Floats:
    """The three features, float64 [3].

    Args:
        scores: float32 [2..DEPTH], the best cosines of different products, best first.
        background: float32 [m], the query's cosines with the pictures of `background_rows`.
    """
    best = float(scores[0])
    spread = max(float(background.std(dtype=np.float64)), _SMALL)
    return np.array(
        [
            best,
            best - float(scores[1:DEPTH].mean(dtype=np.float64)),
            (best - float(background.mean(dtype=np.float64))) / spread,
        ]
    )


def probability(record: ModeRecord, found: Floats) -> float:
    """The probability that what is asked for is there, of the features of the answers."""
    return _sigmoid(float(found @ np.array(record.weights)) + record.bias)


def fit(found: Floats, there: Bools) -> tuple[Floats, float]:
    """Weights, float64 [f], and bias of a logistic regression with a small ridge penalty.

    By Newton's method (iteratively reweighted least squares) on standardised features.

    Args:
        found: float64 [n, f].
        there: bool [n], what is to be told.
    """
    mean, spread = found.mean(axis=0), np.maximum(found.std(axis=0), _SMALL)
    inputs = np.column_stack([(found - mean) / spread, np.ones(len(found))])
    penalty = np.diag([_RIDGE] * found.shape[1] + [_SMALL])
    beta = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(inputs @ beta, -500, 500)))
        slope = inputs.T @ (chance - there) + penalty @ beta
        curve = (inputs * (chance * (1 - chance))[:, np.newaxis]).T @ inputs + penalty
        step = np.linalg.solve(curve, slope)
        beta -= step
        if np.abs(step).max() < 1e-10:
            break
    weights = beta[:-1] / spread
    return weights, float(beta[-1] - weights @ mean)


def held_out(found: Floats, there: Bools, products: Ints) -> Floats:
    """The probability of each ask by a model that saw no query of its product, float64 [n].

    Products are dealt to FOLDS parts in their order.
    """
    _, number = np.unique(products, return_inverse=True)
    chances = np.empty(len(found))
    for fold in range(FOLDS):
        own = number % FOLDS == fold
        if own.any():
            weights, bias = fit(found[~own], there[~own])
            chances[own] = [_sigmoid(value) for value in found[own] @ weights + bias]
    return chances


def auroc(values: Floats, positive: Bools) -> float:
    """The chance that a positive has a larger value than a negative, ties counting half
    (the Mann-Whitney statistic). Both must exist."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1, means over ties
    wins = ranks[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(wins / (positive.sum() * (~positive).sum()))


def threshold(
    chances: Floats, there: Bools, products: Ints, *, precision: float = PRECISION
) -> float | None:
    """The lowest probability at which the precision holds, None where none does.

    It holds where Wilson's lower bound does (Wilson 1927, 95% two-sided) of the share of asks whose
    product is there among those at or above it, if these are of MIN_SAID products or more.

    Args:
        chances: float64 [n >= 1].
        there: bool [n].
        products: int64 [n].
    """
    order = np.argsort(-chances, kind="stable")
    there_so_far = np.cumsum(there[order])
    first_seen = np.zeros(len(order), np.int64)
    first_seen[np.unique(products[order], return_index=True)[1]] = 1
    different = np.cumsum(first_seen)
    ends = np.flatnonzero(np.append(np.diff(chances[order]) != 0, True))  # never between equals
    share = there_so_far[ends] / (ends + 1)
    good = [
        int(end)
        for end, part in zip(ends, share, strict=True)
        if different[end] >= MIN_SAID and wilson_low(float(part), int(end) + 1) >= precision
    ]
    return float(chances[order][good[-1]]) if good else None


def wilson_low(share: float, trials: int) -> float:
    """The lower end of Wilson's score interval (Wilson 1927, 95% two-sided)."""
    middle = share + _Z**2 / (2 * trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    return (middle - spread) / (1 + _Z**2 / trials)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
