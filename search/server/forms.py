"""The form that a search is."""

from __future__ import annotations

from typing import Annotated

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from search.fusion import Fuse
from search.query import Crop
from search.server.schemas import (
    DEFAULT_K,
    MAX_DEPTH,
    MAX_MINUS,
    MAX_NAMES,
    MAX_TEXT,
    MAX_WHERE,
    K,
    Offset,
    ProductId,
)

_Text = Annotated[str, Field(max_length=MAX_TEXT)]


class SearchForm(BaseModel):
    """A query: a picture, a text, a product to start from, or several of these."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"text": "red mug", "where": "price < 50"}}
    )

    image: Annotated[
        UploadFile | None,
        Field(description="A photo: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF; told by its content."),
    ] = None
    like: Annotated[
        ProductId | None,
        Field(description="A product whose main picture is the photo; it is no answer itself."),
    ] = None
    crop: Annotated[
        str | None,
        Field(
            max_length=100,
            description="Part of the photo, x,y,width,height in fractions of its sides.",
            examples=["0.25,0,0.5,1"],
        ),
    ] = None
    text: Annotated[_Text | None, Field(description="Words.", examples=["red mug"])] = None
    minus: Annotated[
        list[_Text],
        Field(max_length=MAX_MINUS, description="Words to turn away from; may be repeated."),
    ] = []
    where: Annotated[
        str | None,
        Field(
            max_length=MAX_WHERE,
            description="A filter: == != < <= > >= in, not in, contains, is null, and, or, not.",
            examples=["price < 50 and color in ['Red', 'Blue']"],
        ),
    ] = None
    attribute: Annotated[
        list[_Text],
        Field(
            max_length=MAX_NAMES,
            description="NAME=VALUE that products should have: those that surely do not come "
            "last; may be repeated.",
            examples=[["color=Red"]],
        ),
    ] = []
    facets: Annotated[
        list[_Text],
        Field(
            max_length=MAX_NAMES,
            description="Attributes whose values are counted among the first 200 products; may "
            "be repeated.",
            examples=[["color"]],
        ),
    ] = []
    k: Annotated[K, Field(description="How many products.")] = DEFAULT_K
    offset: Annotated[
        Offset, Field(description=f"How many to leave out; k + offset <= {MAX_DEPTH:,}.")
    ] = 0
    diversity: Annotated[
        float, Field(ge=0, le=1, description="0: nearest first; 1: as different as can be.")
    ] = 0.0
    fuse: Annotated[
        Fuse, Field(description="A product counts by its best picture, or its two best.")
    ] = "max"
    collapse: Annotated[
        bool, Field(description="Show products with nearly the same main picture once.")
    ] = False
    rerank: Annotated[
        bool, Field(description="Let attributes count for the order, where that helps.")
    ] = True
    explain: Annotated[
        bool, Field(description="Also tell which words of the text the encoder drops.")
    ] = False

    @field_validator("image")
    @classmethod
    def _no_file_chosen(cls, image: UploadFile | None) -> UploadFile | None:
        """Browsers send a form without a file as one that has no name and no bytes."""
        return None if image is not None and not image.filename and not image.size else image

    @model_validator(mode="after")
    def _depth(self) -> SearchForm:
        if self.k + self.offset > MAX_DEPTH:
            raise ValueError(f"k + offset is {self.k + self.offset}: at most {MAX_DEPTH:,}")
        if self.image is not None and self.like is not None:
            raise ValueError("image and like are both the photo: give one of them")
        if self.crop is not None and self.image is None and self.like is None:
            raise ValueError("crop without a photo: give image or like")
        return self

    def box(self) -> Crop | None:
        """The crop. Raises ValueError for what are not four numbers."""
        if self.crop is None:
            return None
        x, y, width, height = (float(part) for part in self.crop.split(","))
        return x, y, width, height

    @field_validator("crop")
    @classmethod
    def _four_numbers(cls, crop: str | None) -> str | None:
        if crop is not None:
            try:
                _, _, _, _ = (float(part) for part in crop.split(","))
            except ValueError:
                raise ValueError("give four fractions x,y,width,height: 0.5,0,0.5,1") from None
        return crop

    def wishes(self) -> dict[str, str]:
        """Value by attribute."""
        pairs = (pair.partition("=") for pair in self.attribute)
        return {name.strip(): value.strip() for name, _, value in pairs}

    @field_validator("attribute")
    @classmethod
    def _named(cls, attribute: list[str]) -> list[str]:
        names = set()
        for pair in attribute:
            name, _, value = (part.strip() for part in pair.partition("="))
            if not (name and value):
                raise ValueError(f"{pair!r}: give a name and a value, such as color=red")
            if name in names:
                raise ValueError(f"{pair!r}: {name} was given before, give it once")
            names.add(name)
        return attribute


class ExplainForm(SearchForm):
    """A query, and the product that it is compared with."""

    product_id: ProductId
