"""How often each value of an attribute is there among products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.columns import Column
from indexing.attributes.vocabulary import ABSTAINED, OTHER

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class FacetCount:
    """One value of an attribute.

    Attributes:
        count: Products that have it.
        filled: Those of them whose merchant does not say so.
    """

    value: str
    count: int
    filled: int


def facet(column: Column, rows: Ints) -> list[FacetCount]:
    """The values that these products have, most frequent first, equal ones in the order of the
    classes; without OTHER.

    Args:
        rows: int64 [m], each product once.
    """
    given, filled = (
        np.bincount(classes[classes != ABSTAINED], minlength=len(column.attribute.values))
        for classes in (column.given[rows].astype(np.int64), column.filled[rows].astype(np.int64))
    )
    counts = [
        FacetCount(value, int(own + more), int(more))
        for value, own, more in zip(column.attribute.values, given, filled, strict=True)
        if own + more and value != OTHER
    ]
    return sorted(counts, key=lambda found: -found.count)
