"""Temperatures that were planted, and thresholds by loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from indexing.attributes.precision import sure_threshold
from indexing.errors import TrainingError
from training.attributes.calibrating import (
    COLDEST,
    HOTTEST,
    best_temperature,
    calibrate,
    probabilities,
)

VALUES = ("a", "b", "c", "d")


def drawn(count: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    true = rng.standard_normal((count, len(VALUES))) * 2
    shares = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return (true * temperature).astype(np.float32), labels


def likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The negative log-likelihood, one sample after the other."""
    total = 0.0
    for row, label in zip(logits.astype(float) / temperature, labels, strict=True):
        total += math.log(sum(math.exp(value - row[label]) for value in row))
    return total


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.5])
def test_a_planted_temperature_is_found(temperature: float) -> None:
    logits, labels = drawn(20_000, temperature, seed=1)
    assert best_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)
    # To scale the logits is to scale the temperature.
    assert best_temperature(logits * 2, labels) == pytest.approx(
        2 * best_temperature(logits, labels), rel=1e-6
    )


def test_no_temperature_nearby_is_likelier() -> None:
    logits, labels = drawn(200, 1.7, seed=2)
    found = best_temperature(logits, labels)
    best = likelihood(logits, labels, found)
    for other in (0.05, found * 0.99, found * 1.01, 20):
        assert likelihood(logits, labels, other) > best


def test_of_two_classes_the_temperature_has_a_closed_form() -> None:
    # Logits (1, 0), right in 3 of 4 cases: sigmoid(1 / T) = 3 / 4.
    logits = np.tile(np.array([1, 0], np.float32), (40, 1))
    labels = (np.arange(40) % 4 == 0).astype(np.int64)
    assert best_temperature(logits, labels) == pytest.approx(1 / math.log(3), rel=1e-9)


def test_the_ends_bound_the_temperature() -> None:
    logits, _ = drawn(100, 1, seed=3)
    assert best_temperature(logits, logits.argmax(axis=1)) == COLDEST
    assert best_temperature(logits, logits.argmin(axis=1)) == HOTTEST


def test_probabilities_by_hand_and_without_overflow() -> None:
    logits = np.array([[math.log(8), 0, 0], [3e4, 0, -3e4]], np.float32)
    found = probabilities(logits, 3)
    assert found.dtype == np.float32
    assert found[0].tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert found[1].tolist() == [1, 0, 0]


def test_thresholds_are_those_of_calibrated_probabilities() -> None:
    logits, labels = drawn(3000, 2.5, seed=4)
    labels[::7] = -100
    found = calibrate(logits, labels, VALUES)
    known = labels >= 0
    assert found.temperature == best_temperature(logits[known], labels[known])
    chances = probabilities(logits[known], found.temperature)
    predicted, right = chances.argmax(1), chances.argmax(1) == labels[known]
    assert found.threshold == sure_threshold(chances.max(1), right)
    assert found.threshold is not None
    accepted = chances.max(1) >= found.threshold
    assert 0.9 <= right[accepted].mean() < 0.95
    assert 0.2 < accepted.mean() < 0.9
    for each, limit in enumerate(found.classes):
        own = predicted == each
        assert limit is not None
        assert limit == sure_threshold(chances.max(1)[own], right[own])
        assert right[own & (chances.max(1) >= limit)].mean() >= 0.9


def test_a_class_that_is_never_sure_has_no_threshold() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 4, 2000)
    logits = np.eye(4, dtype=np.float32)[labels] * 5
    logits[labels == 3] = np.eye(4, dtype=np.float32)[2] * 5  # d looks like c
    found = calibrate(logits, labels, VALUES)
    assert [limit is None for limit in found.classes] == [False, False, True, True]
    assert found.threshold is None  # equal confidences go together: 3 of 4 are right


def test_few_samples_give_no_threshold_and_very_few_no_temperature() -> None:
    empty = calibrate(np.empty((0, 4), np.float32), np.empty(0, np.int64), VALUES)
    assert (empty.temperature, empty.threshold) == (1, None)
    assert empty.classes == (None,) * 4
    logits, labels = drawn(34, 3.0, seed=6)
    labels[29:] = -100
    assert calibrate(logits, labels, VALUES) == empty
    logits, labels = drawn(34, 3.0, seed=6)
    more = calibrate(logits, labels, VALUES)
    assert more.temperature > 1.5
    assert more.classes == (None,) * 4


def test_what_does_not_fit_is_refused() -> None:
    logits, labels = drawn(50, 1, seed=7)
    with pytest.raises(TrainingError, match="do not fit 50 samples of 3 values"):
        calibrate(logits, labels, VALUES[:3])
    with pytest.raises(TrainingError, match="labels up to 4"):
        calibrate(logits, labels + 1 * (labels == 3), VALUES)
    with pytest.raises(TrainingError, match="do not fit 49 samples"):
        calibrate(logits, labels[1:], VALUES)
    logits[3, 1] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        calibrate(logits, labels, VALUES)
