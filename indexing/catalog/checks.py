"""A draft to a product, or the first reason why it gives none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from indexing.catalog.drafts import Draft, Picture
from indexing.catalog.locations import ImageRoot, LocationError
from indexing.catalog.product import Product, ProductImage
from indexing.catalog.rejects import RowError
from indexing.catalog.values import as_attribute, as_id, as_price, as_text


def checked_product(draft: Draft, root: ImageRoot) -> tuple[Product, list[RowError]]:
    """The product of a draft, and its pictures that are refused where others are left.

    The first picture of a product is its main one. Raises RowError.
    """
    product_id = as_id(draft.id)
    price, currency = as_price(draft.price)
    attributes = {name: as_attribute(name, value) for name, value in draft.attributes.items()}
    images, refused = _images(_pictures(draft, product_id, root), root)
    if not images:
        if not refused:
            raise RowError("image", None, "the row names no picture")
        first = refused[0]
        others = f" (and so on for all {len(refused)} pictures)" if len(refused) > 1 else ""
        raise RowError(first.field, first.value, first.reason + others)
    try:
        product = Product(
            id=product_id,
            title=as_text("title", draft.title),
            description=as_text("description", draft.description, "\n"),
            brand=as_text("brand", draft.brand),
            category=as_text("category", draft.category, " > "),
            price=price,
            currency=currency or as_text("currency", draft.currency),
            availability=as_text("availability", draft.availability),
            attributes={name: text for name, text in attributes.items() if text},
            images=images,
        )
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        field = ".".join(map(str, first_error["loc"]))
        raise RowError(field, first_error["input"], first_error["msg"]) from error
    return product, refused


def _pictures(draft: Draft, product_id: str, root: ImageRoot) -> list[Picture]:
    if draft.pictures is not None:
        return draft.pictures
    try:
        return list(map(Picture, root.find(product_id)))
    except LocationError as error:
        raise RowError("image", product_id, str(error)) from error
    except OSError as error:
        raise RowError("image", product_id, f"cannot be read ({error.strerror})") from error


def _images(
    pictures: Iterable[Picture], root: ImageRoot
) -> tuple[tuple[ProductImage, ...], list[RowError]]:
    """The pictures that may be used, the main one first, and those that are refused."""
    kept: list[tuple[str, Path | None]] = []
    refused: list[RowError] = []
    seen: set[str] = set()
    main: tuple[str, Path | None] | None = None
    for location, is_main in pictures:
        if not isinstance(location, str):
            refused.append(RowError("image", location, "a picture location must be text"))
            continue
        if not location or location in seen:
            continue
        seen.add(location)
        try:
            found = location, root.locate(location)
        except LocationError as error:
            refused.append(RowError("image", location, str(error)))
            continue
        if is_main and main is None:
            main = found
            kept.insert(0, found)
        else:
            kept.append(found)
    return tuple(
        ProductImage(location=location, role="additional" if i else "main", path=path)
        for i, (location, path) in enumerate(kept)
    ), refused
