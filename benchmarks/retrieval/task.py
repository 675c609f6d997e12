"""What a retrieval benchmark is: queries, a gallery, and which answers are right.

A builder (`datasets.py`, `esci/tasks.py`) makes tasks; nothing else knows of files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from indexing.catalog.product import ProductImage

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """The queries or the gallery, in order: n pictures, n texts, or both."""

    ids: list[str]  # unique, without white space: they stand in TREC files
    products: Ints  # [n] number of the product; queries of one product are resampled together
    pictures: list[ProductImage] | None = None
    texts: list[str] | None = None  # of a gallery: what the shop wrote, for text search
    categories: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Ints) -> Side:
        """The items of these rows, in this order."""

        def taken(values: list[str] | None) -> list[str] | None:
            return None if values is None else [values[row] for row in rows]

        return Side(
            [self.ids[row] for row in rows],
            self.products[rows],
            None if self.pictures is None else [self.pictures[row] for row in rows],
            taken(self.texts),
            taken(self.categories),
        )


@dataclass(frozen=True)
class Links:
    """Pairs of a query and a gallery row, sorted by query and then by row, each once."""

    query: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # [m]
    row: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # [m]

    def __len__(self) -> int:
        return len(self.query)

    @classmethod
    def of(cls, query: Ints, row: Ints) -> Links:
        """Links in any order and with repeats, put in order."""
        pairs = np.unique(np.stack([query, row], axis=1).astype(np.int64).reshape(-1, 2), axis=0)
        return cls(pairs[:, 0].copy(), pairs[:, 1].copy())

    def union(self, other: Links) -> Links:
        """The links of both."""
        return Links.of(
            np.concatenate([self.query, other.query]), np.concatenate([self.row, other.row])
        )


def matching(asked: Ints, offered: Ints) -> Links:
    """Every query and gallery row of the same number."""
    order = np.argsort(offered, kind="stable")
    first = np.searchsorted(offered[order], asked, "left")
    counts = np.searchsorted(offered[order], asked, "right") - first
    query = np.repeat(np.arange(len(asked)), counts)
    offset = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Links(query, order[first[query] + offset])


@dataclass(frozen=True)
class Task:
    """A retrieval benchmark.

    `judged` with `grades` are the qrels; what is not judged is wrong. An answer is right
    from the grade `relevant` on; `lenient` is a lower bound that is reported as well.

    `removed` are answers that a query may not get at all, such as itself. `duplicates` are
    the same thing under another id: neither right nor wrong, so they are taken out, and
    count as wrong in the strict figures only.

    With `trials`, each right answer is a trial of its own, from whose ranking the query's
    other right answers are taken out.
    """

    name: str  # names files, such as grocery-photo-icon
    title: str  # for people
    queries: Side
    gallery: Side
    judged: Links
    grades: Ints  # [len(judged)], at least 1 or 0 for "judged, and wrong"
    relevant: int = 1
    lenient: int | None = None
    removed: Links = field(default_factory=Links)
    duplicates: Links = field(default_factory=Links)
    trials: bool = False
    note: str = ""  # what a reader of its figures must know

    def right(self) -> NDArray[np.bool_]:
        """bool [len(judged)]: which of the judged answers are right."""
        right: NDArray[np.bool_] = self.grades >= self.relevant
        return right

    def without(self, bad_queries: Ints, bad_gallery: Ints) -> Task:
        """The task without these queries and gallery rows, and without the queries that
        have no right answer left."""
        keep_row = np.ones(len(self.gallery), bool)
        keep_row[bad_gallery] = False
        keep_query = np.zeros(len(self.queries), bool)
        keep_query[self.judged.query[self.right() & keep_row[self.judged.row]]] = True
        keep_query[bad_queries] = False
        new_query, new_row = np.cumsum(keep_query) - 1, np.cumsum(keep_row) - 1

        def kept(links: Links) -> NDArray[np.bool_]:
            mask: NDArray[np.bool_] = keep_query[links.query] & keep_row[links.row]
            return mask

        def moved(links: Links) -> Links:
            mask = kept(links)
            return Links(new_query[links.query[mask]], new_row[links.row[mask]])

        return replace(
            self,
            queries=self.queries.take(np.flatnonzero(keep_query)),
            gallery=self.gallery.take(np.flatnonzero(keep_row)),
            judged=moved(self.judged),
            grades=self.grades[kept(self.judged)],
            removed=moved(self.removed),
            duplicates=moved(self.duplicates),
        )
