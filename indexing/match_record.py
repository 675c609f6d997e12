"""What the manifest keeps of how surely an index knows whether it has what is asked for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["image", "text", "image+text"]
MODES: tuple[Mode, ...] = ("image", "text", "image+text")

Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModeRecord(_Frozen):
    """A logistic model of one kind of query, and how good it was on queries it had not seen.

    Each query was asked twice: with its product in the index, and with that product and all
    that are the same (by title, picture or near-duplicate) taken out.

    Attributes:
        queries: How they were made: "further pictures", "crops" or "titles", or crops and
            further pictures "with titles".
        asked: Queries; each asked twice.
        products: Different products among them.
        weights: Of the features of indexing/match.py, in their order.
        bias: Added to the weighted features; the sum is the log-odds of the product being there,
            where as many queries have their product in the index as have not.
        auroc: How well the probability tells a query whose product is there from one whose
            product is not; held out, by product.
        auroc_cosine: The same of the best cosine alone.
        right: Share of the queries with their product in the index whose first answer is it.
        threshold: The probability from which an answer counts as a good match; None where no
            threshold reaches the precision.
        precision: Share of asks whose product is there among those at or above it; held out.
        found: Share of those with their product in the index that are at or above it; held out.
    """

    queries: str
    asked: Annotated[int, Field(ge=1)]
    products: Annotated[int, Field(ge=1)]
    weights: tuple[float, ...]
    bias: float
    auroc: Share
    auroc_cosine: Share
    right: Share
    threshold: Share | None
    precision: Share | None
    found: Share | None


class MatchRecord(_Frozen):
    """The models by kind of query, and why a kind has none."""

    modes: dict[Mode, ModeRecord]
    skipped: dict[Mode, str]
