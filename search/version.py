"""One version of an index, ready to answer: ranking, diversity and confidence over it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from indexing.models.protocol import Encoder
from indexing.store import OpenIndex
from search.confidence import Confidence
from search.diversity import diverse, pool_size, relative
from search.fusion import Candidate, Fuse
from search.hits import Hit
from search.neighbours import Neighbours
from search.rank import Ranker
from search.rerank import OnRerank, Reranker
from search.where import Mask, compile_where


class Version:
    """What queries ask of one opened index; any number of threads may use it."""

    def __init__(self, index: OpenIndex, encoder: Encoder) -> None:
        self.index = index
        self.encoder = encoder
        self.confidence = Confidence(index)
        self._ranker = Ranker(index)

    def matching(self, where: str) -> Mask:
        """Which vectors belong to a product that matches. Raises WhereError."""
        mask: Mask = compile_where(where).mask(self.index.products)[self.index.images.product]
        return mask

    def hits(
        self,
        near: Neighbours,
        k: int,
        fuse: Fuse,
        collapse: bool,
        diversity: float,
        reranker: Reranker | None = None,
        on_rerank: OnRerank | None = None,
    ) -> list[Hit]:
        """The answers out of a query's neighbours: ranked, reranked and then made diverse."""
        wanted = max(k, pool_size(k) if diversity else 0, 0 if reranker is None else reranker.first)
        found = self._ranker.ranked(near, wanted, fuse=fuse, collapse=collapse)
        hits = [self._hit(rank, candidate) for rank, candidate in enumerate(found, start=1)]
        if reranker is not None:
            hits = reranker.reranked(hits, on_rerank)
        if diversity:
            hits = self._diverse(hits, found, k, diversity)
        return hits[:k]

    def _diverse(
        self, hits: list[Hit], found: list[Candidate], k: int, diversity: float
    ) -> list[Hit]:
        """The hits by marginal relevance: those with a match probability by that and first."""
        candidates = {self.index.products.id_of(c.product): c for c in found}
        own = [candidates[hit.product_id] for hit in hits]
        vectors = self.index.vectors[[candidate.picture for candidate in own]]
        first = sum(hit.match is not None for hit in hits)
        matches = np.array([hit.match for hit in hits[:first]], np.float64)
        order = diverse(matches, vectors[:first], k, diversity)
        values = np.array([candidate.value for candidate in own[first:]], np.float64)
        rest = diverse(relative(values), vectors[first:], k - len(order), diversity, vectors[order])
        order += [first + place for place in rest]
        return [replace(hits[place], rank=rank) for rank, place in enumerate(order, start=1)]

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
        )
