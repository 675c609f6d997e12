"""Catalogs to (picture, title) pairs, and pairs to train and validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexing.catalog.product import Product, ProductImage
from indexing.errors import TrainingError
from indexing.titles import normalise_title, position
from training.split import join


@dataclass(frozen=True)
class Pairs:
    """Pictures with their titles; pairs of the same key are positives of each other.

    `keys` is int64 [n]: one number for each normalised title, so that products which the
    shop calls the same are never taken for negatives. All pictures of a product have its
    title and hence its key. `products` are the merchants' ids, to name a pair in messages.

    Keys are not the units of `units`, by which pairs are split. For a split it is safe to
    join too much; for positives it is not. Two catalogs that number their rows have ids in
    common by chance, and a size chart or a placeholder is a picture of many products: as
    positives, a shoe would be taught to be a kettle. Nothing is lost, as each picture stays a
    positive of every title that a catalog gives it. Nor should linked pairs be negatives:
    those of one unit and two keys are for the `ignore` of a loss.
    """

    pictures: list[ProductImage]
    titles: list[str]
    keys: NDArray[np.int64]
    products: list[str]

    def __len__(self) -> int:
        return len(self.titles)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Pairs:
        """The pairs of these rows, in this order."""
        return Pairs(
            [self.pictures[row] for row in rows],
            [self.titles[row] for row in rows],
            self.keys[np.asarray(rows, np.int64)],
            [self.products[row] for row in rows],
        )


def read_pairs(catalogs: Iterable[Iterable[Product]]) -> Pairs:
    """Every picture of every product that has a title.

    Raises:
        TrainingError: No product has both.
    """
    pictures: list[ProductImage] = []
    titles: list[str] = []
    keys: list[int] = []
    products: list[str] = []
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
                products.append(product.id)
    if not titles:
        raise TrainingError("nothing to train on: no product has both a title and a picture")
    return Pairs(pictures, titles, np.array(keys, np.int64), products)


def units(pairs: Pairs) -> tuple[NDArray[np.int64], list[str]]:
    """What must not be torn apart: pairs linked by normalised title, product id or picture.

    Pictures are the same where they are one file, or one URL.

    Returns:
        The number of each pair's unit, int64 [n]; and the name of each unit, the smallest of
        its normalised titles.
    """
    marks = [
        ((0, normalise_title(title)), (1, product), (2, str(picture.path or picture.location)))
        for picture, title, product in zip(
            pairs.pictures, pairs.titles, pairs.products, strict=True
        )
    ]
    names: dict[str, int] = {}
    numbers = [names.setdefault(name, len(names)) for _, name in join(marks)]
    return np.array(numbers, np.int64), list(names)


def split_pairs(pairs: Pairs, validation_share: float, seed: int) -> tuple[Pairs, Pairs]:
    """Train and validation pairs; a unit (see `units`) is on one side as a whole.

    A unit's side depends on its name and the seed, not on the order of pairs or on the other
    units. The share is that of the units, and of the pairs on average over seeds.

    Raises:
        TrainingError: A side is empty.
    """
    numbers, names = units(pairs)
    held_out = np.array([position(name, seed) < validation_share for name in names])[numbers]
    if held_out.all() or not held_out.any():
        raise TrainingError(
            f"{len(names)} groups of products (linked by title, id or picture) cannot be split "
            f"into train and validation with a validation share of {validation_share}: "
            "give more products"
        )
    return pairs.take(np.flatnonzero(~held_out)), pairs.take(np.flatnonzero(held_out))
