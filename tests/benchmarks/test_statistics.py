"""The cluster bootstrap against a plain one, and where its answer is known; McNemar's test."""

from __future__ import annotations

from dataclasses import astuple
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from benchmarks import statistics
from benchmarks.statistics import (
    Floats,
    Ints,
    bootstrapped,
    cluster_bootstrap,
    mcnemar,
    summaries,
)


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


def plain_summary(
    values: Floats, clusters: Ints, resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Micro and macro means of each resample, one after the other, [resamples, 2, m]."""
    groups = [values[clusters == cluster] for cluster in sorted(set(clusters.tolist()))]
    chances = np.full(len(groups), 1 / len(groups))
    drawn = np.random.default_rng(seed).multinomial(len(groups), chances, size=resamples)
    means = []
    for times in drawn:
        taken = [group for group, often in zip(groups, times, strict=True) for _ in range(often)]
        micro = np.concatenate(taken).mean(axis=0)
        means.append([micro, np.mean([group.mean(axis=0) for group in taken], axis=0)])
    return np.array(means)


def drawn_values(seed: int, measures: int = 3) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    clusters = rng.permutation(np.repeat(np.arange(0, 60, 2), rng.integers(1, 9, 30)))
    return rng.random((len(clusters), measures)), clusters


def test_summaries_are_those_of_each_resample_and_each_measure_by_itself() -> None:
    values, clusters = drawn_values(4)
    means = plain_summary(values, clusters, 200, seed=7)
    found = summaries(values, clusters, resamples=200, seed=7)
    assert len(found) == 3
    for column, summary in enumerate(found):
        for number, interval in enumerate((summary.micro, summary.macro)):
            low, high = np.quantile(means[:, number, column], [0.025, 0.975])
            assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)
        alone = summaries(values[:, [column]], clusters, resamples=200, seed=7)[0]
        for one, other in ((summary.micro, alone.micro), (summary.macro, alone.macro)):
            assert astuple(one) == pytest.approx(astuple(other), abs=1e-12)


def test_micro_weighs_queries_and_macro_products() -> None:
    """Three queries of one product are right, the one of the other product is not."""
    values = np.array([[1.0], [1.0], [0.0], [1.0]])
    [summary] = summaries(values, np.array([8, 8, 3, 8]))
    assert (summary.micro.mean, summary.macro.mean) == (0.75, 0.5)
    assert (summary.macro.low, summary.macro.high) == (0, 1)


def test_the_interval_of_a_difference_is_that_of_the_column_of_differences() -> None:
    """As all columns share their draws, a table may be taken apart and put together."""
    values, clusters = drawn_values(5)
    table = np.stack([values[:, 0], values[:, 1], values[:, 0] - values[:, 1]], axis=1)
    one, other, difference = (
        plain_summary(table[:, [column]], clusters, 300, seed=0)[:, 0, 0] for column in range(3)
    )
    np.testing.assert_allclose(one - other, difference, atol=1e-12)
    found = summaries(table, clusters, resamples=300)[2].micro
    low, high = np.quantile(one - other, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    # The difference of a measure with itself is sure.
    same = summaries(table[:, [0]] - table[:, [0]], clusters)[0].micro
    assert astuple(same) == (0, 0, 0)


def test_drawing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = drawn_values(6)
    whole = summaries(values, clusters, resamples=50, seed=2)
    for at_once in (1, 30 * 7, 30 * 50 + 1):
        monkeypatch.setattr(statistics, "_DRAWN_AT_ONCE", at_once)
        for one, other in zip(
            whole, summaries(values, clusters, resamples=50, seed=2), strict=True
        ):
            assert astuple(one.micro) == pytest.approx(astuple(other.micro), abs=1e-14)
            assert astuple(one.macro) == pytest.approx(astuple(other.macro), abs=1e-14)


def test_one_product_gives_no_interval() -> None:
    [summary] = summaries(np.array([[1.0], [0.0], [1.0]]), np.array([4, 4, 4]))
    assert astuple(summary.micro) == pytest.approx((2 / 3,) * 3)
    assert summary.macro == summary.micro


def test_95_of_100_intervals_over_products_of_any_size_hold_the_truth() -> None:
    """1,500 worlds at once: each a column of answers to the same 300 products."""
    rng = np.random.default_rng(11)
    sizes = rng.geometric(0.3, 300)
    clusters = np.repeat(np.arange(300), sizes)
    chances = rng.beta(1.4, 0.6, (300, 1500))  # of each product in each world; the mean is .7
    values = (rng.random((len(clusters), 1500)) < chances[clusters]).astype(float)
    found = summaries(values, clusters)
    for intervals in ([s.micro for s in found], [s.macro for s in found]):
        covered = np.mean([i.low <= 0.7 <= i.high for i in intervals])
        assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 1), (5, 5), (4, 0), (3, 12), (210, 150)])
def test_mcnemar_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    n = wins + losses
    tail = sum(Fraction(comb(n, i), 2**n) for i in range(min(wins, losses) + 1))
    expected = min(Fraction(1), 2 * tail)
    assert mcnemar(wins, losses) == pytest.approx(float(expected), rel=1e-10)
    assert mcnemar(wins, losses) == mcnemar(losses, wins)


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [
        (3, 12, 0.03515625),
        (10, 25, 0.016673847800120715),
        (1000, 1200, 2.1817026407914194e-05),
        (9000, 9400, 0.0032655409890300887),
        (1, 3000, 0.0),
    ],
)
def test_mcnemar_finds_what_scipy_finds(wins: int, losses: int, expected: float) -> None:
    """scipy.stats.binomtest(wins, wins + losses).pvalue"""
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_a_figure_that_is_no_mean_is_that_of_each_resample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The median, and the number of samples."""
    values, clusters = drawn_values(8, measures=1)
    order = np.argsort(values[:, 0])

    def figure(times: Floats) -> Floats:
        middle = times.sum(axis=1, keepdims=True) / 2
        place = (times[:, order].cumsum(axis=1) >= middle).argmax(axis=1)
        return np.stack([values[order[place], 0], times.sum(axis=1)], axis=1)

    once, spread = bootstrapped(figure, clusters, resamples=60, seed=3)
    groups = [values[clusters == cluster, 0] for cluster in sorted(set(clusters.tolist()))]
    drawn = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=60)
    for often, found in zip([np.ones(30, int), *drawn], [once, *spread], strict=True):
        taken = np.sort(np.concatenate([np.tile(g, n) for g, n in zip(groups, often, strict=True)]))
        assert found.tolist() == [taken[(len(taken) + 1) // 2 - 1], len(taken)]
    monkeypatch.setattr(statistics, "_DRAWN_AT_ONCE", 1)
    assert (bootstrapped(figure, clusters, resamples=60, seed=3)[1] == spread).all()
