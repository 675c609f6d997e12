"""Means over seeds, and paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.pruning.runs import Result
from benchmarks.statistics import Interval

# The 97.5% quantiles of Student's t by degrees of freedom, and of the normal distribution.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_NORMAL = 1.959964


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of independent values, with Student's 95% interval; NaN bounds for one value.

    Args:
        values: at least one.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    half = _quantile(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def _quantile(freedom: int) -> float:
    """Beyond the table by Cornish-Fisher (Abramowitz and Stegun 26.7.5), right to 0.001."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = _NORMAL
    first = (z**3 + z) / 4 / freedom
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
    return z + first + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / freedom**3


def values_of(results: Sequence[Result], arm: str, measure: str) -> dict[int, float]:
    """The measure of each seed that has it."""
    return {r["seed"]: r[measure] for r in results if r["arm"] == arm and measure in r}


def difference(results: Sequence[Result], arm: str, other: str, measure: str) -> Interval | None:
    """What an arm has over another on the same seeds; None without a seed in common."""
    ours, theirs = values_of(results, arm, measure), values_of(results, other, measure)
    seeds = sorted(ours.keys() & theirs.keys())
    return t_interval([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None
