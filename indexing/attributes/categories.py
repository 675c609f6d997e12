"""A categoriser as an `AttributeClassifier` that reads titles alone.

Its label is the one attribute. A title that is blank has the shares of the categories in the
label table, and is never sure.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from indexing.attributes.labels import Labels
from indexing.attributes.vocabulary import Attribute, Calibration, Floats, Kind
from indexing.match_record import MODES
from indexing.models.protocol import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

    from indexing.models.categorizer.categorizer import Categorizer


class CategoryReader:
    """Reads the category of a product off its title."""

    kind: Kind = "categories"
    image_size = 0

    def __init__(self, categorizer: Categorizer, labels: Labels) -> None:
        """`labels`: what each of the merchant's own values counts as."""
        self.name = categorizer.name
        self.trained_on = categorizer.config.trained_on
        self._categorizer = categorizer
        self._labels = labels
        categories = categorizer.categories
        silent = Calibration(classes=(None,) * len(categories))
        sure = Calibration(
            threshold=categorizer.threshold, classes=(categorizer.threshold,) * len(categories)
        )
        self.attributes = (
            Attribute(
                name=categorizer.label,
                values=categories,
                prior=_shares(categorizer.label, categories, labels),
                calibration={mode: silent if mode == "image" else sure for mode in MODES},
            ),
        )

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._categorizer.fingerprint.encode())
        digest.update(repr(self._labels.rows).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def value_of(self, name: str, raw: str) -> str | None:
        return self._labels.value_of(name, raw)

    def ways_of_writing(self) -> dict[str, list[tuple[str, str]]]:
        return self._labels.ways_of_writing()

    def preprocess(self, picture: Image) -> Pixels:
        raise NotImplementedError("categories are read off titles alone")

    def predict(self, pixels: Pixels | None, titles: Sequence[str] | None) -> dict[str, Floats]:
        if titles is None:
            titles = [""] * (0 if pixels is None else len(pixels))
        [attribute] = self.attributes
        found = np.tile(np.array(attribute.prior, np.float32), (len(titles), 1))
        written = [row for row, title in enumerate(titles) if title.strip()]
        if written:
            found[written] = self._categorizer.probabilities([titles[row] for row in written])
        return {attribute.name: found}


def _shares(label: str, categories: Sequence[str], labels: Labels) -> tuple[float, ...]:
    """How frequent the categories are by the table; all alike where it does not say."""
    counts: Counter[str] = Counter()
    for row in labels.rows:
        if row.attribute == label:
            counts[row.value] += row.count
    total = sum(counts[category] for category in categories)
    if not total:
        return (1 / len(categories),) * len(categories)
    return tuple(counts[category] / total for category in categories)
