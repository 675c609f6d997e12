"""Near-duplicate products: those whose main pictures look the same in two ways at once.

The perceptual hash sees the layout and neither colour nor fine print; the embedding sees colour
and kind and not the layout. A reshot, resaved or slightly cropped picture passes both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexing.phash import distance
from indexing.segments import VectorRows

# Chosen by eye on the pairs of 5,000 Myntra products, with `builtin`: within these are reshots,
# resaved files and shades of one lipstick; at cosine .95 ties of another red come in, and of the
# pairs within 4 bits alone 99 of 100 are other clothes in the same pose.
MAX_BITS = 4  # of 64 in which the hashes may differ
MIN_COSINE = 0.96

Ints = NDArray[np.int64]


def main_pictures(owners: Ints, mains: NDArray[np.bool_], products: int) -> Ints:
    """The row of each product's main picture, or of its first, int64 [products]; -1 for none.

    Args:
        owners: int64 [n], the product of each picture.
        mains: bool [n], which pictures are their product's main one.
    """
    rows = np.full(products, -1, np.int64)
    backwards = np.arange(len(owners))[::-1]  # so that the first one is written last
    rows[owners[backwards]] = backwards
    main = mains[backwards]
    rows[owners[backwards[main]]] = backwards[main]
    return rows


class NearDuplicates:
    """Which products are near-duplicates of which."""

    def __init__(
        self,
        mains: Ints,
        vectors: VectorRows,
        hashes: NDArray[np.uint64],
        *,
        max_bits: int = MAX_BITS,
        min_cosine: float = MIN_COSINE,
    ) -> None:
        """Takes the rows of `main_pictures`, unit vectors [n, dim] and hashes [n]."""
        self._mains = mains
        self._vectors = vectors
        self._hashes = hashes[mains] if len(hashes) else np.zeros(len(mains), np.uint64)
        self._max_bits = max_bits
        self._min_cosine = min_cosine

    def of(self, product: int) -> Ints:
        """The near-duplicates of a product, itself left out, ascending: int64 [m].

        One pass over all hashes, then the vectors of those few that are near.
        """
        if self._mains[product] < 0:
            return np.empty(0, np.int64)
        near = distance(self._hashes, self._hashes[product]) <= np.uint64(self._max_bits)
        near &= self._mains >= 0
        near[product] = False
        others = np.flatnonzero(near)
        own = self._vectors[self._mains[product]].astype(np.float64)
        cosines = (self._vectors[self._mains[others]] * own).sum(axis=1)
        near_too: Ints = others[cosines >= self._min_cosine]
        return near_too
