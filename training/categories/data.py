"""Catalogs to titles with their categories, and products that have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.labels import Labels
from indexing.catalog.product import Product
from indexing.errors import TrainingError
from indexing.titles import normalise_title, position
from training.attributes.data import UNKNOWN, raw_value
from training.data import Pairs, read_pairs

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Products to learn from or to measure on.

    Attributes:
        pairs: Main pictures and titles.
        labels: int64 [n], classes; UNKNOWN where the merchant does not say.
    """

    pairs: Pairs
    labels: Ints

    def __len__(self) -> int:
        return len(self.pairs)

    def take(self, rows: Sequence[int] | Ints) -> Examples:
        """The examples of these rows, in this order."""
        return Examples(self.pairs.take(rows), self.labels[np.asarray(rows, np.int64)])

    def labelled(self) -> Examples:
        """Those whose category is known."""
        return self.take(np.flatnonzero(self.labels != UNKNOWN))


def make_examples(
    products: Sequence[Product], labels: Labels, field: str, categories: Sequence[str]
) -> Examples:
    """Examples of the products that have a title.

    Args:
        categories: In the order of the classes.

    Raises:
        TrainingError: None has a title.
    """
    # As `read_pairs` does, so that each that is left makes one pair.
    titled = [product for product in products if normalise_title(product.title)]
    pairs = read_pairs(
        [[product.model_copy(update={"images": product.images[:1]}) for product in titled]]
    )
    number = {category: place for place, category in enumerate(categories)}
    values = [labels.value_of(field, raw_value(product, field)) for product in titled]
    classes = [UNKNOWN if value is None else number.get(value, UNKNOWN) for value in values]
    return Examples(pairs, np.array(classes, np.int64))


def split_examples(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Train and validation examples, no title on both sides.

    Raises:
        TrainingError: A side has no product whose category is known.
    """
    held_out = np.array([position(title, seed) < share for title in examples.pairs.titles])
    sides = (
        examples.take(np.flatnonzero(~held_out)),
        examples.take(np.flatnonzero(held_out)),
    )
    if not all(len(side.labelled()) for side in sides):
        raise TrainingError(
            f"{len(examples.labelled())} titles of known category cannot be split into train and "
            f"validation with a validation share of {share}: give more products"
        )
    return sides


def with_titles(pairs: Pairs, titles: Sequence[str]) -> Pairs:
    """The pairs with other titles, and keys by those: what reads alike is no negative. A title
    of which nothing is left stays as it was."""
    shown = [
        new if normalise_title(new) else old for old, new in zip(pairs.titles, titles, strict=True)
    ]
    numbers: dict[str, int] = {}
    keys = [numbers.setdefault(normalise_title(title), len(numbers)) for title in shown]
    return Pairs(pairs.pictures, shown, np.array(keys, np.int64), pairs.products)
