"""Thresholds on confidence, against loops over all thresholds and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.attributes.precision import (
    RecallAtPrecision,
    recall_at_precision,
    right_at_precision,
    sure_threshold,
)

Pairs = list[tuple[int, bool]]
# Few confidences, so that many are equal, and mostly right, so that some thresholds hold.
pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9).map(bool)), min_size=1, max_size=80)


def arrays(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c / 6 for c, _ in pairs], np.float32), np.array([r for _, r in pairs])


def accepted_at(pairs: Pairs) -> dict[float, tuple[int, int]]:
    """By threshold how many are accepted, and how many of those are right."""
    found = {}
    for limit in {c for c, _ in pairs}:
        said = [right for c, right in pairs if c >= limit]
        found[float(np.float32(limit / 6))] = (len(said), sum(said))
    return found


@given(pairs)
def test_recall_at_precision_against_all_thresholds(found: Pairs) -> None:
    # In whole numbers: right / accepted >= 9 / 10.
    good = {t: (n, r) for t, (n, r) in accepted_at(found).items() if 10 * r >= 9 * n}
    measured = recall_at_precision(*arrays(found))
    if not good:
        assert measured == RecallAtPrecision(0.0, None, None, 0.0)
        return
    most = max(right for _, right in good.values())
    limit = max(t for t, (_, right) in good.items() if right == most)
    accepted, right = good[limit]
    total = len(found)
    expected = RecallAtPrecision(right / total, limit, right / accepted, accepted / total)
    assert measured == expected


@given(pairs, st.integers(0, 1000))
def test_resampled_right_ones_are_those_of_the_copies(found: Pairs, seed: int) -> None:
    confidences, right = arrays(found)
    times = np.random.default_rng(seed).integers(0, 4, (5, len(found))).astype(float)
    expected = []
    for row in times.astype(int):
        copies = [pair for pair, often in zip(found, row, strict=True) for _ in range(often)]
        good = [r for n, r in accepted_at(copies).values() if 10 * r >= 9 * n]
        expected.append(max(good, default=0))
    assert right_at_precision(confidences, right, times).tolist() == expected


def test_nine_of_ten_is_precise_enough_at_any_size() -> None:
    for tens in range(1, 300):
        right = np.arange(10 * tens) % 10 != 0
        same = np.full(10 * tens, 0.5)
        assert recall_at_precision(same, right).recall == 0.9
        ones = np.ones((1, 10 * tens))
        assert right_at_precision(same, right, ones).tolist() == [9 * tens]
        right[1] = False
        assert recall_at_precision(same, right).threshold is None


def test_of_thresholds_that_find_the_same_it_is_the_highest() -> None:
    confidences = np.array([0.9] * 20 + [0.5, 0.4])
    found = recall_at_precision(confidences, confidences > 0.5)
    assert found == RecallAtPrecision(20 / 22, 0.9, 1.0, 20 / 22)


def wilson(right: int, trials: int) -> float:
    """The smaller root of (share - p)^2 = z^2 p (1 - p) / trials (Wilson 1927)."""
    z2 = 1.959963984540054**2
    a, b, c = trials + z2, -(2 * right + z2), right * right / trials
    return (-b - math.sqrt(b * b - 4 * a * c)) / (2 * a)


@given(pairs, st.integers(1, 6))
def test_sure_threshold_against_all_thresholds(found: Pairs, copies: int) -> None:
    many = found * copies
    good = [t for t, (n, r) in accepted_at(many).items() if wilson(r, n) >= 0.9]
    assert sure_threshold(*arrays(many)) == min(good, default=None)


@pytest.mark.parametrize(("count", "threshold"), [(34, None), (35, 0.5)])
def test_35_right_ones_are_the_fewest(count: int, threshold: float | None) -> None:
    # All right, the bound is n / (n + z^2), so n >= 9 z^2 = 34.57.
    assert sure_threshold(np.full(count, 0.5), np.ones(count, bool)) == threshold


def test_of_no_samples_nothing_is_found() -> None:
    none, right = np.empty(0), np.empty(0, bool)
    assert sure_threshold(none, right) is None
    assert recall_at_precision(none, right) == RecallAtPrecision(0.0, None, None, 0.0)
    assert right_at_precision(none, right, np.empty((3, 0))).tolist() == [0, 0, 0]
