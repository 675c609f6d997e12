"""Repeated timings in three numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements and their range."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest and largest of at least one value."""
    return Spread(float(np.median(values)), float(min(values)), float(max(values)))


def speed_up(ours: Sequence[float], plain: Sequence[float]) -> Spread:
    """How many times faster ours is, from seconds of measurements that took turns.

    Each pair ours[i], plain[i] gives a ratio plain/ours of its own: what slowed the machine
    for a while slowed both. Raises ValueError for sequences of unequal length.
    """
    return spread([theirs / own for own, theirs in zip(ours, plain, strict=True)])
