"""From which confidence on predictions are precise enough, and how many of all that finds.

Predictions of equal confidence are accepted or refused together: no threshold lies between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexing.match import threshold

PRECISION = 0.90  # of the predictions that are accepted

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RecallAtPrecision:
    """The most that can be found at PRECISION.

    Attributes:
        recall: Right predictions that are accepted, of all samples.
        threshold: The confidence from which predictions are accepted, the highest that has this
            recall; None where none has the precision, and the recall is 0.
        precision: Right ones of those that are accepted; None likewise.
        coverage: Predictions that are accepted, of all samples.
    """

    recall: float
    threshold: float | None
    precision: float | None
    coverage: float


def sure_threshold(confidences: NDArray[np.floating], right: Bools) -> float | None:
    """The lowest confidence from which predictions are surely right in PRECISION of the cases:
    Wilson's lower bound (1927, 95% two-sided) is not below it. None where none is.

    No fewer than 35 accepted predictions, all of them right, can have that bound.

    Args:
        confidences: float [n].
        right: bool [n].
    """
    if not len(confidences):
        return None
    each = np.arange(len(confidences))
    return threshold(confidences.astype(np.float64), right, each, precision=PRECISION)


def recall_at_precision(confidences: NDArray[np.floating], right: Bools) -> RecallAtPrecision:
    """The highest share of the samples that one threshold accepts and that are right, among the
    thresholds whose accepted predictions are right in PRECISION of the cases (R@P90).

    Chosen on the samples that it is measured on, it is optimistic.

    Args:
        confidences: float [n].
        right: bool [n], whether the prediction is.
    """
    if not len(confidences):
        return RecallAtPrecision(0.0, None, None, 0.0)
    order, ends = _blocks(confidences)
    found, accepted = np.cumsum(right[order])[ends], ends + 1
    allowed = np.where(found >= PRECISION * accepted, found, 0)
    best = int(allowed.argmax())  # the first: of thresholds that find the same, the highest
    if not allowed[best]:
        return RecallAtPrecision(0.0, None, None, 0.0)
    count, right_ones = int(accepted[best]), int(found[best])
    return RecallAtPrecision(
        recall=right_ones / len(right),
        threshold=float(confidences[order[ends[best]]]),
        precision=right_ones / count,
        coverage=count / len(right),
    )


def right_at_precision(confidences: NDArray[np.floating], right: Bools, times: Floats) -> Floats:
    """The most right predictions that a threshold accepts with PRECISION, in each resample;
    float64 [r].

    Args:
        confidences: float [n].
        right: bool [n].
        times: float64 [r, n], how often each sample is in each resample.
    """
    if not len(confidences):
        return np.zeros(len(times))
    order, ends = _blocks(confidences)
    drawn = times[:, order]
    accepted = np.cumsum(drawn, axis=1)[:, ends]
    found = np.cumsum(drawn * right[order], axis=1)[:, ends]
    most: Floats = np.where(found >= PRECISION * accepted, found, 0).max(axis=1)
    return most


def _blocks(confidences: NDArray[np.floating]) -> tuple[Ints, Ints]:
    """The rows, surest first, and the places in them where blocks of equal confidence end."""
    order = np.argsort(-confidences, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(confidences[order]) != 0, True))
