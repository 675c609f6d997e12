"""Catalogs to examples: a picture, a title, and the classes of the attributes that are known."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.labels import Labels, read_labels, suggest
from indexing.attributes.words import Words
from indexing.catalog.product import Product, ProductImage
from indexing.errors import TrainingError
from indexing.titles import position

UNKNOWN = -100  # a label that counts for nothing
_FIELDS = ("brand", "category", "availability")  # of a product, that may be attributes, too

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Products to learn from or to measure on.

    Attributes:
        pictures: Main pictures.
        titles: As the merchant writes them.
        stripped: The titles without the words that name a value of an attribute.
        labels: int64 [n, attributes], classes; UNKNOWN where the merchant does not say.
        products: The merchants' ids.
    """

    pictures: list[ProductImage]
    titles: list[str]
    stripped: list[str]
    labels: Ints
    products: list[str]

    def __len__(self) -> int:
        return len(self.titles)

    def take(self, rows: Sequence[int] | Ints) -> Examples:
        """The examples of these rows, in this order."""
        return Examples(
            [self.pictures[row] for row in rows],
            [self.titles[row] for row in rows],
            [self.stripped[row] for row in rows],
            self.labels[np.asarray(rows, np.int64)],
            [self.products[row] for row in rows],
        )


def read_products(
    catalogs: Iterable[Iterable[Product]], attributes: Sequence[str], *, unlabelled: bool = False
) -> list[Product]:
    """The products that have one of the attributes.

    Args:
        unlabelled: Also those that have none.

    Raises:
        TrainingError: There is no product, or none has one of them; names those that there are.
    """
    known: Counter[str] = Counter()
    found: list[Product] = []
    seen = 0
    for catalog in catalogs:
        for product in catalog:
            seen += 1
            known.update(name for name in product.attributes if raw_value(product, name))
            known.update(name for name in _FIELDS if raw_value(product, name))
            if unlabelled or any(raw_value(product, name) for name in attributes):
                found.append(product)
    if not seen:
        raise TrainingError(
            "the catalogs have no product that can be used: `shoplens index` lists the reasons"
        )
    for name in attributes:
        if not known[name]:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            listed = ", ".join(sorted(known)) or "none"
            raise TrainingError(f"no product has the attribute {name!r}; {hint}there are {listed}")
    return found


def raw_value(product: Product, name: str) -> str:
    """What the merchant says of an attribute; blank where nothing."""
    own = product.attributes.get(name)
    return own or (str(getattr(product, name)) if name in _FIELDS else "")


def make_labels(
    products: Sequence[Product], attributes: Sequence[str], table: Path | None, least: int
) -> Labels:
    """The table that people have edited; where there is none, one in which values of fewer than
    `least` products become OTHER.

    Raises:
        TrainingError: As `read_labels` and `suggest`, or an attribute has fewer than two values.
    """
    if table is None:
        raw = {name: [raw_value(product, name) for product in products] for name in attributes}
        return suggest(raw, least=least)
    labels = read_labels(table)
    for name in attributes:
        if len(labels.values(name)) < 2:
            raise TrainingError(
                f"{table} has fewer than two values of {name!r}: leave --labels out to have a "
                "table made, and edit that"
            )
    return labels


def make_examples(
    products: Sequence[Product], labels: Labels, attributes: Sequence[tuple[str, Sequence[str]]]
) -> Examples:
    """Examples of these products.

    Args:
        attributes: The names, each with its values in the order of the classes.
    """
    words = Words(labels.ways_of_writing())
    classes = np.full((len(products), len(attributes)), UNKNOWN, np.int64)
    for place, (name, values) in enumerate(attributes):
        number = {value: index for index, value in enumerate(values)}
        for row, product in enumerate(products):
            value = labels.value_of(name, raw_value(product, name))
            classes[row, place] = UNKNOWN if value is None else number.get(value, UNKNOWN)
    return Examples(
        [product.images[0] for product in products],
        [product.title for product in products],
        [words.without(product.title) for product in products],
        classes,
        [product.id for product in products],
    )


def split_examples(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Train and validation examples, no title on both sides.

    Raises:
        TrainingError: A side is empty.
    """
    held_out = np.array(
        [
            position(title or product, seed) < share
            for title, product in zip(examples.titles, examples.products, strict=True)
        ]
    )
    if held_out.all() or not held_out.any():
        raise TrainingError(
            f"{len(examples)} products cannot be split into train and validation with a "
            f"validation share of {share}: give more products"
        )
    return examples.take(np.flatnonzero(~held_out)), examples.take(np.flatnonzero(held_out))
