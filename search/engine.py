"""The search engine: a query and an index folder to ranked products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from indexing.errors import ModelError, QueryError
from indexing.manifest import read_manifest
from indexing.models import load_encoder
from indexing.models.protocol import Encoder
from indexing.store import OpenIndex, open_index
from search.diversity import check_diversity
from search.facets import FacetCount
from search.fusion import Fuse
from search.hits import Answers
from search.live import LiveIndex, Load
from search.neighbours import Neighbours
from search.query import Crop, Picture, load_picture, query_vector
from search.rerank import OnRerank, Reranker
from search.version import Version

MAX_K = 10_000
FACETED = 200  # products of a query whose values are counted


class SearchEngine:
    """Answers queries over an index folder. It changes nothing: any number of threads may
    search at once.

    Each query is answered by the version of the index that was committed last, see live.py.
    """

    def __init__(self, index: OpenIndex, encoder: Encoder, *, load: Load | None = None) -> None:
        """`encoder` must be the one that made the index, or one optimised from it that may ask
        it (indexing/manifest.py); `open` checks that. `load` opens the
        encoder of a later version that another one made; by default `load_encoder` does."""
        self._live = LiveIndex(index, encoder, load)
        self._version = Version(index, encoder)

    @classmethod
    def open(
        cls, folder: str | Path, *, model: str | None = None, load: Load | None = None
    ) -> SearchEngine:
        """Open an index folder and the encoder that made it.

        `model` names that encoder where it now has another name than at the time of
        indexing, or one that `shoplens optimize` made of it. `load` opens encoders in place of
        `load_encoder`, such as one for several indexes or one that batches. Raises
        IndexFolderError (also its kinds: corrupt, of another model) and ModelError.
        """
        folder = Path(folder)
        made_by = read_manifest(folder).encoder.name
        try:
            encoder = (load or load_encoder)(made_by if model is None else model)
        except ModelError as error:
            if model is not None:
                raise
            raise ModelError(
                f"{folder} was made by model {made_by!r}, which cannot be loaded ({error}): "
                "say with --model where it is now"
            ) from error
        return cls(open_index(folder, asker=encoder), encoder, load=load)

    def current(self) -> Version:
        """The version that answers now."""
        index, encoder = self._live.current()
        version = self._version
        if version.index is not index:
            version = self._version = Version(index, encoder, version)
        return version

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
        attributes: Mapping[str, str] | None = None,
        rerank: bool = True,
        facets: Sequence[str] = (),
        prices: bool = False,
        version: Version | None = None,
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

        Where the index knows attributes of its products, and its validation has shown that it
        helps, the first 200 products (or k, if more) come by cosine and attributes together (see
        indexing/attributes/fusing.py): those that the text names, else those that the classifier
        is sure to see. `rerank` false leaves that out. `attributes` are values that products
        must have, such as {"color": "Red"}: of these products those that surely have another
        value come behind all others, whatever was validated; none is left out. With
        `itm_rerank` the order is the matcher's alone, so it takes no `attributes`.

        Where the index knows categories by titles, those that the text names, or else lets expect
        with some certainty, are proposed to narrow the answers by (`Answers.proposals`).

        `facets` are attributes whose values are counted (`Answers.facets`) among the first 200
        products by cosine, whatever k is; what the merchant does not say was filled in by the
        classifier where that was sure. With `prices` their lowest and highest price is told
        (`Answers.prices`). `version`, one of `current()`, answers in place of the newest.

        Raises QueryError, WhereError and ImageError.
        """
        _check_k(k)
        check_diversity(diversity, k)
        version = version or self.current()
        encoder = version.encoder
        if attributes and itm_rerank is not None:
            raise QueryError("attributes and itm_rerank are two orders: give one of them")
        reranker = (
            None
            if itm_rerank is None
            else Reranker(encoder, text, itm_rerank, image=image is not None)
        )
        if crop is not None and image is None:
            raise QueryError("crop without an image: give the image to crop")
        allowed = None if where is None else version.matching(where)
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
        near = Neighbours(version.index, vector, allowed)
        shown = picture if image_weight > 0 else None
        said = text if text_weight > 0 else None
        rerank = rerank and reranker is None
        wishes = version.wishes(shown, said, attributes or {}, rerank=rerank)
        proposed = version.proposals(wishes)
        hits = version.hits(near, k, fuse, collapse, diversity, reranker, on_rerank, wishes)
        counted = {}
        between = None
        if facets or prices:
            rows = version.first(near, FACETED, fuse, collapse)
            counted = version.facets(facets, rows)
            between = version.prices(rows) if prices else None
        plain = not minus and (picture is None or text is None or image_weight == text_weight)
        if not plain:
            return Answers(hits, facets=counted, prices=between, proposals=proposed)
        sure = version.confidence.of(near, image=picture is not None, text=bool(text))
        return Answers(hits, *sure, facets=counted, prices=between, proposals=proposed)

    def similar(
        self,
        product_id: str,
        k: int = 10,
        *,
        fuse: Fuse = "max",
        collapse: bool = False,
        diversity: float = 0.0,
        version: Version | None = None,
    ) -> Answers:
        """The k products nearest to a product's main picture, itself left out.

        The options are those of `search`. Raises QueryError for an id that is not in the index.
        """
        _check_k(k)
        check_diversity(diversity, k)
        version = version or self.current()
        index = version.index
        try:
            row = index.products.row_of(product_id)
        except KeyError:
            raise QueryError(f"product {product_id!r} is not in the index") from None
        pictures = version.pictures(row)
        if not pictures:
            raise QueryError(f"product {product_id!r} has no picture in the index")
        others = np.ones(len(index.images), np.bool_)
        others[pictures] = False
        near = Neighbours(index, index.vectors[pictures[0]], others)
        return Answers(version.hits(near, k, fuse, collapse, diversity))

    def facets(
        self, names: Sequence[str], where: str | None = None, *, version: Version | None = None
    ) -> dict[str, list[FacetCount]]:
        """How many products of the index, or of those that match, have each value of these
        attributes. Raises QueryError and WhereError."""
        version = version or self.current()
        matching = np.ones(len(version.index.products), np.bool_)
        if where is not None:
            matching = version.matching_products(where)
        return version.facets(names, np.flatnonzero(matching))


def _check_k(k: int) -> None:
    if not 1 <= k <= MAX_K:
        raise QueryError(f"k is {k}: must be between 1 and {MAX_K:,}")
