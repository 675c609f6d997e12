"""The search engine: a query and an index folder to ranked products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexing.errors import ModelError, QueryError
from indexing.manifest import read_manifest
from indexing.models import load_encoder
from indexing.models.protocol import Encoder
from indexing.store import OpenIndex, open_index
from search.live import LiveIndex
from search.query import Crop, Picture, load_picture, query_vector
from search.rerank import OnRerank, Reranker
from search.where import Mask, compile_where

MAX_K = 10_000


@dataclass(frozen=True)
class Hit:
    """One product of an answer."""

    rank: int  # from 1
    product_id: str
    score: float  # cosine of the query and the best picture
    image: str  # that picture, as the catalog names it
    image_path: Path | None  # its file; None for a URL
    fields: dict[str, str | float]  # what is known of the product besides its id
    match: float | None = None  # probability that the picture fits the text; None: not reranked

    def to_json(self) -> dict[str, Any]:
        """What the command line prints and the server sends: all but the picture's file."""
        return {
            "rank": self.rank,
            "product_id": self.product_id,
            "score": self.score,
            "match": self.match,
            "image": self.image,
            "fields": self.fields,
        }


class SearchEngine:
    """Answers queries over an index folder. It changes nothing: any number of threads may
    search at once.

    Each query is answered by the version of the index that was committed last, see live.py.
    """

    def __init__(self, index: OpenIndex, encoder: Encoder) -> None:
        """`encoder` must be the one that made the index; `open` checks that."""
        self._live = LiveIndex(index, encoder)

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
        itm_rerank: int | None = None,
        on_rerank: OnRerank | None = None,
    ) -> list[Hit]:
        """The k products nearest to a picture, a text or both, best first.

        `image` is a path, a picture file's bytes or an RGB PIL picture; `crop` is the
        part of it to search with, (x, y, width, height) in fractions of its sides.
        `minus` is one or more texts to turn away from. `where` is a filter (see
        search/where.py): with it, too, there are k answers whenever k products match.

        A product with several pictures comes once, by its best one. Equal scores come
        in the order of the catalog.

        With `itm_rerank` the fusion encoder of an ALBEF index looks at the pictures of so
        many of the first products together with the text, and these come by falling
        probability that both belong together (`Hit.match`). Behind them come those whose
        picture is a URL or cannot be read, then all others; both by cosine. `minus` counts
        for the cosine only. `on_rerank` is told what that costs; see search/rerank.py.

        Raises QueryError, WhereError and ImageError.
        """
        _check_k(k)
        index, encoder = self._live.current()
        reranker = (
            None
            if itm_rerank is None
            else Reranker(encoder, text, itm_rerank, image=image is not None)
        )
        if crop is not None and image is None:
            raise QueryError("crop without an image: give the image to crop")
        allowed = None if where is None else _matching(index, where)
        picture = None if image is None else load_picture(image, crop, at_least=encoder.image_size)
        vector = query_vector(
            encoder,
            picture,
            text,
            [minus] if isinstance(minus, str) else minus,
            image_weight=image_weight,
            text_weight=text_weight,
            minus_weight=minus_weight,
        )
        if reranker is None:
            return _nearest(index, vector, k, allowed)
        found = _nearest(index, vector, max(k, reranker.first), allowed)
        return reranker.reranked(found, on_rerank)[:k]

    def similar(self, product_id: str, k: int = 10) -> list[Hit]:
        """The k products nearest to a product's main picture, itself left out.

        Raises QueryError for an id that is not in the index.
        """
        _check_k(k)
        index, _ = self._live.current()
        try:
            row = index.products.row_of(product_id)
        except KeyError:
            raise QueryError(f"product {product_id!r} is not in the index") from None
        own = index.images.product == row
        pictures = np.flatnonzero(own).tolist()
        if not pictures:
            raise QueryError(f"product {product_id!r} has no picture in the index")
        main = next((p for p in pictures if index.images.is_main(p)), pictures[0])
        return _nearest(index, index.vectors[main], k, ~own)


def _matching(index: OpenIndex, where: str) -> Mask:
    """Which vectors belong to a product that matches."""
    mask: Mask = compile_where(where).mask(index.products)[index.images.product]
    return mask


def _nearest(
    index: OpenIndex, vector: NDArray[np.float32], k: int, allowed: Mask | None
) -> list[Hit]:
    owners = index.images.product
    candidates = owners if allowed is None else owners[allowed]
    wanted = min(k, int(np.count_nonzero(np.bincount(candidates))))
    if not wanted:
        return []
    # A product may take several of the places, so ask for more until enough are seen.
    fetch = min(2 * k, len(candidates))
    while True:
        scores, rows = index.index.search(vector[np.newaxis], fetch, allowed)
        found = rows[0][rows[0] >= 0]
        firsts = np.sort(np.unique(owners[found], return_index=True)[1])[:wanted]
        if len(firsts) == wanted or fetch == len(candidates):
            break
        fetch = min(2 * fetch, len(candidates))
    return [
        _hit(index, rank, int(found[place]), float(scores[0, place]))
        for rank, place in enumerate(firsts, start=1)
    ]


def _hit(index: OpenIndex, rank: int, row: int, score: float) -> Hit:
    product = int(index.images.product[row])
    return Hit(
        rank=rank,
        product_id=index.products.id_of(product),
        score=score,
        image=index.images.location(row),
        image_path=index.images.path(row),
        fields=index.products.fields(product),
    )


def _check_k(k: int) -> None:
    if not 1 <= k <= MAX_K:
        raise QueryError(f"k is {k}: must be between 1 and {MAX_K:,}")
