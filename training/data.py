"""Catalogs to (picture, title) pairs, and pairs to train and validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexing.catalog.product import Product, ProductImage
from indexing.errors import TrainingError
from training.split import normalise_title, position


@dataclass(frozen=True)
class Pairs:
    """Pictures with their titles; pairs of the same key are positives of each other.

    `keys` is int64 [n]: one number for each normalised title, so that products which the
    shop calls the same are never taken for negatives.
    """

    pictures: list[ProductImage]
    titles: list[str]
    keys: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.titles)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Pairs:
        """The pairs of these rows, in this order."""
        return Pairs(
            [self.pictures[row] for row in rows],
            [self.titles[row] for row in rows],
            self.keys[np.asarray(rows, np.int64)],
        )


def read_pairs(catalogs: Iterable[Iterable[Product]]) -> Pairs:
    """Every picture of every product that has a title.

    Raises:
        TrainingError: No product has both.
    """
    pictures: list[ProductImage] = []
    titles: list[str] = []
    keys: list[int] = []
    numbers: dict[str, int] = {}
    for catalog in catalogs:
        for product in catalog:
            normal = normalise_title(product.title)
            if not normal:
                continue
            key = numbers.setdefault(normal, len(numbers))
            for image in product.images:
                pictures.append(image)
                titles.append(product.title)
                keys.append(key)
    if not titles:
        raise TrainingError("nothing to train on: no product has both a title and a picture")
    return Pairs(pictures, titles, np.array(keys, np.int64))


def split_pairs(pairs: Pairs, validation_share: float, seed: int) -> tuple[Pairs, Pairs]:
    """Train and validation pairs; all pairs of one normalised title are on one side.

    Raises:
        TrainingError: A side is empty.
    """
    places = {title: position(title, seed) for title in set(pairs.titles)}
    held_out = np.array([places[title] < validation_share for title in pairs.titles])
    if held_out.all() or not held_out.any():
        raise TrainingError(
            f"{len(places)} titles cannot be split into train and validation "
            f"with a validation share of {validation_share}: give more products"
        )
    return pairs.take(np.flatnonzero(~held_out)), pairs.take(np.flatnonzero(held_out))
