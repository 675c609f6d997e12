"""How far the probabilities of an attribute can be trusted, from samples not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.precision import sure_threshold
from indexing.attributes.vocabulary import Calibration, Classes, Floats
from indexing.errors import TrainingError

COLDEST, HOTTEST = 0.05, 20.0
LEAST = 30  # samples that a temperature is fitted on
_HALVINGS = 60

_Doubles = NDArray[np.float64]


def calibrate(logits: Floats, labels: Classes, values: Sequence[str]) -> Calibration:
    """The temperature, and the thresholds at it, of one attribute and one kind of input.

    A threshold, for all classes together or for the predictions of one class, needs 35 samples
    or more, see `sure_threshold`: of fewer there is None. A temperature needs LEAST samples
    whose value is known: of fewer it is 1, as a few that are all right would make any
    prediction look certain.

    Args:
        logits: float32 [n, classes], of samples not trained on.
        labels: int64 [n], the class of each; negative where it is unknown.
        values: The classes.

    Raises:
        TrainingError: The logits are not finite, or they or the labels are of other classes.
    """
    if logits.shape != (len(labels), len(values)) or labels.max(initial=-1) >= len(values):
        raise TrainingError(
            f"logits {list(logits.shape)} and labels up to {labels.max(initial=-1)} do not fit "
            f"{len(labels)} samples of {len(values)} values: calibrate with the model's own values"
        )
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the classifier cannot be calibrated: its logits are not finite numbers; lower the "
            "learning rate"
        )
    known = labels >= 0
    logits, labels = logits[known], labels[known]
    temperature = best_temperature(logits, labels) if len(labels) >= LEAST else 1.0
    chances = probabilities(logits, temperature)
    predicted, confidence = chances.argmax(axis=1), chances.max(axis=1, initial=0)
    right = predicted == labels
    return Calibration(
        temperature=temperature,
        threshold=sure_threshold(confidence, right),
        classes=tuple(
            sure_threshold(confidence[predicted == each], right[predicted == each])
            for each in range(len(values))
        ),
    )


def best_temperature(logits: Floats, labels: Classes) -> float:
    """The temperature in COLDEST .. HOTTEST at which the labels are likeliest (Guo et al. 2017,
    section 4.2); one of the two ends if the likelihood still grows there.

    The negative log-likelihood is convex in 1 / T, so halving finds where its slope is 0.

    Args:
        logits: float32 [n >= 1, classes].
        labels: int64 [n], none unknown.
    """
    centred = logits.astype(np.float64)
    centred -= centred[np.arange(len(labels)), labels][:, np.newaxis]  # 0 at the label
    low, high = np.log(COLDEST), np.log(HOTTEST)
    if _slope(centred, 1 / COLDEST) <= 0:
        return COLDEST
    if _slope(centred, 1 / HOTTEST) >= 0:
        return HOTTEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _slope(centred, float(np.exp(-middle))) > 0:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def probabilities(logits: Floats, temperature: float) -> Floats:
    """softmax(logits / temperature), float32 [n, classes].

    Rounded to float32 as the classifier's own are, so that what is equal there is equal here.
    """
    return _softmax(logits.astype(np.float64) / temperature).astype(np.float32)


def _slope(centred: _Doubles, inverse: float) -> float:
    """Of the negative log-likelihood in the inverse of the temperature: how far the logits that
    are expected lie above those of the labels."""
    return float((_softmax(centred * inverse) * centred).sum() / len(centred))


def _softmax(logits: _Doubles) -> _Doubles:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: _Doubles = powers / powers.sum(axis=1, keepdims=True)
    return shares
