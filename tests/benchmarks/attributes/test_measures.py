"""Measures of attributes by hand, by loops, and over drawn worlds."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.attributes.measures import (
    COLUMNS,
    AttributeMeasures,
    Predictions,
    calibration_error,
    macro_f1,
    measure,
)
from indexing.attributes.vocabulary import Calibration
from indexing.errors import BenchmarkError


def drawn(
    count: int, seed: int, classes: int = 4, sharpness: float = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    powers = np.exp(rng.standard_normal((count, classes)) * rng.random((count, 1)) * sharpness)
    chances = powers / powers.sum(axis=1, keepdims=True)
    labels = (chances.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return chances.astype(np.float32), np.minimum(labels, classes - 1)


def most_right(rows: list[tuple[float, bool]]) -> int:
    good = [0]
    for limit in {confidence for confidence, _ in rows}:
        said = [right for confidence, right in rows if confidence >= limit]
        if 10 * sum(said) >= 9 * len(said):
            good.append(sum(said))
    return max(good)


def f1_by_loops(gold: list[int], predicted: list[int]) -> float:
    """By precision and recall of each class in gold."""
    scores = []
    for each in set(gold):
        hits = sum(g == p == each for g, p in zip(gold, predicted, strict=True))
        if not hits:
            scores.append(0.0)
            continue
        precision, recall = hits / predicted.count(each), hits / gold.count(each)
        scores.append(2 * precision * recall / (precision + recall))
    return sum(scores) / len(scores)


samples = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(samples, st.integers(0, 100))
def test_macro_f1_by_loops(pairs: list[tuple[int, int]], seed: int) -> None:
    gold, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    times = np.random.default_rng(seed).integers(0, 3, (4, len(pairs)))
    times[0] = 1
    own = Predictions(gold, predicted, np.ones(len(pairs)), 5)
    found = macro_f1(own, times.astype(float))
    for often, value in zip(times, found, strict=True):
        if often.any():
            copies = (gold.repeat(often).tolist(), predicted.repeat(often).tolist())
            assert value == pytest.approx(f1_by_loops(*copies))


def test_macro_f1_is_over_the_classes_in_gold() -> None:
    # Class 0: 2 hits of 2 gold and 3 predicted, F1 .8; class 1: none of 1. Class 2 is not in gold.
    own = Predictions(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 2]), np.ones(4), 3)
    assert macro_f1(own, np.ones((1, 4))).tolist() == pytest.approx([0.4])


def test_calibration_error_by_hand() -> None:
    # Bins of 1/15: .95 and .99 share the last, .9 is in the one before, .0667 > 1/15 in the second.
    confidence = np.array([0.95, 0.99, 0.9, 0.0667])
    right = np.array([True, False, True, False])
    expected = (abs(0.5 - 0.97) * 2 + abs(1 - 0.9) + 0.0667) / 4
    assert calibration_error(confidence, right) == pytest.approx(expected)
    # Bins are closed above: 1/15 lies with .01, not with .0667.
    edge = np.array([1 / 15, 0.01])
    gap = abs(0.5 - (1 / 15 + 0.01) / 2)
    assert calibration_error(edge, np.array([True, False])) == pytest.approx(gap)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0
    assert calibration_error(np.ones(3), np.zeros(3, bool)) == 1


def test_calibration_error_of_calibrated_confidences_is_small() -> None:
    chances, labels = drawn(100_000, seed=0)
    own = Predictions.of(chances, labels)
    assert calibration_error(own.confidence, own.right) < 0.01
    assert calibration_error(own.confidence**0.5, own.right) > 0.05


def test_measures_of_a_small_test_set_by_hand() -> None:
    """Ten of class 0 that are sure and right, class 1 with a wrong one first, and an unknown."""
    confidence = [0.9] * 10 + [0.8, 0.7, 0.7, 0.6]
    predicted = [0] * 10 + [1, 1, 1, 0]
    gold = np.array([0] * 10 + [0, 1, 1, -1])
    chances = np.array([[c, 1 - c] if p == 0 else [1 - c, c]
                        for c, p in zip(confidence, predicted, strict=True)])  # fmt: skip
    calibration = Calibration(threshold=0.75, classes=(None, 0.65))
    found = measure("color", Predictions.of(chances, gold), np.arange(14), calibration)
    assert (found.samples, found.classes) == (13, 2)
    # From .7 on 12 of 13 are right; from .8 on 10 of 11.
    assert found.recall.mean == pytest.approx(12 / 13)
    assert (found.threshold, found.coverage) == (0.7, 1.0)
    # By class: class 0 has ten of ten; class 1 two of three at best.
    assert found.class_recall.mean == pytest.approx(10 / 13)
    assert found.class_coverage == pytest.approx(10 / 13)
    assert found.accuracy.mean == pytest.approx(12 / 13)
    assert found.macro_f1.mean == pytest.approx((20 / 21 + 4 / 5) / 2)
    assert found.held is not None
    assert found.held.precision is not None
    assert found.held.precision.mean == pytest.approx(10 / 11)
    assert found.held.recall.mean == pytest.approx(10 / 13)
    assert found.held.coverage == pytest.approx(11 / 13)
    assert found.held_class is not None
    assert found.held_class.precision is not None
    assert found.held_class.precision.mean == pytest.approx(2 / 3)
    assert found.held_class.recall.mean == pytest.approx(2 / 13)


def test_coverage_by_class_counts_the_wrong_ones_that_are_accepted() -> None:
    """Of class 0 nine of ten are right, of class 1 four of five, which is too few."""
    gold = np.array([0] * 9 + [1] + [1] * 4 + [0])
    predicted = np.array([0] * 10 + [1] * 5)
    found = measure("color", Predictions(gold, predicted, np.full(15, 0.5), 2), np.arange(15))
    assert (found.class_recall.mean, found.class_coverage) == (9 / 15, 10 / 15)
    assert (found.recall.mean, found.threshold, found.coverage) == (0, None, 0)


def test_thresholds_that_are_none_accept_nothing() -> None:
    chances, labels = drawn(50, seed=1)
    nothing = Calibration(classes=(None,) * 4)
    found = measure("color", Predictions.of(chances, labels), np.arange(50), nothing)
    for held in (found.held, found.held_class):
        assert held is not None
        assert held.precision is None
        assert (held.recall.mean, held.recall.high, held.coverage) == (0, 0, 0)
    assert measure("color", Predictions.of(chances, labels), np.arange(50)).held is None


def test_intervals_are_those_of_each_resample_by_itself() -> None:
    chances, labels = drawn(60, seed=2, sharpness=12)
    chances = np.round(chances, 1)  # with equal ones
    titles = np.random.default_rng(3).integers(0, 25, 60) * 3
    own = Predictions.of(chances, labels)
    calibration = Calibration(threshold=0.8, classes=(0.9, 0.7, None, 0.8))
    found = measure("color", own, titles, calibration, resamples=50, seed=9)
    names = sorted(set(titles.tolist()))
    drawn_titles = np.random.default_rng(9).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=50
    )
    limits = (0.9, 0.7, np.inf, 0.8)
    values: dict[str, list[float]] = {}
    for often in drawn_titles:
        counts = dict(zip(names, often.tolist(), strict=True))
        rows = [row for row in range(60) for _ in range(counts[int(titles[row])])]
        right = [bool(own.right[row]) for row in rows]
        conf = [float(own.confidence[row]) for row in rows]
        predicted = [int(own.predicted[row]) for row in rows]
        held = [r for r, c in zip(right, conf, strict=True) if c >= 0.8]
        triples = list(zip(right, conf, predicted, strict=True))
        by_class = [r for r, c, p in triples if c >= limits[p]]
        one = {
            "recall": most_right(list(zip(conf, right, strict=True))) / len(rows),
            "class_recall": sum(
                most_right([(c, r) for r, c, p in triples if p == each]) for each in range(4)
            ) / len(rows),
            "accuracy": sum(right) / len(rows),
            "macro_f1": f1_by_loops([int(own.gold[row]) for row in rows], predicted),
            "held P": sum(held) / len(held),
            "held R": sum(held) / len(rows),
            "class P": sum(by_class) / len(by_class),
            "class R": sum(by_class) / len(rows),
        }  # fmt: skip
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    assert found.held is not None
    assert found.held_class is not None
    intervals = {
        "recall": found.recall, "class_recall": found.class_recall,
        "accuracy": found.accuracy, "macro_f1": found.macro_f1,
        "held P": found.held.precision, "held R": found.held.recall,
        "class P": found.held_class.precision, "class R": found.held_class.recall,
    }  # fmt: skip
    for name, interval in intervals.items():
        assert interval is not None
        low, high = np.quantile(values[name], [0.025, 0.975])
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12), name
        assert low < high, name


def test_copies_of_a_title_do_not_narrow_the_interval() -> None:
    chances, labels = drawn(150, seed=4)
    once = measure("color", Predictions.of(chances, labels), np.arange(150))
    copied = Predictions.of(np.repeat(chances, 5, axis=0), np.repeat(labels, 5))
    copies = measure("color", copied, np.repeat(np.arange(150), 5))
    assert copies.recall == once.recall
    wrong = measure("color", copied, np.arange(750))
    assert wrong.recall.high - wrong.recall.low < 0.6 * (once.recall.high - once.recall.low)


def test_95_of_100_intervals_hold_the_truth() -> None:
    """Labels are drawn from the probabilities, so that the best threshold is known: that above
    which the mean confidence is .9."""
    chances, labels = drawn(150_000, seed=5)
    sure = np.sort(chances.max(axis=1).astype(float))[::-1]
    means = np.cumsum(sure) / np.arange(1, len(sure) + 1)
    last = np.flatnonzero(means >= 0.9)[-1]
    recall, accuracy = sure[: last + 1].sum() / len(sure), sure.mean()
    limit = float(sure[last])
    calibration = Calibration(threshold=limit, classes=(limit,) * 4)
    covered: Counter[str] = Counter()
    for start in range(0, 150_000, 1000):
        part = slice(start, start + 1000)
        found = measure(
            "color", Predictions.of(chances[part], labels[part]), np.arange(1000), calibration,
            resamples=150,
        )  # fmt: skip
        assert found.held is not None
        assert found.held.precision is not None
        covered["R@P90"] += found.recall.low <= recall <= found.recall.high
        covered["accuracy"] += found.accuracy.low <= accuracy <= found.accuracy.high
        covered["held P"] += found.held.precision.low <= 0.9 <= found.held.precision.high
        covered["held R"] += found.held.recall.low <= recall <= found.held.recall.high
    # 150 worlds: three standard errors below .95 are .897. R@P90 is optimistic.
    for name in ("accuracy", "held P", "held R"):
        assert covered[name] / 150 >= 0.89, name
    assert covered["R@P90"] / 150 >= 0.85


def test_what_is_unknown_is_left_out() -> None:
    chances, labels = drawn(300, seed=6)
    known = np.arange(300) % 3 != 0
    titles = np.arange(300) // 2
    some = np.where(known, labels, -100)
    found = measure("color", Predictions.of(chances, some), titles)
    alone = measure("color", Predictions.of(chances[known], labels[known]), titles[known])
    assert found == alone
    with pytest.raises(BenchmarkError, match="'color' is known of no sample"):
        measure("color", Predictions.of(chances, np.full(300, -100)), titles)


def test_rows_and_json_say_what_was_measured() -> None:
    chances, labels = drawn(300, seed=7)
    own = Predictions.of(chances, labels)
    without: AttributeMeasures = measure("color", own, np.arange(300), resamples=20)
    calibration = Calibration(threshold=0.9, classes=(0.9, None, None, None))
    with_held = measure("color", own, np.arange(300), calibration, resamples=20)
    for found in (without, with_held):
        cells = dict(zip(COLUMNS, found.row(), strict=True))
        assert cells["attribute"] == "color"
        assert cells["R@P90"] == str(found.recall)
        assert cells["coverage"] == f"{found.coverage:.3f}"
        assert cells["ECE"] == f"{found.calibration_error:.3f}"
        assert cells["accuracy"] == str(found.accuracy)
        held = found.held
        assert cells["held R"] == ("" if held is None else str(held.recall))
        written = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert written["recall"]["low"] == found.recall.low
        assert written["held"] == (None if held is None else found.to_json()["held"])
