"""What routes use: the indexes by name, and everything that the requests share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import quote, urlencode

from fastapi import Depends, Request
from fastapi import Path as PathParameter

from indexing.attributes.columns import Known
from search.engine import SearchEngine
from search.facets import FacetCount
from search.hits import Hit
from search.server.errors import not_found
from search.server.feedback import FeedbackFile, RecentQueries
from search.server.metrics import Metrics
from search.server.pool import BoundedPool
from search.server.schemas import (
    FacetValue,
    Filled,
    FoundProduct,
    IndexInfo,
    PriceRange,
    ProductAnswer,
    ProductPicture,
)
from search.server.settings import Settings
from search.server.thumbnails import Size, Thumbnails
from search.version import Version

DEFAULT_SIZE: Size = 320
HASH = 16  # characters of a picture's SHA-256 that stand in URLs


class Picture(NamedTuple):
    """A picture of a product; without a path where it is not on this machine."""

    path: Path | None
    sha256: str
    role: str


@dataclass(frozen=True)
class Services:
    """What the requests of one app share."""

    engines: Mapping[str, SearchEngine]
    settings: Settings
    metrics: Metrics
    searches: BoundedPool
    pictures: BoundedPool
    thumbnails: Thumbnails
    feedback: FeedbackFile | None
    recent: RecentQueries = field(default_factory=RecentQueries)


async def _services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


Shared = Annotated[Services, Depends(_services)]


@dataclass(frozen=True)
class ServedVersion:
    """One version of an index under the name that the server gives it."""

    name: str
    engine: SearchEngine
    version: Version

    @classmethod
    def of(cls, name: str, services: Services) -> ServedVersion:
        """The newest one of an index that there is, see `IndexName`."""
        engine = services.engines[name]
        return cls(name, engine, engine.current())

    @property
    def number(self) -> int:
        return self.version.index.manifest.version

    def info(self) -> IndexInfo:
        index = self.version.index
        prices = self.version.prices(slice(None))
        return IndexInfo(
            name=self.name,
            version=self.number,
            products=len(index.products),
            images=len(index.images),
            encoder=Path(index.manifest.encoder.name).name,  # may be a folder: nobody's business
            attributes=list(index.attributes),
            fields=list(index.products.names()),
            price=price_range(prices),
        )

    def row_of(self, product_id: str) -> int:
        """Raises ApiError for an id that is not in the index."""
        try:
            return self.version.index.products.row_of(product_id)
        except KeyError:
            raise not_found("there is no product of this id in the index") from None

    def pictures(self, row: int) -> list[Picture]:
        """A product's pictures, the main one first."""
        images = self.version.index.images
        return [
            Picture(images.path(own), images.sha256_of(own), images.role(own))
            for own in self.version.pictures(row)
        ]

    def thumbnail(self, product_id: str, number: int, picture: Picture) -> str | None:
        """The URL of a picture, by its number; None where it is not on this machine."""
        if picture.path is None:
            return None
        query = urlencode(
            {"id": product_id, "n": number, "size": DEFAULT_SIZE, "v": picture.sha256[:HASH]},
            quote_via=quote,
        )
        return f"/v1/indexes/{self.name}/image?{query}"

    def found(self, hit: Hit, rank: int) -> FoundProduct:
        pictures = self.pictures(self.row_of(hit.product_id))
        price, currency = hit.fields.get("price"), hit.fields.get("currency")
        return FoundProduct(
            rank=rank,
            product_id=hit.product_id,
            score=hit.score,
            title=str(hit.fields.get("title", "")),
            price=price if isinstance(price, float) else None,
            currency=None if currency is None else str(currency),
            thumbnail=self.thumbnail(hit.product_id, 0, pictures[0]),
            fields=hit.fields,
            filled=filled_of(hit.filled),
            duplicates=list(hit.duplicates),
        )

    def product(self, product_id: str) -> ProductAnswer:
        """Raises ApiError for an id that is not in the index."""
        row = self.row_of(product_id)
        index = self.version.index
        known = {name: own for name, own in index.known(row).items() if own.source == "filled"}
        return ProductAnswer(
            product_id=product_id,
            fields=index.products.fields(row),
            filled=filled_of(known),
            images=[
                ProductPicture(
                    thumbnail=self.thumbnail(product_id, number, picture), role=picture.role
                )
                for number, picture in enumerate(self.pictures(row))
            ],
        )


async def _served(
    name: Annotated[str, PathParameter(description="As in /v1/indexes.", max_length=100)],
    services: Shared,
) -> str:
    if name not in services.engines:
        raise not_found("there is no index of this name: see /v1/indexes")
    return name


# The name of an index that there is.
IndexName = Annotated[str, Depends(_served)]


def price_range(prices: tuple[float, float] | None) -> PriceRange | None:
    return None if prices is None else PriceRange(min=prices[0], max=prices[1])


def filled_of(known: Mapping[str, Known]) -> dict[str, Filled]:
    return {name: Filled(value=own.value, confidence=own.confidence) for name, own in known.items()}


def facets_of(counts: Mapping[str, Iterable[FacetCount]]) -> dict[str, list[FacetValue]]:
    return {
        name: [
            FacetValue(value=found.value, count=found.count, filled=found.filled)
            for found in values
        ]
        for name, values in counts.items()
    }
