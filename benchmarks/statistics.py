"""Intervals and tests for figures over queries that come in groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_DRAWN_AT_ONCE = 1 << 22  # numbers; bounds the memory of a bootstrap over many clusters
_COPIES = 4  # of the counts of all samples that a figure makes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Summary:
    """A measure over queries (micro), and over clusters with equal weight (macro)."""

    micro: Interval
    macro: Interval


def cluster_bootstrap(
    values: Floats, clusters: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean of `values` with a 95% percentile interval from resampling whole clusters.

    Queries of one product stand or fall together, so products are drawn, not queries.

    Args:
        values: float64 [n], one a query.
        clusters: int64 [n], which product (or title) a query belongs to.
    """
    return summaries(values[:, np.newaxis], clusters, resamples=resamples, seed=seed)[0].micro


def summaries(
    values: Floats, clusters: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Summary]:
    """Micro and macro means of several measures over the same queries, with 95% intervals.

    All columns share the draws, so figures of one table move together and the differences
    of two columns have the interval that the column of the differences has.

    Args:
        values: float64 [n, m], a row for each query and a column for each measure.
        clusters: int64 [n].
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    counts = np.bincount(cluster).astype(np.float64)
    sums = np.stack([np.bincount(cluster, weights=column) for column in values.T], axis=1)
    means = sums / counts[:, np.newaxis]
    micro, macro = [], []
    for drawn in _resampled(len(counts), resamples=resamples, seed=seed, width=0):
        micro.append((drawn @ sums) / (drawn @ counts)[:, np.newaxis])
        macro.append((drawn @ means) / len(counts))
    over_queries = intervals(values.mean(axis=0), np.concatenate(micro))
    over_clusters = intervals(means.mean(axis=0), np.concatenate(macro))
    return [Summary(*both) for both in zip(over_queries, over_clusters, strict=True)]


def bootstrapped(
    figure: Callable[[Floats], Floats],
    clusters: Ints,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """A figure of all samples, float64 [...], and of each resample of their clusters, float64
    [resamples, ...]; for figures that are no means of samples.

    Args:
        figure: of how often each sample counts in each of r resamples, float64 [r, n], gives
            float64 [r, ...].
        clusters: int64 [n].
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    number, width = int(cluster.max()) + 1, _COPIES * len(cluster)
    drawn = _resampled(number, resamples=resamples, seed=seed, width=width)
    spread = np.concatenate([figure(times[:, cluster]) for times in drawn])
    once: Floats = figure(np.ones((1, len(cluster))))[0]
    return once, spread


def _resampled(number: int, *, resamples: int, seed: int, width: int) -> Iterator[Floats]:
    """How often each of `number` clusters is drawn in each resample, float64 [r, number] for
    some resamples at a time. The draws are the same whatever the width, which is how many
    numbers are made of each resample."""
    rng = np.random.default_rng(seed)
    chances = np.full(number, 1 / number)
    step = max(1, _DRAWN_AT_ONCE // max(number, width))
    for first in range(0, resamples, step):
        # Counts, in place of an index of each draw.
        yield rng.multinomial(number, chances, size=min(step, resamples - first)).astype(float)


def intervals(means: Floats, resampled: Floats) -> list[Interval]:
    """95% percentile intervals of m figures: float64 [m], and [resamples, m]."""
    lows, highs = np.quantile(resampled, [0.025, 0.975], axis=0)
    return [
        Interval(float(mean), float(low), float(high))
        for mean, low, high in zip(means, lows, highs, strict=True)
    ]


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p-value of McNemar's test (McNemar 1947): could a fair coin have
    split the queries that only one of two systems answers like this?

    Args:
        wins: Queries that only the first system answers right.
        losses: Queries that only the second one does.
    """
    n, least = wins + losses, min(wins, losses)
    if not n:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)
        for i in range(least + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))
