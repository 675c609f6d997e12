"""The logistic model, its measures and its threshold, against closed forms and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.match import (
    MIN_SAID,
    auroc,
    background_rows,
    features,
    fit,
    held_out,
    probability,
    threshold,
    wilson_low,
)
from indexing.match_record import ModeRecord


def test_features_by_hand() -> None:
    scores = np.array([0.9, 0.5, 0.3], np.float32)
    background = np.array([0.1, 0.3, 0.5, 0.3], np.float32)  # mean .3, standard deviation .02 ** .5
    found = features(scores, background)
    assert found.tolist() == pytest.approx([0.9, 0.5, 0.6 / 0.02**0.5], abs=1e-6)
    # Of more scores than ten only the first ten count.
    many = np.array([0.9, *[0.5] * 9, -1, -1], np.float32)
    assert features(many, background)[1] == pytest.approx(0.4, abs=1e-6)
    assert np.isfinite(features(scores, np.full(3, 0.2, np.float32))).all()


def test_background_rows_are_spread_over_the_catalog() -> None:
    assert background_rows(3).tolist() == [0, 1, 2]
    rows = background_rows(1_000_000)
    assert (len(np.unique(rows)), rows[0], rows[-1]) == (1024, 0, 999_999)


def test_the_gradient_of_the_fit_is_nought() -> None:
    rng = np.random.default_rng(0)
    found = rng.standard_normal((400, 3)) * [0.1, 5, 1] + [3, -2, 0]
    right = rng.random(400) < 1 / (1 + np.exp(-(found[:, 0] * 20 - 60)))
    weights, bias = fit(found, right)
    chance = 1 / (1 + np.exp(-(found @ weights + bias)))
    standard = (found - found.mean(axis=0)) / found.std(axis=0)
    penalty = weights * found.std(axis=0)
    assert standard.T @ (chance - right) + penalty == pytest.approx([0, 0, 0], abs=1e-6)
    assert chance.mean() == pytest.approx(right.mean(), abs=1e-6)
    assert weights[0] * 0.1 > abs(weights[1] * 5)


def test_classes_without_overlap_have_finite_weights() -> None:
    weights, bias = fit(np.arange(10.0)[:, np.newaxis], np.arange(10) > 4)
    assert np.isfinite([*weights, bias]).all()
    assert weights[0] * 4.5 + bias == pytest.approx(0, abs=1e-6)


def test_a_constant_feature_does_no_harm() -> None:
    found = np.column_stack([np.arange(10.0), np.ones(10)])
    weights, bias = fit(found, np.arange(10) % 3 == 0)
    assert np.isfinite([*weights, bias]).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2))
def test_auroc_against_all_pairs(pairs: list[tuple[int, bool]]) -> None:
    high = [value for value, positive in pairs if positive]
    low = [value for value, positive in pairs if not positive]
    if not high or not low:
        return
    wins = sum((a > b) + (a == b) / 2 for a in high for b in low) / (len(high) * len(low))
    values, positive = (np.array(column) for column in zip(*pairs, strict=True))
    assert auroc(values.astype(float), positive.astype(bool)) == pytest.approx(wins)


def test_wilson_by_its_own_equation() -> None:
    # The bound is the share at which the observed one is 1.96 standard errors above it.
    for share, trials in ((0.5, 10), (0.97, 200), (1.0, 73)):
        low = wilson_low(share, trials)
        z = (share - low) / math.sqrt(low * (1 - low) / trials)
        assert z == pytest.approx(1.959964, abs=1e-5)


def by_loops(chances: list[float], right: list[bool], products: list[int]) -> float | None:
    reached = []
    for limit in set(chances):
        said = [i for i, chance in enumerate(chances) if chance >= limit]
        share = sum(right[i] for i in said) / len(said)
        if len({products[i] for i in said}) >= MIN_SAID and wilson_low(share, len(said)) >= 0.95:
            reached.append(limit)
    return min(reached, default=None)


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 400))
def test_threshold_against_loops(seed: int, products: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    chances = np.round(rng.random(count), 2)  # with equal ones
    right = rng.random(count) < np.sqrt(chances) + 0.1
    owners = rng.integers(0, products, count)
    found = threshold(chances, right, owners)
    assert found == by_loops(chances.tolist(), right.tolist(), owners.tolist())


def test_a_threshold_is_found_and_is_not_lower_than_it_may_be() -> None:
    chances = np.linspace(0, 1, 400)
    right = chances > 0.5
    limit = threshold(chances, right, np.arange(400))
    assert limit is not None
    assert right[chances >= limit].mean() > 0.95
    assert threshold(chances, ~right, np.arange(400)) is None
    assert threshold(chances, right, np.zeros(400, np.int64)) is None  # all of one product


def test_held_out_is_by_a_model_that_saw_no_query_of_the_product() -> None:
    rng = np.random.default_rng(1)
    found, right = rng.standard_normal((60, 2)), rng.random(60) < 0.5
    products = rng.integers(0, 12, 60) * 7
    chances = held_out(found, right, products)
    for fold in range(5):
        own = np.isin(products, np.unique(products)[fold::5])
        weights, bias = fit(found[~own], right[~own])
        expected = 1 / (1 + np.exp(-(found[own] @ weights + bias)))
        assert chances[own] == pytest.approx(expected)


def test_probability_of_a_record() -> None:
    record = ModeRecord(
        queries="titles", asked=1, products=1, weights=(1.0, -2.0, 0.5), bias=0.25, auroc=0.5,
        auroc_cosine=0.5, right=0.5, threshold=None, precision=None, found=None,
    )  # fmt: skip
    found = np.array([0.5, 0.25, 1.0])
    assert probability(record, found) == pytest.approx(1 / (1 + math.exp(-0.75)))
    assert probability(record, np.array([-1e9, 0, 0])) == 0
    assert probability(record, np.array([1e9, 0, 0])) == 1
