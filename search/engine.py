"""The search engine: a query and an index folder to ranked products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from indexing.errors import ModelError, QueryError
from indexing.models import load_encoder
from indexing.models.protocol import Encoder
from indexing.store import OpenIndex, open_index, read_manifest
from search.confidence import Confidence
from search.diversity import check_diversity, diverse, pool_size, relative
from search.fusion import Candidate, Fuse
from search.hits import Answers, Hit
from search.neighbours import Neighbours
from search.query import Crop, Picture, load_picture, query_vector
from search.rank import Ranker
from search.rerank import OnRerank, Reranker
from search.where import Mask, compile_where

MAX_K = 10_000


class SearchEngine:
    """Answers queries over one opened index. It changes nothing: any number of threads
    may search at once."""

    def __init__(self, index: OpenIndex, encoder: Encoder) -> None:
        """`encoder` must be the one that made the index; `open` checks that."""
        self._index = index
        self._encoder = encoder
        self._ranker = Ranker(index)
        self._confidence = Confidence(index)

    @classmethod
    def open(cls, folder: str | Path, *, model: str | None = None) -> SearchEngine:
        """Open an index folder and the encoder that made it.

        `model` names that encoder where it now has another name than at the time of
        indexing. Raises IndexFolderError (also its kinds: corrupt, of another model)
        and ModelError.
        """
        folder = Path(folder)
        made_by = read_manifest(folder).encoder.name
        try:
            encoder = load_encoder(made_by if model is None else model)
        except ModelError as error:
            if model is not None:
                raise
            raise ModelError(
                f"{folder} was made by model {made_by!r}, which cannot be loaded ({error}): "
                "say with --model where it is now"
            ) from error
        return cls(open_index(folder, encoder=encoder), encoder)

    def search(
        self,
        image: Picture | None = None,
        text: str | None = None,
        k: int = 10,
        where: str | None = None,
        *,
        minus: str | Sequence[str] = (),
        crop: Crop | None = None,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        minus_weight: float = 0.5,
        fuse: Fuse = "max",
        collapse: bool = False,
        diversity: float = 0.0,
        itm_rerank: int | None = None,
        on_rerank: OnRerank | None = None,
    ) -> Answers:
        """The k products nearest to a picture, a text or both, best first.

        `image` is a path, a picture file's bytes or an RGB PIL picture; `crop` is the
        part of it to search with, (x, y, width, height) in fractions of its sides.
        `minus` is one or more texts to turn away from. `where` is a filter (see
        search/where.py): with it, too, there are k answers whenever k products match.

        A product with several pictures comes once, by its best one, or with `fuse` "top2" by
        the mean of its two best (see search/fusion.py). Equal scores come in the order of the
        catalog. With `collapse` products whose main pictures are near-duplicates come once
        (`Hit.duplicates`). `diversity`, from 0 to 1, trades nearness for answers that differ
        from each other (see search/diversity.py). All of these change the order and leave the
        scores what they are: the cosine of the query and the best picture.

        The answers are a list of hits that also says how probable it is that the catalog has
        what was asked for (`Answers.match_probability`, `good_match`).

        With `itm_rerank` the fusion encoder of an ALBEF index looks at the pictures of so
        many of the first products together with the text, and these come by falling
        probability that both belong together (`Hit.match`). Behind them come those whose
        picture is a URL or cannot be read, then all others; both by cosine. `minus` counts
        for the cosine only. `on_rerank` is told what that costs; see search/rerank.py.

        Raises QueryError, WhereError and ImageError.
        """
        _check_k(k)
        check_diversity(diversity, k)
        reranker = (
            None
            if itm_rerank is None
            else Reranker(self._encoder, text, itm_rerank, image=image is not None)
        )
        if crop is not None and image is None:
            raise QueryError("crop without an image: give the image to crop")
        allowed = None if where is None else self._matching(where)
        picture = (
            None if image is None else load_picture(image, crop, at_least=self._encoder.image_size)
        )
        vector = query_vector(
            self._encoder,
            picture,
            text,
            [minus] if isinstance(minus, str) else minus,
            image_weight=image_weight,
            text_weight=text_weight,
            minus_weight=minus_weight,
        )
        near = Neighbours(self._index, vector, allowed)
        hits = self._hits(near, k, fuse, collapse, diversity, reranker, on_rerank)
        plain = not minus and (picture is None or text is None or image_weight == text_weight)
        if not plain:
            return Answers(hits)
        return Answers(hits, *self._confidence.of(near, image=picture is not None, text=bool(text)))

    def similar(
        self,
        product_id: str,
        k: int = 10,
        *,
        fuse: Fuse = "max",
        collapse: bool = False,
        diversity: float = 0.0,
    ) -> Answers:
        """The k products nearest to a product's main picture, itself left out.

        The options are those of `search`. Raises QueryError for an id that is not in the index.
        """
        _check_k(k)
        check_diversity(diversity, k)
        try:
            row = self._index.products.row_of(product_id)
        except KeyError:
            raise QueryError(f"product {product_id!r} is not in the index") from None
        own = self._index.images.product == row
        pictures = np.flatnonzero(own).tolist()
        if not pictures:
            raise QueryError(f"product {product_id!r} has no picture in the index")
        role = self._index.images.role
        main = next((picture for picture in pictures if role[picture] == "main"), pictures[0])
        near = Neighbours(self._index, self._index.vectors[main], ~own)
        return Answers(self._hits(near, k, fuse, collapse, diversity))

    def _matching(self, where: str) -> Mask:
        """Which vectors belong to a product that matches."""
        mask: Mask = compile_where(where).mask(self._index.products)[self._index.images.product]
        return mask

    def _hits(
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
        candidates = {self._index.products.ids[c.product]: c for c in found}
        own = [candidates[hit.product_id] for hit in hits]
        vectors = self._index.vectors[[candidate.picture for candidate in own]]
        first = sum(hit.match is not None for hit in hits)
        matches = np.array([hit.match for hit in hits[:first]], np.float64)
        order = diverse(matches, vectors[:first], k, diversity)
        values = np.array([candidate.value for candidate in own[first:]], np.float64)
        rest = diverse(relative(values), vectors[first:], k - len(order), diversity, vectors[order])
        order += [first + place for place in rest]
        return [replace(hits[place], rank=rank) for rank, place in enumerate(order, start=1)]

    def _hit(self, rank: int, candidate: Candidate) -> Hit:
        images, products = self._index.images, self._index.products
        path = images.path[candidate.picture]
        return Hit(
            rank=rank,
            product_id=products.ids[candidate.product],
            score=candidate.score,
            image=images.location[candidate.picture],
            image_path=None if path is None else Path(path),
            fields=products.fields(candidate.product),
            duplicates=tuple(products.ids[product] for product in candidate.duplicates),
        )


def _check_k(k: int) -> None:
    if not 1 <= k <= MAX_K:
        raise QueryError(f"k is {k}: must be between 1 and {MAX_K:,}")
