"""Fashion by normalised title in four parts, and nested parts of what is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.labels import suggest
from indexing.catalog import read_catalog
from indexing.titles import normalise_title, position
from training.attributes.data import raw_value, read_products
from training.categories.data import Examples, make_examples
from training.data import Pairs

LABEL = "article_type"
SEED = 3  # of the split
# Where the parts end, as in the paper: 50% without labels, 30% train, 10% dev, 10% test.
ENDS = (0.5, 0.8, 0.9, 1.0)
HEAD = 0.8  # of the training products are of the categories of the head

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Data:
    """The parts; no title is in two.

    Attributes:
        unlabelled: To adapt to.
        head: bool [categories], the most frequent ones in `train`, that hold HEAD of it.
    """

    categories: tuple[str, ...]
    unlabelled: Pairs
    train: Examples
    validation: Examples
    test: Examples
    head: Bools

    @property
    def clusters(self) -> Ints:
        """The title of each test product, by number."""
        numbers: dict[str, int] = {}
        titles = map(normalise_title, self.test.pairs.titles)
        return np.array([numbers.setdefault(title, len(numbers)) for title in titles], np.int64)

    def part(self, percent: int, seed: int) -> Examples:
        """About so many percent of the titles to train on; smaller parts are in larger ones."""
        places = [position(title, _OWN + seed) for title in self.train.pairs.titles]
        return self.train.take(np.flatnonzero(np.array(places) < percent / 100))

    def checked(self, most: int) -> Examples:
        """At most so many products of validation, drawn by a fixed seed."""
        return self.validation.take(some_rows(len(self.validation), most))


_OWN = 1000  # added to the seed of parts: other draws than those of the split


@lru_cache(maxsize=1)
def read_data(folder: Path) -> Data:
    """`folder`/fashion."""
    products = read_products([read_catalog(folder / "fashion" / "catalog.csv")], [LABEL])
    labels = suggest({LABEL: [raw_value(product, LABEL) for product in products]}, least=1)
    categories = labels.values(LABEL)
    examples = make_examples(products, labels, LABEL, categories)
    places = np.array([position(title, SEED) for title in examples.pairs.titles])
    parts = np.searchsorted(ENDS, places, side="right")
    unlabelled, train, validation, test = (
        examples.take(np.flatnonzero(parts == part)) for part in range(len(ENDS))
    )
    head = head_of(np.bincount(train.labels, minlength=len(categories)))
    return Data(categories, unlabelled.pairs, train, validation, test, head)


def head_of(counts: Sequence[int] | Ints) -> Bools:
    """Which categories are the most frequent ones that together hold HEAD of the products."""
    own = np.asarray(counts)
    order = np.argsort(-own, kind="stable")
    before = np.cumsum(own[order]) - own[order]
    head = np.zeros(len(own), bool)
    head[order[before < HEAD * own.sum()]] = True
    return head


def some_rows(count: int, most: int) -> Ints:
    """At most `most` of so many rows, drawn by a fixed seed, in order."""
    rows: Ints = np.sort(np.random.default_rng(0).permutation(count)[:most])
    return rows
