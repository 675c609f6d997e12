"""The pictures nearest to a query, fetched from the index as far as somebody looks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexing.store import OpenIndex
from search.where import Mask

_LEAST = 20  # pictures; fetching them costs what fetching one does

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Neighbours:
    """The nearest pictures so far.

    Attributes:
        scores: float32 [n], cosines, best first.
        rows: int64 [n], of the pictures.
        complete: Whether these are all that may be answered.
    """

    def __init__(self, index: OpenIndex, query: Floats, allowed: Mask | None = None) -> None:
        """`query` is float32 [dim], `allowed` bool [pictures]; nothing is fetched yet."""
        self._index = index
        self.query = query
        self.allowed = allowed
        pictures = len(index.images) if allowed is None else int(np.count_nonzero(allowed))
        self._most = pictures
        self.scores: Floats = np.empty(0, np.float32)
        self.rows: Ints = np.empty(0, np.int64)
        self.complete = not pictures

    def fetch(self, pictures: int) -> None:
        """Fetch at least so many, or all there are."""
        wanted = min(max(pictures, _LEAST), self._most)
        if self.complete or pictures <= len(self.rows):
            return
        scores, rows = self._index.index.search(self.query[np.newaxis], wanted, self.allowed)
        found = rows[0] >= 0
        self.scores, self.rows = scores[0][found], rows[0][found]
        self.complete = wanted == self._most

    def fetch_more(self) -> None:
        """Fetch twice as many."""
        self.fetch(2 * max(1, len(self.rows)))

    def first_of_each(self, products: int) -> Ints:
        """The places, ascending, of the best pictures of the `products` best products."""
        self.fetch(2 * products)  # a product may take several of the places
        while True:
            owners = self._index.images.product[self.rows]
            firsts: Ints = np.sort(np.unique(owners, return_index=True)[1])[:products]
            if len(firsts) == products or self.complete:
                return firsts
            self.fetch_more()
