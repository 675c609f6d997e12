"""The record that every stage passes on: a product and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_ID_LENGTH = 512
MAX_TEXT_LENGTH = 100_000
MAX_CURRENCY_LENGTH = 8

Id = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_ID_LENGTH)
]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_LENGTH)]
Role = Literal["main", "additional"]


class ProductImage(BaseModel):
    """One picture of a product.

    `location` is what the catalog says (a relative path or a URL) and what answers
    report; `path` is the file it was resolved to, absent for a URL.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    location: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    role: Role = "main"
    path: Path | None = None


class Product(BaseModel):
    """One product as the merchant describes it; `id` is the merchant's own string."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Id
    title: Text = ""
    description: Text = ""
    brand: Text = ""
    category: Text = ""
    price: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    currency: Annotated[str, StringConstraints(max_length=MAX_CURRENCY_LENGTH)] = ""
    availability: Annotated[str, StringConstraints(max_length=64)] = ""
    attributes: dict[str, Text] = Field(default_factory=dict)
    images: Annotated[tuple[ProductImage, ...], Field(min_length=1)]
