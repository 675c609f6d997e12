"""Calibrates `no good match`: asks an index for what it has and for what was taken out of it.

The record belongs to an index as it was built. Some products more or less change it little, so
whoever adds or deletes may keep it; a build makes it anew. It needs at most MAX_QUERIES of each
kind, whatever the size of the catalog, and encodes none but titles where products have several
pictures. It takes an even chance of the product being there; a shop whose customers ask more
often for what it has not is wrong about more of those it says it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexing.embed import Progress
from indexing.match import (
    DEPTH,
    auroc,
    background_rows,
    features,
    fit,
    held_out,
    threshold,
)
from indexing.match_queries import (
    MIN_PRODUCTS,
    NoQueriesError,
    Queries,
    Titles,
    image_queries,
    title_queries,
    with_titles,
)
from indexing.match_record import MatchRecord, Mode, ModeRecord
from indexing.models.protocol import Encoder
from indexing.near import NearDuplicates, main_pictures
from indexing.segments import VectorRows
from indexing.table import Images
from indexing.titles import normalise_title
from indexing.vectors import VectorIndex

_FETCH = 128  # pictures of each query that are looked at first
_DIGITS = 6  # that are kept: more are rounding noise

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Asks:
    """What came back for each query, first with its product in the index, then without.

    Attributes:
        features: float64 [2, q, 3].
        right: bool [q], whether the first answer with the product in the index is right.
        products: int64 [q], what each query looks for.
    """

    features: NDArray[np.float64]
    right: NDArray[np.bool_]
    products: Ints


class Same:
    """Which products are the same as a product: by title, by a picture, or near-duplicates."""

    def __init__(self, titles: Titles, images: Images, vectors: VectorRows) -> None:
        self.mains = main_pictures(images.product, images.main, len(titles))
        self._near = NearDuplicates(self.mains, vectors, images.phash)
        self._owners = images.product
        self._files = _numbered(images.sha256)
        self._titles = _numbered(normalise_title(title or "") for title in titles)
        self._titled = np.array([bool(normalise_title(title or "")) for title in titles], np.bool_)

    def of(self, product: int) -> Set[int]:
        """The product itself and all that are the same."""
        found = {product, *self._near.of(product).tolist()}
        if self._titled[product]:
            found.update(np.flatnonzero(self._titles == self._titles[product]).tolist())
        files = self._files[self._owners == product]
        return found.union(self._owners[np.isin(self._files, files)].tolist())


def _numbered(texts: Iterable[str]) -> Ints:
    """A number for each text, int64 [n], the same for equal ones."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)


def calibrate(
    titles: Titles,
    images: Images,
    vectors: VectorRows,
    index: VectorIndex,
    encoder: Encoder,
    progress: Progress | None = None,
) -> MatchRecord:
    """How surely `index` tells what it has from what it has not, for each kind of query.

    Args:
        titles: Of each product, None for none.
        images: Of whose rows `vectors`, float32 [n, dim], and `index` are.
        progress: Called with pictures done and all, where pictures are encoded anew.
    """
    same = Same(titles, images, vectors)
    modes: dict[Mode, ModeRecord] = {}
    skipped: dict[Mode, str] = {}

    def add(mode: Mode, make: Callable[[], Queries]) -> Queries | None:
        try:
            queries = make()
            modes[mode] = record_of(queries.how, ask(queries, same, images, vectors, index))
        except NoQueriesError as error:
            skipped[mode] = str(error)
            return None
        return queries

    shown = progress or (lambda _done, _total: None)
    asked = add("image", lambda: image_queries(images, same.mains, vectors, encoder, shown))
    add("text", lambda: title_queries(titles, encoder))
    if asked is None:
        skipped["image+text"] = skipped["image"]
    else:
        add("image+text", lambda: with_titles(asked, titles, encoder))
    return MatchRecord(modes=modes, skipped=skipped)


def record_of(how: str, asks: Asks) -> ModeRecord:
    """The model of these asks, and what it is worth.

    What it learns is whether the product is there. Whether the first answer is right is another
    question with nearly the same answer: a model that learns that instead tells right first
    answers no better, and missing products worse. Raises NoQueriesError for too few products.
    """
    queries, products = len(asks.right), len(np.unique(asks.products))
    if products < MIN_PRODUCTS:
        raise NoQueriesError(
            f"{products} products that others are left besides; at least {MIN_PRODUCTS} are needed"
        )
    found = asks.features.reshape(2 * queries, -1)
    there = np.arange(2 * queries) < queries
    owners = np.tile(asks.products, 2)
    chances = held_out(found, there, owners)
    limit = threshold(chances, there, owners)
    said = np.zeros(2 * queries, np.bool_) if limit is None else chances >= limit
    weights, bias = fit(found, there)
    return ModeRecord(
        queries=how,
        asked=queries,
        products=products,
        weights=tuple(_rounded(weight) for weight in weights),
        bias=_rounded(bias),
        auroc=_rounded(auroc(chances, there)),
        auroc_cosine=_rounded(auroc(found[:, 0], there)),
        right=_rounded(asks.right.mean()),
        threshold=None if limit is None else _rounded(limit),
        precision=None if limit is None else _rounded(there[said].mean()),
        found=None if limit is None else _rounded(said[there].mean()),
    )


def ask(
    queries: Queries, same: Same, images: Images, vectors: VectorRows, index: VectorIndex
) -> Asks:
    """Ask each query twice; those that nothing is left to answer are dropped."""
    fetch = min(_FETCH, index.ntotal)
    scores, rows = index.search(queries.vectors, fetch)
    background = vectors[background_rows(len(vectors))]
    found: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
    right: list[bool] = []
    products: list[int] = []
    for number, product in enumerate(queries.products.tolist()):
        query, picture = queries.vectors[number], int(queries.pictures[number])
        hidden = None if picture < 0 else images.sha256[picture]
        own = same.of(product)
        fetched = scores[number], rows[number]
        while True:
            there = _best(*fetched, images, hidden, frozenset())
            gone = _best(*fetched, images, hidden, own)
            if len(gone[0]) >= DEPTH or len(fetched[1]) == index.ntotal:
                break
            more = min(8 * len(fetched[1]), index.ntotal)
            again = index.search(query[np.newaxis], more)
            fetched = again[0][0], again[1][0]
        if len(there[0]) < 2 or len(gone[0]) < 2:
            continue
        around = background @ query
        found[0].append(features(there[0], around))
        found[1].append(features(gone[0], around))
        right.append(there[1] in own)
        products.append(product)
    if not products:
        raise NoQueriesError("all products are the same")
    return Asks(np.array(found), np.array(right, np.bool_), np.array(products, np.int64))


def _best(
    scores: Floats, rows: Ints, images: Images, hidden: str | None, without: Set[int]
) -> tuple[Floats, int]:
    """The best scores of the first DEPTH products, [<= DEPTH], and the first product."""
    best: dict[int, float] = {}
    for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
        if row < 0 or len(best) == DEPTH:
            break
        product = int(images.product[row])
        if product not in best and product not in without and images.sha256[row] != hidden:
            best[product] = score
    return np.array(list(best.values()), np.float32), next(iter(best), -1)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
