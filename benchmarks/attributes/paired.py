"""Mean R@P90 over attributes: of one system, and what one has over another on the same titles.

A system is a list of runs, such as trainings with different seeds. Its figure is the mean over
runs and attributes. Each resample draws titles and takes them for all attributes, runs and
systems at once, so that what they share cancels out. Runs are not drawn: an interval is over
other test sets for these runs. How far runs differ is shown by the figures of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.attributes.measures import Floats, Ints, Predictions
from benchmarks.statistics import RESAMPLES, Interval, bootstrapped, intervals
from indexing.attributes.precision import right_at_precision
from indexing.errors import BenchmarkError

# One run: its predictions of each attribute of the same samples in the same order.
Run = Mapping[str, Predictions]


@dataclass(frozen=True)
class MeanRecall:
    """R@P90, or a difference of it.

    Attributes:
        mean: Over attributes and runs.
        attributes: Of each attribute, over runs.
        runs: Of each run, over attributes.
    """

    mean: Interval
    attributes: dict[str, Interval]
    runs: tuple[float, ...]

    def row(self) -> tuple[str, ...]:
        """The mean and the attributes."""
        return tuple(str(each) for each in (self.mean, *self.attributes.values()))

    def to_json(self) -> dict[str, Any]:
        """All fields, as `json.dumps` takes them."""
        return asdict(self)


def mean_recall(
    runs: Sequence[Run], clusters: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> MeanRecall:
    """R@P90 of one system.

    Args:
        clusters: int64 [n], the title of each sample.

    Raises:
        BenchmarkError: There is no run, or runs differ in attributes, samples or known values.
    """
    _check(runs, clusters)
    once, spread = bootstrapped(partial(_recalls, runs), clusters, resamples=resamples, seed=seed)
    return _summary(list(runs[0]), once, spread)


def paired_difference(
    ours: Sequence[Run],
    theirs: Sequence[Run],
    clusters: Ints,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> MeanRecall:
    """What `ours` has over `theirs` in R@P90; `runs` are the differences of run i of both.

    Args:
        clusters: int64 [n], the title of each sample.

    Raises:
        BenchmarkError: As `mean_recall`, or one system has more runs than the other.
    """
    if len(ours) != len(theirs):
        raise BenchmarkError(
            f"{len(ours)} runs cannot be paired with {len(theirs)}: give both the same seeds"
        )
    _check([*ours, *theirs], clusters)

    def difference(times: Floats) -> Floats:
        return _recalls(ours, times) - _recalls(theirs, times)

    once, spread = bootstrapped(difference, clusters, resamples=resamples, seed=seed)
    return _summary(list(ours[0]), once, spread)


def _check(runs: Sequence[Run], clusters: Ints) -> None:
    if not runs or not runs[0]:
        raise BenchmarkError("no run or no attribute to take the mean of: give at least one")
    first = runs[0]
    for run in runs:
        if list(run) != list(first):
            raise BenchmarkError(
                f"runs of {list(first)} and of {list(run)}: give runs of the same attributes"
            )
        for name, predictions in run.items():
            if len(predictions.gold) != len(clusters):
                raise BenchmarkError(
                    f"{name!r} has {len(predictions.gold)} samples for {len(clusters)} titles: "
                    "give all runs the same samples"
                )
            if not np.array_equal(predictions.gold, first[name].gold):
                raise BenchmarkError(
                    f"{name!r} has other gold values in one run than in another: give all runs "
                    "the same samples"
                )
            if not predictions.known.any():
                raise BenchmarkError(f"{name!r} is known of no sample: leave it out")


def _recalls(runs: Sequence[Run], times: Floats) -> Floats:
    """R@P90, float64 [r, runs, attributes]; 0 where a resample has no sample whose value is
    known."""
    found = np.empty((len(times), len(runs), len(runs[0])))
    for place, name in enumerate(runs[0]):
        known = runs[0][name].known
        own = times[:, known]
        total = np.maximum(own.sum(axis=1), 1)
        for number, run in enumerate(runs):
            predictions = run[name][known]
            right = right_at_precision(predictions.confidence, predictions.right, own)
            found[:, number, place] = right / total
    return found


def _summary(names: Sequence[str], once: Floats, spread: Floats) -> MeanRecall:
    """Of figures [runs, attributes] and those of resamples, [r, runs, attributes]."""
    [mean] = intervals(once.mean(keepdims=True)[0], spread.mean(axis=(1, 2))[:, np.newaxis])
    each = intervals(once.mean(axis=0), spread.mean(axis=1))
    runs = tuple(float(value) for value in once.mean(axis=1))
    return MeanRecall(mean, dict(zip(names, each, strict=True)), runs)
