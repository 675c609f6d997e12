"""What a search gives back: products in order, and how sure it is of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexing.attributes.columns import Known
from search.facets import FacetCount, Proposal


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
    duplicates: tuple[str, ...] = ()  # ids of the near-duplicates that this one stands for
    filled: dict[str, Known] = field(default_factory=dict)  # attributes the merchant left open

    def to_json(self) -> dict[str, Any]:
        """What the command line prints and the server sends: all but the picture's file."""
        return {
            "rank": self.rank,
            "product_id": self.product_id,
            "score": self.score,
            "match": self.match,
            "image": self.image,
            "duplicates": list(self.duplicates),
            "fields": self.fields,
            "filled": {
                name: {"value": known.value, "confidence": known.confidence}
                for name, known in self.filled.items()
            },
        }


class Answers(list[Hit]):
    """The hits of a query, best first, and whether the catalog has what was asked for.

    Attributes:
        match_probability: That it has, by the index's calibration; None where that says
            nothing of such a query (see indexing/match_fit.py).
        good_match: Whether the probability reaches the threshold at which 95% of the queries
            that are said to have a match have one; None where there is no such threshold.
        facets: For each attribute that was asked for, how often its values are among the first
            products, see `SearchEngine.search`.
        prices: The lowest and the highest price among these; None where it was not asked for or
            none has a price.
        proposals: Categories that the text lets expect, the likeliest first, at most three, of
            those that products have; none where that is not sure.
    """

    def __init__(
        self,
        hits: Iterable[Hit] = (),
        match_probability: float | None = None,
        good_match: bool | None = None,
        facets: dict[str, list[FacetCount]] | None = None,
        prices: tuple[float, float] | None = None,
        proposals: Iterable[Proposal] = (),
    ) -> None:
        super().__init__(hits)
        self.match_probability = match_probability
        self.good_match = good_match
        self.facets = facets or {}
        self.prices = prices
        self.proposals = list(proposals)
