"""What goes over the wire. The client reads answers with the same models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from indexing.catalog.product import MAX_ID_LENGTH

MAX_K = 200
MAX_DEPTH = 1_000  # k + offset
MAX_TEXT = 2_000  # characters
MAX_WHERE = 5_000
MAX_MINUS = 20
MAX_NAMES = 50  # attributes or facets
DEFAULT_K = 24

Action = Literal["click", "cart", "buy", "bad"]
ProductId = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
K = Annotated[int, Field(ge=1, le=MAX_K)]
Offset = Annotated[int, Field(ge=0, le=MAX_DEPTH - 1)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class PriceRange(_Answer):
    """The lowest and the highest price of some products."""

    min: float
    max: float


class IndexInfo(_Answer):
    """An index that can be searched.

    Attributes:
        attributes: Names that `facets` and `attribute` know.
        fields: Names that `where` knows.
    """

    name: str
    version: int
    products: int
    images: int
    encoder: str
    attributes: list[str]
    fields: list[str]
    price: PriceRange | None


class IndexList(_Answer):
    """All indexes; `feedback` says whether the server takes it."""

    indexes: list[IndexInfo]
    feedback: bool


class Filled(_Answer):
    """A value that the merchant did not give and a classifier is sure of."""

    value: str
    confidence: float


class FacetValue(_Answer):
    """How many products have a value, and of how many of them it was filled in."""

    value: str
    count: int
    filled: int


class Proposed(_Answer):
    """A category that a text lets expect, to be asked for as `attribute=value`."""

    attribute: str
    value: str
    confidence: float


class Milliseconds(_Answer):
    """Time that an answer took; `model` is the part in the encoder, with those that shared it."""

    total: float
    model: float


class FoundProduct(_Answer):
    """A product of an answer.

    Attributes:
        rank: From 1.
        score: Cosine of the query and the product's best picture.
        thumbnail: Where its main picture is; None where that is not on the server.
        fields: What the merchant says of it.
        duplicates: Ids of near-duplicates that it stands for.
    """

    rank: int
    product_id: str
    score: float
    title: str
    price: float | None
    currency: str | None
    thumbnail: str | None
    fields: dict[str, str | float]
    filled: dict[str, Filled]
    duplicates: list[str]


class Word(_Answer):
    """A word of a text.

    Attributes:
        kept: Whether the encoder reads it to the end; None where it drops no words.
        weight: How much it counts; None where that is not known.
    """

    text: str
    kept: bool | None = None
    weight: float | None = None


class SearchAnswer(_Answer):
    """Products, best first.

    Attributes:
        request_id: What feedback names the query by.
        match_probability: That the shop has what was asked for; None where nothing tells.
        good_match: Whether that is enough; None where nothing tells.
        facets, price: Of the first 200 products.
        proposals: Categories that the text lets expect, the likeliest first.
        words: Of the text, where `explain` asks for them and the encoder drops words.
    """

    request_id: str
    index: str
    version: int
    took_ms: Milliseconds
    match_probability: float | None
    good_match: bool | None
    hits: list[FoundProduct]
    facets: dict[str, list[FacetValue]]
    price: PriceRange | None
    proposals: list[Proposed] = []
    words: list[Word] | None = None


class ProductPicture(_Answer):
    """A picture of a product; no thumbnail where it is not on the server."""

    thumbnail: str | None
    role: str


class ProductAnswer(_Answer):
    """All that an index knows of a product."""

    product_id: str
    fields: dict[str, str | float]
    filled: dict[str, Filled]
    images: list[ProductPicture]


class FacetsAnswer(_Answer):
    """The values of attributes among products."""

    facets: dict[str, list[FacetValue]]


class ExplainAnswer(_Answer):
    """Why a product matches.

    Attributes:
        heatmap: A PNG with transparency as a data URL, to lay over the product's main picture.
        score: Cosine of the query and that picture.
    """

    heatmap: str
    words: list[Word]
    score: float


class Feedback(BaseModel):
    """What somebody did with a product of an answer."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "request_id": "0f8fad5bd9cb469fa165c7d2f5f1e3a0",
                "product_id": "DEMO-0007",
                "rank": 1,
                "action": "click",
            }
        },
    )

    request_id: Annotated[str, Field(min_length=1, max_length=64)]
    product_id: ProductId
    rank: Annotated[int, Field(ge=1, le=MAX_DEPTH)]
    action: Action


class Login(BaseModel):
    """The server's token."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"token": "the server's token"}}
    )

    token: Annotated[str, Field(min_length=1, max_length=4_096)]


class ErrorDetail(_Answer):
    """What went wrong; `code` is for programs and `request_id` is in the server's log."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(_Answer):
    """Every answer that is an error."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "example": {
                "error": {
                    "code": "bad_where",
                    "message": "where: unknown field 'colour'; did you mean color? ...",
                    "request_id": "0f8fad5bd9cb469fa165c7d2f5f1e3a0",
                }
            }
        },
    )

    error: ErrorDetail
