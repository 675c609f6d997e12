"""From a query's pictures to the products that are worth showing, in order.

nearest pictures -> products (fusion.py) -> without near-duplicates -> diverse (diversity.py)
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from indexing.near import NearDuplicates, main_pictures
from indexing.store import OpenIndex
from search.fusion import Candidate, Fuse, Fusion, PicturesOf
from search.neighbours import Neighbours
from search.where import Mask


class Ranker:
    """Ranks the products of one opened index; any number of threads may use it."""

    def __init__(self, index: OpenIndex) -> None:
        self._index = index

    @cached_property
    def pictures_of(self) -> PicturesOf:
        """Which pictures each product has."""
        return PicturesOf(self._index.images.product)

    @cached_property
    def _near(self) -> NearDuplicates:
        images = self._index.images
        mains = main_pictures(images.product, images.main, len(self._index.products))
        return NearDuplicates(mains, self._index.vectors, images.phash)

    def ranked(
        self, near: Neighbours, products: int, *, fuse: Fuse = "max", collapse: bool = False
    ) -> list[Candidate]:
        """The best products, fewer only where fewer match.

        With `collapse` a product takes its near-duplicates out of the list and stands for them
        (`Candidate.duplicates`): those that match and that no better product stands for, in
        catalog order, however far down they would come. So the first products are the same
        whatever number is asked for.
        """
        fusion = Fusion(self._index, near, self.pictures_of, fuse)
        if not collapse:
            return fusion.first(products)
        matching = self._matching(near.allowed)
        shown: list[Candidate] = []
        taken: set[int] = set()
        seen, asked = 0, 2 * products
        while True:
            found = fusion.first(asked)
            for candidate in found[seen:]:
                if candidate.product in taken:
                    continue
                if len(shown) == products:
                    return shown
                own = self._near.of(candidate.product).tolist()
                duplicates = tuple(p for p in own if p not in taken and matching[p])
                taken.update((candidate.product, *duplicates))
                shown.append(candidate._replace(duplicates=duplicates))
            if len(found) < asked:
                return shown
            seen, asked = len(found), 2 * asked

    def _matching(self, allowed: Mask | None) -> NDArray[np.bool_]:
        """bool [products]: which have a picture that may be answered."""
        owners = self._index.images.product
        matching = np.zeros(len(self._index.products), np.bool_)
        matching[owners if allowed is None else owners[allowed]] = True
        return matching
