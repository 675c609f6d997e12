"""Mean R@P90 of runs and its paired differences, against loops and on drawn worlds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.attributes.measures import Predictions, measure
from benchmarks.attributes.paired import Run, mean_recall, paired_difference
from benchmarks.statistics import Interval
from indexing.attributes.precision import recall_at_precision
from indexing.errors import BenchmarkError


def run(gold: dict[str, np.ndarray], skill: float, seed: int) -> Run:
    """Predictions that are right with a chance that grows with their confidence."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, labels in gold.items():
        confidence = rng.random(len(labels))
        right = rng.random(len(labels)) < confidence**0.25 * skill
        predicted = np.where(right, labels, (labels + 1) % 3)
        found[name] = Predictions(labels, predicted, confidence, 3)
    return found


def gold_of(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    gold = {name: rng.integers(0, 3, count) for name in ("color", "usage")}
    gold["usage"][rng.random(count) < 0.3] = -100
    return gold


def recall(predictions: Predictions, rows: np.ndarray) -> float:
    own = predictions[np.array([row for row in rows if predictions.gold[row] >= 0])]
    return recall_at_precision(own.confidence, own.right).recall


def test_means_and_differences_are_those_of_each_resample_by_itself() -> None:
    gold = gold_of(90, 0)
    titles = np.random.default_rng(1).integers(0, 40, 90)
    ours, theirs = ([run(gold, skill, seed) for seed in (2, 3)] for skill in (1.0, 0.95))
    names = np.unique(titles)
    often = np.random.default_rng(7).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=40
    )
    draws = [np.arange(90)] + [
        np.concatenate([np.tile(np.flatnonzero(titles == t), n)
                        for t, n in zip(names, row, strict=True)]) for row in often
    ]  # fmt: skip
    # [draws, systems, runs, attributes]
    all_of = np.array(
        [[[[recall(p, rows) for p in one.values()] for one in system]
          for system in (ours, theirs)] for rows in draws]
    )  # fmt: skip
    differences = all_of[:, 0] - all_of[:, 1]
    alone = mean_recall(ours, titles, resamples=40, seed=7)
    paired = paired_difference(ours, theirs, titles, resamples=40, seed=7)
    for found, expected in ((alone, all_of[:, 0]), (paired, differences)):
        intervals = {"": (found.mean, expected.mean(axis=(1, 2)))}
        for place, (name, interval) in enumerate(found.attributes.items()):
            intervals[name] = (interval, expected[:, :, place].mean(axis=1))
        for interval, values in intervals.values():
            low, high = np.quantile(values[1:], [0.025, 0.975])
            wanted = pytest.approx((values[0], low, high), abs=1e-12)
            assert (interval.mean, interval.low, interval.high) == wanted
        assert found.runs == pytest.approx(tuple(expected[0].mean(axis=1)))
    assert list(paired.attributes) == ["color", "usage"]


def test_of_one_run_and_attribute_it_is_the_measure() -> None:
    gold = {"color": np.random.default_rng(0).integers(0, 3, 200)}
    one, titles = run(gold, 1.0, 1), np.arange(200) // 2
    assert mean_recall([one], titles).mean == measure("color", one["color"], titles).recall


def test_a_system_has_nothing_over_itself() -> None:
    gold = gold_of(100, 1)
    runs = [run(gold, 1.0, seed) for seed in (0, 1)]
    found = paired_difference(runs, runs, np.arange(100), resamples=100)
    assert found.mean == Interval(0, 0, 0)
    assert found.runs == (0, 0)


def test_pairing_cancels_what_systems_share() -> None:
    """Theirs is ours with 20 of the sure answers wrong."""
    gold = {"color": np.random.default_rng(2).integers(0, 3, 1000)}
    ours = run(gold, 1.0, 3)
    predicted = ours["color"].predicted.copy()
    sure = np.argsort(-ours["color"].confidence)[:400:20]
    predicted[sure] = (gold["color"][sure] + 1) % 3
    theirs = {"color": Predictions(gold["color"], predicted, ours["color"].confidence, 3)}
    titles = np.arange(1000)
    found = paired_difference([ours], [theirs], titles).mean
    one, other = (mean_recall([each], titles).mean for each in (ours, theirs))
    assert found.mean == pytest.approx(one.mean - other.mean)
    assert found.low > 0
    apart = np.hypot(one.high - one.low, other.high - other.low)
    assert found.high - found.low < 0.8 * apart


def test_false_alarms_are_rare() -> None:
    """Two systems of equal skill: an interval leaves out 0 in about 5 of 100 worlds."""
    alarms = 0
    for world in range(150):
        gold = gold_of(300, 1000 + world)
        pair = [[run(gold, 1.0, 2 * world + side)] for side in (0, 1)]
        found = paired_difference(*pair, np.arange(300), resamples=200).mean
        alarms += not found.low <= 0 <= found.high
    assert alarms / 150 <= 0.11  # .05 and three standard errors


def test_a_title_that_is_drawn_without_a_known_value_does_no_harm() -> None:
    gold = {"color": np.array([0, -1, -1]), "usage": np.array([0, 1, 2])}
    one = {name: Predictions(g, np.array([0, 1, 2]), np.ones(3), 3) for name, g in gold.items()}
    found = mean_recall([one], np.arange(3), resamples=200)
    assert found.attributes["usage"] == Interval(1, 1, 1)
    assert found.attributes["color"] == Interval(1, 0, 1)


def test_json_and_rows() -> None:
    gold = gold_of(60, 3)
    found = mean_recall([run(gold, 1.0, 0)], np.arange(60), resamples=20)
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["attributes"]["usage"]["high"] == found.attributes["usage"].high
    assert found.row() == (str(found.mean), *(str(each) for each in found.attributes.values()))


def test_runs_that_cannot_be_compared_are_refused() -> None:
    gold, titles = gold_of(20, 4), np.arange(20)
    one = run(gold, 1.0, 0)
    with pytest.raises(BenchmarkError, match="no run"):
        mean_recall([], titles)
    with pytest.raises(BenchmarkError, match="2 runs cannot be paired with 1"):
        paired_difference([one, one], [one], titles)
    with pytest.raises(BenchmarkError, match=r"\['color', 'usage'\] and of \['color'\]"):
        paired_difference([one], [{"color": one["color"]}], titles)
    with pytest.raises(BenchmarkError, match="'color' has 20 samples for 19 titles"):
        mean_recall([one], titles[1:])
    with pytest.raises(BenchmarkError, match="'color' has other gold values"):
        paired_difference([one], [run(gold_of(20, 5), 1.0, 0)], titles)
    unknown = run({"color": np.full(20, -100)}, 1.0, 0)
    with pytest.raises(BenchmarkError, match="'color' is known of no sample"):
        mean_recall([unknown], titles)
