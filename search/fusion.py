"""Products in the order of their pictures' scores: the best one, or the two best together.

For `top2` a lone picture counts as it is, though it has no second one that lowers its mean. By
`max` alone a product with many pictures has many chances and one with a lone picture has one;
this gives back a part of that and no more (`python -m benchmarks.answers` measures it).
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from indexing.errors import QueryError
from indexing.store import OpenIndex
from indexing.vectors import inner_products
from search.neighbours import Neighbours

Fuse = Literal["max", "top2"]

Ints = NDArray[np.int64]


class Candidate(NamedTuple):
    """A product on its way into an answer."""

    product: int  # its row
    picture: int  # the row of its best picture
    score: float  # cosine of query and that picture
    value: float  # what it is ordered by
    duplicates: tuple[int, ...] = ()  # products that it stands for


class PicturesOf:
    """Which pictures each product has."""

    def __init__(self, owners: Ints) -> None:
        """Takes the product of each picture, int64 [n]."""
        self._owners = owners

    @cached_property
    def _order(self) -> Ints:
        return np.argsort(self._owners, kind="stable")

    @cached_property
    def _sorted(self) -> Ints:
        return self._owners[self._order]

    def __call__(self, products: Ints) -> tuple[Ints, Ints]:
        """The rows of all pictures of these products, product by product, and for each of
        them which of the products it belongs to: int64 [m] both."""
        starts = np.searchsorted(self._sorted, products, "left")
        counts = np.searchsorted(self._sorted, products, "right") - starts
        place = np.repeat(np.arange(len(products)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._order[starts[place] + within], place


class Fusion:
    """The products of a query, best first, as many as somebody asks for."""

    def __init__(
        self, index: OpenIndex, near: Neighbours, pictures_of: PicturesOf, fuse: Fuse
    ) -> None:
        """Raises QueryError for a `fuse` that is none."""
        if fuse not in get_args(Fuse):
            raise QueryError(f"fuse is {fuse!r}: must be {' or '.join(get_args(Fuse))}")
        self._index = index
        self._near = near
        self._pictures_of = pictures_of
        self._fuse = fuse

    def first(self, products: int) -> list[Candidate]:
        """The best products; fewer only where there are fewer."""
        return self._by_best(products) if self._fuse == "max" else self._by_two(products)

    def _by_best(self, products: int) -> list[Candidate]:
        near = self._near
        places = near.first_of_each(products)
        owners = self._index.images.product[near.rows[places]]
        return [
            Candidate(int(owner), int(near.rows[place]), float(near.scores[place]),
                      float(near.scores[place]))
            for owner, place in zip(owners, places, strict=True)
        ]  # fmt: skip

    def _by_two(self, products: int) -> list[Candidate]:
        """As in Fagin's threshold algorithm: no product that was not seen yet can have more
        than the last score that was."""
        near = self._near
        near.fetch(2 * products)
        while True:
            owners = self._index.images.product[near.rows]
            seen, first = np.unique(owners, return_index=True)
            best = near.scores[first].astype(np.float64)
            second = self._second(seen)
            values = np.where(np.isnan(second), best, (best + second) / 2)
            order = np.lexsort((seen, -values))
            sure = len(order)
            if not near.complete:
                sure = int(np.count_nonzero(values > near.scores[-1]))
            if near.complete or sure >= products:
                return [
                    Candidate(int(seen[i]), int(near.rows[first[i]]), float(best[i]),
                              float(values[i]))
                    for i in order[: min(sure, products)]
                ]  # fmt: skip
            near.fetch_more()

    def _second(self, products: Ints) -> NDArray[np.float64]:
        """The second-best score of each product's pictures, NaN where it has but one."""
        rows, place = self._pictures_of(products)
        if self._near.allowed is not None:
            kept = self._near.allowed[rows]
            rows, place = rows[kept], place[kept]
        scores = inner_products(self._near.query[np.newaxis], self._index.vectors[rows])
        order = np.lexsort((-scores, place))
        seconds = np.full(len(products), np.nan)
        places = place[order]
        starts = np.searchsorted(places, np.arange(len(products)))
        several = np.bincount(places, minlength=len(products)) > 1
        seconds[several] = scores[order][starts[several] + 1]
        return seconds
