"""What an attribute may be, and when a prediction of it is sure enough to be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from indexing.match_record import Mode
from indexing.models.protocol import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

OTHER = "other"  # the class of values that are too rare to learn
ABSTAINED = -1

# What reads products: attributes off pictures and titles, categories off titles alone. It is the
# option, too, that names its folder.
Kind = Literal["attributes", "categories"]
KINDS: tuple[Kind, ...] = ("attributes", "categories")

Floats = NDArray[np.float32]
Classes = NDArray[np.int64]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Calibration(_Frozen):
    """How far the probabilities of one attribute can be trusted, for one kind of input.

    Attributes:
        temperature: What logits are divided by (Guo et al. 2017).
        threshold: The lowest probability at which predictions of any class are right in 90% of
            the cases, by Wilson's lower bound on validation; None where none is.
        classes: The same for each class by itself.
    """

    temperature: Annotated[float, Field(gt=0)] = 1.0
    threshold: float | None = None
    classes: tuple[float | None, ...]


class Attribute(_Frozen):
    """An attribute that a classifier knows.

    Attributes:
        values: Its classes, in the order of the classifier's outputs; OTHER among them where
            rare values were put together.
        prior: The share of each class in training, adding up to 1.
        calibration: By kind of input.
    """

    name: str
    values: tuple[str, ...]
    prior: tuple[float, ...]
    calibration: dict[Mode, Calibration]

    def decide(self, probabilities: Floats, mode: Mode) -> Classes:
        """The class that is sure enough, int64 [n]; ABSTAINED where none is, or OTHER is.

        Args:
            probabilities: float32 [n, classes], calibrated.
        """
        best: Classes = probabilities.argmax(axis=1)
        limits = np.array(
            [
                np.inf if limit is None or value == OTHER else limit
                for limit, value in zip(self.calibration[mode].classes, self.values, strict=True)
            ]
        )
        sure = probabilities.max(axis=1) >= limits[best]
        return np.where(sure, best, ABSTAINED)


class Reader(Protocol):
    """Reads attributes off pictures and titles, or off titles alone."""

    @property
    def attributes(self) -> tuple[Attribute, ...]: ...

    @property
    def image_size(self) -> int:
        """Longest side in pixels of what the picture tower sees; 0 where titles alone are read,
        and nothing is preprocessed."""

    def preprocess(self, picture: Image) -> Pixels:
        """An RGB picture to float32 [3, image_size, image_size]; safe in threads."""

    def predict(self, pixels: Pixels | None, titles: Sequence[str] | None) -> dict[str, Floats]:
        """Calibrated probabilities, float32 [n, classes], of each attribute by name.

        Without titles by the picture alone, without pixels by the titles alone. A blank title
        counts as none. Probabilities are calibrated for what each row has, see `mode_of`.

        Args:
            pixels: float32 [n, 3, h, w].
            titles: n texts.
        """


class AttributeClassifier(Reader, Protocol):
    """One that was trained; `CmaClassifier` reads both, and `CategoryReader` titles alone."""

    @property
    def kind(self) -> Kind: ...

    @property
    def name(self) -> str:
        """The folder it was opened from."""

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over weights, vocabulary and calibration."""

    @property
    def trained_on(self) -> TrainedOn:
        """Which titles it was trained on."""

    def value_of(self, name: str, raw: str) -> str | None:
        """A merchant's own value as the value of an attribute, by the label table (OTHER for
        a rare or unknown one, also where that is no class of the attribute); None for a blank
        one and for one that means nothing."""

    def ways_of_writing(self) -> dict[str, list[tuple[str, str]]]:
        """For each attribute how its values are written, and the value that each means."""


class TrainedOn(_Frozen):
    """The split of a classifier's training: titles whose `indexing.titles.position` by `seed`
    is below `held_out` were not trained on."""

    held_out: float
    seed: int


def mode_of(picture: bool, title: str | None) -> Mode:
    """The kind of input that a row is. One with neither counts as a text."""
    if title is not None and title.strip():
        return "image+text" if picture else "text"
    return "image" if picture else "text"
