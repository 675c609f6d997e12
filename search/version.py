"""One version of an index, ready to answer: ranking, diversity and confidence over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.fusing import disagrees, reranked
from indexing.errors import QueryError
from indexing.models.protocol import Encoder
from indexing.store import OpenIndex
from search.attributes import QueryAttributes, Wishes
from search.confidence import Confidence
from search.diversity import diverse, pool_size, relative
from search.facets import FacetCount, Proposal, facet, proposals, values_of
from search.fusion import Candidate, Fuse
from search.hits import Hit
from search.neighbours import Neighbours
from search.rank import Ranker
from search.rerank import OnRerank, Reranker
from search.where import Mask, compile_where

if TYPE_CHECKING:
    from PIL.Image import Image

Ints = NDArray[np.int64]

RERANKED = 200  # products, at least, that attributes put into order


class Version:
    """What queries ask of one opened index; any number of threads may use it."""

    def __init__(self, index: OpenIndex, encoder: Encoder, before: Version | None = None) -> None:
        """`before` is an earlier version, whose opened attribute classifier is kept."""
        self.index = index
        self.encoder = encoder
        self.confidence = Confidence(index)
        self._attributes = _attributes_of(index, before)
        self._there = {
            name: values_of(index.attributes[name])
            for name in (self._attributes.record.categories if self._attributes else ())
        }
        self._ranker = Ranker(index)

    def matching_products(self, where: str) -> Mask:
        """Which products match. Raises WhereError."""
        return compile_where(where).mask(self.index.products)

    def matching(self, where: str) -> Mask:
        """Which vectors belong to a product that matches. Raises WhereError."""
        mask: Mask = self.matching_products(where)[self.index.images.product]
        return mask

    def wishes(
        self, picture: Image | None, text: str | None, chosen: Mapping[str, str], *, rerank: bool
    ) -> Wishes:
        """What a query says of attributes. Raises QueryError."""
        if self._attributes is None and not chosen:
            return Wishes({}, None, {})
        return self._known_attributes().wishes(picture, text, chosen, rerank=rerank)

    def proposals(self, wishes: Wishes) -> list[Proposal]:
        """The categories that a query's text lets expect, of those that products have."""
        return [
            proposal
            for name, own in wishes.likely.items()
            for proposal in proposals(self.index.attributes[name].attribute, own, self._there[name])
        ]

    def facets(self, names: Iterable[str], rows: Ints) -> dict[str, list[FacetCount]]:
        """The values of these attributes among products, int64 [m]. Raises QueryError."""
        wanted = list(names)
        if not wanted:
            return {}
        known = self._known_attributes()
        found = [known.attribute(name).name for name in wanted]
        return {name: facet(self.index.attributes[name], rows) for name in found}

    def prices(self, rows: Ints | slice) -> tuple[float, float] | None:
        """The lowest and the highest price among products, int64 [m] or a slice of all;
        None where none has one."""
        known = self.index.products.column("price")[rows]
        known = known[~np.isnan(known)]
        return (float(known.min()), float(known.max())) if len(known) else None

    def pictures(self, product: int) -> list[int]:
        """The rows of a product's pictures: the main one, then the others as the catalog has
        them."""
        rows, _ = self._ranker.pictures_of(np.array([product]))
        main = self.index.images.main[rows]
        return [*rows[main].tolist(), *rows[~main].tolist()]

    def first(self, near: Neighbours, products: int, fuse: Fuse, collapse: bool) -> Ints:
        """The first products by cosine, int64 [m]."""
        found = self._ranker.ranked(near, products, fuse=fuse, collapse=collapse)
        return np.array([candidate.product for candidate in found], np.int64)

    def hits(
        self,
        near: Neighbours,
        k: int,
        fuse: Fuse,
        collapse: bool,
        diversity: float,
        reranker: Reranker | None = None,
        on_rerank: OnRerank | None = None,
        wishes: Wishes | None = None,
    ) -> list[Hit]:
        """The answers out of a query's neighbours: ranked, reranked and then made diverse.

        By the matcher where there is one, else by attributes where the query says something of
        them.
        """
        wanted = max(k, pool_size(k) if diversity else 0, 0 if reranker is None else reranker.first)
        if reranker is not None or wishes is None or not wishes.evidence:
            found = self._ranker.ranked(near, wanted, fuse=fuse, collapse=collapse)
            agreeing = len(found)
        else:
            first = max(wanted, RERANKED)
            found = self._candidates(near, first, fuse, collapse, wishes)
            found, agreeing = self._by_attributes(found, wishes)
            found = found[:wanted]
        hits = [self._hit(rank, candidate) for rank, candidate in enumerate(found, start=1)]
        if reranker is not None:
            hits = reranker.reranked(hits, on_rerank)
        if diversity:
            hits = self._diverse(hits, found, k, diversity, agreeing)
        return hits[:k]

    def _candidates(
        self, near: Neighbours, products: int, fuse: Fuse, collapse: bool, wishes: Wishes
    ) -> list[Candidate]:
        """The first products by cosine: of all that do not surely disagree with what was chosen,
        and then of those that do, however near they are."""
        chosen = {name: own for name, own in wishes.evidence.items() if own.source == "chosen"}
        if not chosen:
            return self._ranker.ranked(near, products, fuse=fuse, collapse=collapse)
        every = np.arange(len(self.index.products))
        away = np.zeros(len(every), np.bool_)
        for name, own in chosen.items():
            away |= disagrees(every, self.index.attributes[name], own)
        pictures = away[self.index.images.product]
        found: list[Candidate] = []
        for part in (~pictures, pictures):
            allowed = part if near.allowed is None else part & near.allowed
            left = products - len(found)
            if left and allowed.any():
                some = Neighbours(self.index, near.query, allowed)
                found += self._ranker.ranked(some, left, fuse=fuse, collapse=collapse)
        return found

    def _by_attributes(self, found: list[Candidate], wishes: Wishes) -> tuple[list[Candidate], int]:
        """The candidates in the order of what the query wishes, and how many stand before those
        that surely disagree."""
        values = np.array([candidate.value for candidate in found], np.float64)
        rows = np.array([candidate.product for candidate in found], np.int64)
        new = reranked(values, rows, self.index.attributes, wishes.evidence, wishes.record)
        ordered = [
            found[place]._replace(value=value)
            for place, value in zip(new.order.tolist(), new.values.tolist(), strict=True)
        ]
        return ordered, new.first

    def _diverse(
        self, hits: list[Hit], found: list[Candidate], k: int, diversity: float, agreeing: int
    ) -> list[Hit]:
        """The hits by marginal relevance: those with a match probability by that and first, or
        those that do not surely disagree with the query's attributes."""
        candidates = {self.index.products.id_of(c.product): c for c in found}
        own = [candidates[hit.product_id] for hit in hits]
        vectors = self.index.vectors[[candidate.picture for candidate in own]]
        values = np.array([candidate.value for candidate in own], np.float64)
        first = sum(hit.match is not None for hit in hits)
        relevance = np.array([hit.match for hit in hits[:first]], np.float64)
        if not first:
            first = min(agreeing, len(hits))
            relevance = relative(values[:first])
        order = diverse(relevance, vectors[:first], k, diversity)
        others = relative(values[first:])
        rest = diverse(others, vectors[first:], k - len(order), diversity, vectors[order])
        order += [first + place for place in rest]
        return [replace(hits[place], rank=rank) for rank, place in enumerate(order, start=1)]

    def _known_attributes(self) -> QueryAttributes:
        if self._attributes is None:
            raise QueryError(
                "the index has no attributes: make it with `shoplens index CATALOG --out DIR "
                "--attributes FOLDER`, or search without them"
            )
        return self._attributes

    def _hit(self, rank: int, candidate: Candidate) -> Hit:
        images, products = self.index.images, self.index.products
        return Hit(
            rank=rank,
            product_id=products.id_of(candidate.product),
            score=candidate.score,
            image=images.location(candidate.picture),
            image_path=images.path(candidate.picture),
            fields=products.fields(candidate.product),
            duplicates=tuple(products.id_of(product) for product in candidate.duplicates),
            filled={
                name: known
                for name, known in self.index.known(candidate.product).items()
                if known.source == "filled"
            },
        )


def _attributes_of(index: OpenIndex, before: Version | None) -> QueryAttributes | None:
    record = index.manifest.attributes
    if record is None:
        return None
    known = None if before is None else before._attributes
    return known if known is not None and known.record == record else QueryAttributes(record)
