"""Products whose attributes are taken as unknown, to try reranking on.

Those whose titles no classifier was trained on, each with what was predicted of it and nothing
else: the merchant's own value is the truth that reranking is measured by, so it must not be seen.
They stand for the products of a shop that have a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.columns import Column, Columns
from indexing.attributes.vocabulary import ABSTAINED, OTHER, TrainedOn, mode_of
from indexing.match_queries import NoQueriesError, Titles, shuffled
from indexing.near import main_pictures
from indexing.segments import VectorRows
from indexing.table import Images
from indexing.titles import normalise_title, position

MIN_HELD_OUT = 200  # products; below, there is no telling what helps
MAX_HELD_OUT = 10_000
_TOGETHER = 64  # queries that are compared at once

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Gallery:
    """g products.

    Attributes:
        rows: int64 [g], of the products.
        titles: "" where there is none.
        same: int64 [g], a number for each title; products without one are all different.
        given: int64 [g] by attribute, the merchant's own value; ABSTAINED for none and OTHER.
        values: By attribute what its classes are called.
        columns: What is predicted of the products, and what of that is sure; nothing is given.
        mains: int64 [g], rows of their main pictures.
        vectors: float32 [p, dim], of all their pictures, product by product.
        starts: int64 [g], where the pictures of each product start.
    """

    rows: Ints
    titles: list[str]
    same: Ints
    given: Mapping[str, Ints]
    values: Mapping[str, Sequence[str]]
    columns: Columns
    mains: Ints
    vectors: Floats
    starts: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def cosines(self, queries: Floats, hidden: Ints) -> Floats:
        """Each query's cosine with the best picture of each product, float32 [q, g].

        Args:
            hidden: int64 [q], the place of a product that must not be an answer: it gets the
                lowest of all cosines, -1. Below 0 for none.
        """
        parts = [
            np.maximum.reduceat(
                queries[start : start + _TOGETHER] @ self.vectors.T, self.starts, axis=1
            )
            for start in range(0, len(queries), _TOGETHER)
        ]
        found = np.concatenate(parts)
        hiding = np.flatnonzero(hidden >= 0)
        found[hiding, hidden[hiding]] = -1
        return found

    def with_values(self, values: Mapping[str, int]) -> Ints:
        """The products that have all these classes by their merchant, int64 [m]."""
        fits = np.ones(len(self), np.bool_)
        for name, value in values.items():
            fits &= self.given[name] == value
        return np.flatnonzero(fits)


def make_gallery(
    titles: Titles,
    ids: Sequence[str],
    images: Images,
    vectors: VectorRows,
    columns: Columns,
    trained_on: Sequence[TrainedOn],
    part: tuple[float, float] = (0.0, 1.0),
) -> Gallery:
    """Up to MAX_HELD_OUT of the products with a picture that were held out from all classifiers.

    Args:
        titles, ids: Of each product.
        images: Of whose rows `vectors`, float32 [n, dim], are.
        trained_on: At least one.
        part: From where to where, in shares of the held-out titles.

    Raises:
        NoQueriesError: There are fewer than MIN_HELD_OUT.
    """
    mains = main_pictures(images.product, images.main, len(titles))
    least = min(trained_on, key=lambda own: own.held_out)
    start, end = (share * least.held_out for share in part)
    held_out = [
        row
        for row, (title, name) in enumerate(zip(titles, ids, strict=True))
        if mains[row] >= 0
        and start <= position(title or name, least.seed) < end
        and all(position(title or name, own.seed) < own.held_out for own in trained_on)
    ]
    if len(held_out) < MIN_HELD_OUT:
        seeds = {own.seed for own in trained_on}
        raise NoQueriesError(
            f"{len(held_out)} products that no classifier was trained on; at least "
            f"{MIN_HELD_OUT} are needed"
            + (": train them with one --seed, to hold out the same" if len(seeds) > 1 else "")
        )
    rows = np.array(sorted(shuffled(held_out)[:MAX_HELD_OUT]), np.int64)
    own = [titles[row] or "" for row in rows]
    pictures = np.flatnonzero(np.isin(images.product, rows))
    pictures = pictures[np.argsort(images.product[pictures], kind="stable")]
    return Gallery(
        rows=rows,
        titles=own,
        same=_numbered([normalise_title(title) or f"\n{row}" for row, title in enumerate(own)]),
        given={name: _given(column, rows) for name, column in columns.items()},
        values={name: column.attribute.values for name, column in columns.items()},
        columns={name: _predicted(column, rows, own) for name, column in columns.items()},
        mains=mains[rows],
        vectors=np.asarray(vectors[pictures], np.float32),
        starts=np.searchsorted(images.product[pictures], rows),
    )


def _given(column: Column, rows: Ints) -> Ints:
    given = column.given[rows].astype(np.int64)
    values = column.attribute.values
    if OTHER in values:
        given[given == values.index(OTHER)] = ABSTAINED
    return given


def _predicted(column: Column, rows: Ints, titles: Sequence[str]) -> Column:
    """The column of these products as if no merchant had said anything."""
    shares = column.predicted(rows)
    sure = np.full(len(rows), ABSTAINED, np.int16)
    modes = np.array([mode_of(True, title) for title in titles])
    for mode in np.unique(modes).tolist():
        own = modes == mode
        sure[own] = column.attribute.decide(shares[own], mode)
    return replace(
        column,
        top=column.top[rows],
        probabilities=column.probabilities[rows],
        given=np.full(len(rows), ABSTAINED, np.int16),
        filled=sure,
    )


def _numbered(texts: Sequence[str]) -> Ints:
    """A number for each text, int64 [n], the same for equal ones."""
    return np.unique(np.array(texts, object), return_inverse=True)[1].astype(np.int64)
