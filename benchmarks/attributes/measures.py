"""How good the predictions of an attribute are, with 95% intervals over titles.

R@P90         the most that a threshold finds of all samples, among thresholds whose accepted
              predictions are right in 90% of the cases; chosen on the test set, so optimistic
by class      the same with a threshold for the predictions of each class
held          precision and recall on the test set at thresholds chosen on validation
accuracy      right predictions of all
macro-F1      mean of 2 TP / (predicted + gold) over the classes that occur in gold
ECE           expected calibration error (Guo et al. 2017, equation 3): with 15 bins of equal
              width over (0, 1], each closed above, the sum over bins of
              (samples / all) * |share right - mean confidence|
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.statistics import RESAMPLES, Interval, bootstrapped, intervals
from indexing.attributes.precision import recall_at_precision, right_at_precision
from indexing.attributes.vocabulary import Calibration
from indexing.errors import BenchmarkError

BINS = 15
COLUMNS = (
    "attribute", "samples", "classes", "R@P90", "threshold", "coverage", "R@P90 by class",
    "held P", "held R", "held P by class", "held R by class", "accuracy", "macro-F1", "ECE",
)  # fmt: skip

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of one attribute of the samples of a test set.

    Attributes:
        gold: int64 [n], the class of each; negative where it is unknown.
        predicted: int64 [n], the most probable class.
        confidence: float64 [n], its probability.
        classes: How many there are.
    """

    gold: Ints
    predicted: Ints
    confidence: Floats
    classes: int

    @classmethod
    def of(cls, probabilities: NDArray[np.floating], labels: Ints) -> Predictions:
        """Of calibrated probabilities, float [n, classes], and labels, int64 [n] (negative where
        unknown)."""
        best = probabilities.argmax(axis=1).astype(np.int64)
        confidence = probabilities.max(axis=1).astype(np.float64)
        return cls(labels, best, confidence, probabilities.shape[1])

    @property
    def known(self) -> Bools:
        """Where gold is known; only these samples are measured."""
        return self.gold >= 0

    @property
    def right(self) -> Bools:
        """Where gold is what is predicted."""
        return np.equal(self.predicted, self.gold)

    def __getitem__(self, rows: Bools) -> Predictions:
        """Of some samples."""
        gold, predicted = self.gold[rows], self.predicted[rows]
        return Predictions(gold, predicted, self.confidence[rows], self.classes)


@dataclass(frozen=True)
class Held:
    """Predictions at or above thresholds that were chosen on other samples.

    Attributes:
        precision: Right ones of those that are accepted; None where none is. Its interval is
            over the resamples that accept some.
        recall: Right and accepted ones of all samples.
        coverage: Accepted ones of all samples.
    """

    precision: Interval | None
    recall: Interval
    coverage: float


@dataclass(frozen=True)
class AttributeMeasures:
    """The measures of one attribute, as defined above.

    Attributes:
        samples: Those whose value is known.
        classes: Those that occur in gold.
        recall: R@P90.
        threshold: The confidence at which it is reached; None where none has the precision.
        coverage: Samples at or above it, of all.
        class_recall, class_coverage: With a threshold for each class.
        held, held_class: At one threshold, and at those of the classes, chosen on validation;
            None where no calibration was given.
        calibration_error: ECE. It has no interval: chance only adds to it, so that resamples
            lie above it.
    """

    attribute: str
    samples: int
    classes: int
    recall: Interval
    threshold: float | None
    coverage: float
    class_recall: Interval
    class_coverage: float
    held: Held | None
    held_class: Held | None
    accuracy: Interval
    macro_f1: Interval
    calibration_error: float

    def row(self) -> tuple[str, ...]:
        """The cells of COLUMNS."""
        limit = "" if self.threshold is None else f"{self.threshold:.3f}"
        return (
            self.attribute, f"{self.samples:,}", str(self.classes),
            str(self.recall), limit, f"{self.coverage:.3f}", str(self.class_recall),
            *_cells(self.held), *_cells(self.held_class),
            str(self.accuracy), str(self.macro_f1), f"{self.calibration_error:.3f}",
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """All fields, as `json.dumps` takes them."""
        return asdict(self)


def measure(
    attribute: str,
    predictions: Predictions,
    clusters: Ints,
    calibration: Calibration | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> AttributeMeasures:
    """The measures of an attribute.

    Thresholds on the test set are chosen anew in each resample. As those hold fewer different
    samples, the choice is more optimistic there than on the whole: where classes are small, the
    interval of R@P90 by class lies high. What is held to has no such bias.

    Args:
        clusters: int64 [n], the title of each sample. Samples of one title stand or fall
            together, so titles are drawn, not samples.
        calibration: Of validation, with the thresholds that are held to; a threshold that is
            None accepts nothing.

    Raises:
        BenchmarkError: The value of no sample is known.
    """
    known = predictions.known
    if not known.any():
        raise BenchmarkError(f"{attribute!r} is known of no sample: give samples that have it")
    own = predictions[known]
    accepted = _accepted(own, calibration)
    point, spread = bootstrapped(
        partial(_figures, own, accepted), clusters[known], resamples=resamples, seed=seed
    )
    recall, class_recall, accuracy, f1 = intervals(point[:4], spread[:, :4])
    best = recall_at_precision(own.confidence, own.right)
    held = [
        _held(point[place : place + 2], spread[:, place : place + 2], float(rows.mean()))
        for place, rows in zip((4, 6), accepted, strict=False)
    ]
    return AttributeMeasures(
        attribute=attribute,
        samples=len(own.gold),
        classes=len(np.unique(own.gold)),
        recall=recall,
        threshold=best.threshold,
        coverage=best.coverage,
        class_recall=class_recall,
        class_coverage=_class_coverage(own),
        held=held[0] if held else None,
        held_class=held[1] if held else None,
        accuracy=accuracy,
        macro_f1=f1,
        calibration_error=calibration_error(own.confidence, own.right),
    )


def calibration_error(confidence: Floats, right: Bools) -> float:
    """ECE, see above.

    Args:
        confidence: float64 [n >= 1], each above 0 and at most 1.
        right: bool [n].
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))


def macro_f1(own: Predictions, times: Floats, groups: Bools | None = None) -> Floats:
    """Mean F1 over the classes that occur in gold, of each resample, float64 [r]; with `groups`
    over the classes of each group, float64 [r, g].

    Args:
        own: Of samples whose value is known.
        times: float64 [r, n], how often each sample is in each resample.
        groups: bool [classes, g], which classes are in which group.
    """
    each = np.arange(own.classes)
    gold, predicted = own.gold[:, np.newaxis] == each, own.predicted[:, np.newaxis] == each
    hits = times @ (gold & predicted).astype(np.float64)
    golds = times @ gold.astype(np.float64)
    both = golds + times @ predicted.astype(np.float64)
    within = np.ones((own.classes, 1)) if groups is None else groups.astype(np.float64)
    occur = (golds > 0) @ within
    # A class that is not in gold has no hits.
    means: Floats = (2 * hits / np.maximum(both, 1)) @ within / np.maximum(occur, 1)
    return means[:, 0] if groups is None else means


def _figures(own: Predictions, accepted: list[Bools], times: Floats) -> Floats:
    """R@P90, that by class, accuracy, macro-F1, and precision and recall for each `accepted`, of
    each resample, float64 [r, 4 + 2 a]; the precision of nothing is nan."""
    total, right = times.sum(axis=1), own.right
    by_class = np.zeros(len(times))
    for each in np.unique(own.predicted):
        rows = own.predicted == each
        by_class += right_at_precision(own.confidence[rows], right[rows], times[:, rows])
    columns = [
        right_at_precision(own.confidence, right, times) / total,
        by_class / total,
        (times @ right.astype(np.float64)) / total,
        macro_f1(own, times),
    ]
    for rows in accepted:
        found, taken = times @ (rows & right).astype(np.float64), times @ rows.astype(np.float64)
        share = np.full(len(times), np.nan)
        columns += [np.divide(found, taken, out=share, where=taken > 0), found / total]
    return np.stack(columns, axis=1)


def _accepted(own: Predictions, calibration: Calibration | None) -> list[Bools]:
    """What one threshold accepts, and what those of the classes do."""
    if calibration is None:
        return []
    limits = np.array([np.inf if each is None else each for each in calibration.classes])
    one = np.inf if calibration.threshold is None else calibration.threshold
    return [own.confidence >= one, own.confidence >= limits[own.predicted]]


def _held(point: Floats, spread: Floats, coverage: float) -> Held:
    [recall] = intervals(point[1:], spread[:, 1:])
    some = spread[~np.isnan(spread[:, 0]), :1]
    precision = intervals(point[:1], some)[0] if coverage and len(some) else None
    return Held(precision, recall, coverage)


def _class_coverage(own: Predictions) -> float:
    counts = 0.0
    for each in np.unique(own.predicted):
        rows = own.predicted == each
        found = recall_at_precision(own.confidence[rows], own.right[rows])
        counts += found.coverage * int(rows.sum())
    return counts / len(own.gold)


def _cells(held: Held | None) -> tuple[str, str]:
    if held is None:
        return "", ""
    return "" if held.precision is None else str(held.precision), str(held.recall)
