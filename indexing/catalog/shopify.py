"""Shopify's product export, old and new columns: rows that share a handle are a product."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from indexing.catalog.drafts import Cells, Draft, column_key
from indexing.catalog.values import as_text, is_empty, strip_html

_POSITIONS = ("image_position",)
_IMAGES = ("image_src", "product_image_url")
_VARIANT_IMAGES = ("variant_image", "variant_image_url")
# A product has one of these, and blank ones carry down; all others list their values.
_ONE_A_PRODUCT = frozenset(
    {
        *("handle", "url_handle", "title", "body_(html)", "description", "vendor", "type"),
        *("product_category", "tags", "variant_price", "price", "status"),
    }
)


def shopify(cells: Cells) -> Draft:
    """One product, of rows that `merge_rows` made one; the price is the first variant's."""
    body = cells.take("description", "body_(html)", "description")
    return Draft(
        id=cells.id("handle", "url_handle"),
        title=cells.take("title", "title"),
        description=strip_html(body) if isinstance(body, str) else body,
        brand=cells.take("brand", "vendor"),
        category=cells.take("category", "product_category", "type"),
        price=cells.take("price", "variant_price", "price"),
        currency=cells.take("currency"),
        availability=cells.take("availability"),
        pictures=cells.pictures(*_IMAGES, *_VARIANT_IMAGES),
        attributes=cells.rest(*_POSITIONS),
    )


def merge_rows(rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The cells of one product's rows in one: pictures in order of position, the first
    value of what a product has once, and all distinct values of the rest.
    """
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        key = column_key(name)
        filled = [row for row in rows if not is_empty(row.get(name))]
        if key in _IMAGES:
            merged[name] = list(_flat(row[name] for row in sorted(filled, key=_position)))
        elif key in _VARIANT_IMAGES or name == mapping.get("image"):
            merged[name] = list(_flat(row[name] for row in filled))
        elif len(filled) < 2 or key in _ONE_A_PRODUCT or name in mapping.values():
            merged[name] = filled[0][name] if filled else ""
        else:
            merged[name] = as_text(name, list(_flat(row[name] for row in filled)), ", ")
    return merged


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _position(row: Mapping[str, Any]) -> float:
    """The row's image position; those without a number come last, in the file's order."""
    for name, value in row.items():
        if column_key(name) in _POSITIONS:
            try:
                position = float(value)
            except (TypeError, ValueError, OverflowError):
                break
            return position if math.isfinite(position) else math.inf
    return math.inf
