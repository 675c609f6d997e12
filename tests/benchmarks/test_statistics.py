"""The cluster bootstrap against a plain one, and where its answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.statistics import cluster_bootstrap


def test_constant_values_leave_no_doubt() -> None:
    interval = cluster_bootstrap(np.full(12, 0.25), np.arange(12) // 3)
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_the_interval_is_that_of_drawing_clusters_one_by_one() -> None:
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 40, 400)
    values = (rng.random(400) < 0.2 + 0.6 * (clusters % 2)).astype(float)
    interval = cluster_bootstrap(values, clusters, resamples=4000)
    groups = [values[clusters == cluster] for cluster in np.unique(clusters)]
    means = [
        np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]).mean()
        for _ in range(4000)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    assert interval.mean == values.mean()
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.01)


def test_queries_of_one_product_do_not_count_as_independent() -> None:
    """Ten copies of each query narrow nothing when they come in clusters."""
    rng = np.random.default_rng(0)
    values = (rng.random(100) < 0.5).astype(float)
    once = cluster_bootstrap(values, np.arange(100))
    copies = cluster_bootstrap(np.repeat(values, 10), np.repeat(np.arange(100), 10))
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))
    wrong = cluster_bootstrap(np.repeat(values, 10), np.arange(1000))
    assert wrong.high - wrong.low < 0.5 * (copies.high - copies.low)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        chances = rng.beta(2, 2, 120)  # each product has its own difficulty; the mean is 1/2
        values = (rng.random((120, 3)) < chances[:, None]).astype(float).ravel()
        interval = cluster_bootstrap(values, np.repeat(np.arange(120), 3), resamples=400)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.91 <= covered / 300 <= 0.985  # three standard errors around .95
