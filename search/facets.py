"""How often each value of an attribute is there among products, and which a text lets expect."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.columns import Column
from indexing.attributes.fusing import Evidence
from indexing.attributes.vocabulary import ABSTAINED, OTHER, Attribute

PROPOSED = 3  # values at most
LEAST = 0.05  # the probability of one that is worth proposing

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


@dataclass(frozen=True)
class Proposal:
    """A value that a text makes likely, as something to narrow its answers by.

    Attributes:
        confidence: Its probability; 1 where the text names it.
    """

    attribute: str
    value: str
    confidence: float


def values_of(column: Column) -> set[int]:
    """The classes that products have, given or filled in; without OTHER."""
    classes = np.unique(column.decided(np.arange(len(column)))).tolist()
    return {own for own in classes if own != ABSTAINED and column.attribute.values[own] != OTHER}


def proposals(attribute: Attribute, evidence: Evidence, there: Container[int]) -> list[Proposal]:
    """The likeliest values of those that are `there`, at most PROPOSED.

    Args:
        evidence: Sure.
        there: Classes, see `values_of`.
    """
    shares = evidence.distribution
    likely = [own for own in np.argsort(-shares, kind="stable").tolist() if shares[own] >= LEAST]
    return [
        Proposal(attribute.name, attribute.values[own], float(shares[own]))
        for own in likely
        if own in there
    ][:PROPOSED]
