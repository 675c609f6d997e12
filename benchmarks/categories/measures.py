"""How good categories are, and what one way to train has over another on the same titles.

accuracy   right predictions of all
macro-F1   mean of 2 TP / (predicted + gold) over the categories that occur in the test set
head, tail the same over the most frequent categories that hold 80% of the products to train
           on, and over the others

A way to train is several runs, one for each seed. Its figures are means over them. Intervals
are over test titles, which are drawn for all runs at once (what runs share cancels out), and
over seeds by Student's t.

Resamples lack some of the rare categories, which are the hard ones, so that macro-F1 lies higher
there than on the whole. Intervals over titles are moved by how far that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.attributes.measures import Floats, Ints, Predictions, macro_f1
from benchmarks.categories.data import Data
from benchmarks.pruning.paired import t_interval
from benchmarks.statistics import RESAMPLES, Interval, bootstrapped, intervals

MEASURES = ("accuracy", "macro-F1", "head", "tail")


@dataclass(frozen=True)
class Figure:
    """A measure, or a difference of it, mean over seeds: with its interval over titles, and
    over seeds."""

    titles: Interval
    seeds: Interval


def figures(
    ours: Sequence[Ints],
    theirs: Sequence[Ints] | None,
    data: Data,
    *,
    resamples: int = RESAMPLES,
) -> dict[str, Figure]:
    """The MEASURES of some runs, or what they have over others of the same seeds.

    Args:
        ours, theirs: Of each run what it says of the test products, int64 [n].
    """

    def of(runs: Sequence[Ints], times: Floats) -> Floats:
        return np.stack([measured(run, data, times) for run in runs], axis=1)

    def difference(times: Floats) -> Floats:
        return of(ours, times) - (0.0 if theirs is None else of(theirs, times))

    # [seeds, measures], and [resamples, seeds, measures]
    once, spread = bootstrapped(difference, data.clusters, resamples=resamples)
    mean, resampled = once.mean(axis=0), spread.mean(axis=1)
    over_titles = intervals(mean, resampled - resampled.mean(axis=0) + mean)
    return {
        name: Figure(over_titles[place], t_interval(once[:, place].tolist()))
        for place, name in enumerate(MEASURES)
    }


def measured(predicted: Ints, data: Data, times: Floats) -> Floats:
    """The MEASURES of one run, float64 [r, 4].

    Args:
        predicted: int64 [n], of the test products.
        times: float64 [r, n], how often each of them is in each resample.
    """
    gold, head = data.test.labels, data.head
    own = Predictions(gold, predicted, np.ones(len(gold)), len(data.categories))
    accuracy = times @ own.right.astype(np.float64) / times.sum(axis=1)
    groups = np.stack([np.ones_like(head), head, ~head], axis=1)
    return np.column_stack([accuracy, macro_f1(own, times, groups)])
