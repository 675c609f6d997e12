"""Several classifiers as one `Reader`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from indexing.attributes.vocabulary import Floats, Reader
from indexing.models.protocol import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image


class Joined:
    """A `Reader` of the attributes of all; no two have one of the same name, and at most one looks
    at pictures."""

    def __init__(self, classifiers: Sequence[Reader]) -> None:
        self._classifiers = classifiers
        self._eye = next((own for own in classifiers if own.image_size), None)
        self.attributes = tuple(a for own in classifiers for a in own.attributes)
        self.image_size = 0 if self._eye is None else self._eye.image_size

    def preprocess(self, picture: Image) -> Pixels:
        if self._eye is None:
            raise NotImplementedError("titles alone are read")
        return self._eye.preprocess(picture)

    def predict(self, pixels: Pixels | None, titles: Sequence[str] | None) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for own in self._classifiers:
            found |= own.predict(pixels, titles)
        return found
