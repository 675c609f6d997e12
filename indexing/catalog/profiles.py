"""The kinds of catalog that are recognised by their columns, and how each is read.

A profile only picks cells: what they hold is checked later, the same way for all.
Column names are compared in one spelling (`drafts.column_key`). Columns that no field
takes become attributes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indexing.catalog.drafts import Cells, Draft, Picture, column_key
from indexing.catalog.rows import RowError
from indexing.catalog.values import as_text, is_empty, strip_html


@dataclass(frozen=True)
class Profile:
    """`marks`: sets of columns, each enough to recognise it. `id`, `images`: where they are.

    One of `id` and one of `images` must be a column; no `images`: looked up by id.
    """

    draft: Callable[[Cells], Draft]
    marks: tuple[frozenset[str], ...]
    id: tuple[str, ...]
    images: tuple[str, ...]
    one_product_spans_rows: bool = False


_GOOGLE_IMAGES = ("image_link", "additional_image_link")
_SHOPIFY_POSITIONS = ("image_position",)
_SHOPIFY_IMAGES = ("image_src", "product_image_url")
_VARIANT_IMAGES = ("variant_image", "variant_image_url")
# A product has one of these, and blank ones carry down; all others list their values.
_ONE_A_PRODUCT = frozenset(
    {
        *("handle", "url_handle", "title", "body_(html)", "description", "vendor", "type"),
        *("product_category", "tags", "variant_price", "price", "status"),
    }
)
_ESCI_IMAGES = ("image", "images", "image_url")
_SCHEMA_IDS = ("sku", "product_id", "@id")
_SCHEMA_TYPES = frozenset(
    {"Product", "ProductGroup", "ProductModel", "IndividualProduct", "SomeProducts"}
)
_GENERIC_IDS = ("id", "sku", "product_id", "item_id", "asin", "article_id", "handle")
_GENERIC_IMAGES = (
    *("image", "images", "image_path", "image_paths", "image_link", "image_links"),
    *("image_url", "image_urls", "main_image", "picture", "pictures", "photo", "photos"),
    *("img", "image_file", "image_filename", "file_name", "filename"),
    *("additional_image", "additional_images", "additional_image_link"),
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
        pictures=cells.pictures(*_SHOPIFY_IMAGES, *_VARIANT_IMAGES),
        attributes=cells.rest(*_SHOPIFY_POSITIONS),
    )


def merge_rows(rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The cells of one product's rows in one: pictures in order of position, the first
    value of what a product has once, and all distinct values of the rest.
    """
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        key = column_key(name)
        filled = [row for row in rows if not is_empty(row.get(name))]
        if key in _SHOPIFY_IMAGES:
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
        if column_key(name) in _SHOPIFY_POSITIONS:
            try:
                position = float(value)
            except (TypeError, ValueError, OverflowError):
                break
            return position if math.isfinite(position) else math.inf
    return math.inf


def google(cells: Cells) -> Draft:
    """Google Merchant feed; `price` is the list price, sale_price an attribute."""
    return Draft(
        id=cells.id("id"),
        title=cells.take("title", "title"),
        description=cells.take("description", "description", "summary"),
        brand=cells.take("brand", "brand"),
        category=cells.take("category", "product_type", "google_product_category"),
        price=cells.take("price", "price"),
        currency=cells.take("currency"),
        availability=cells.take("availability", "availability"),
        pictures=cells.pictures(*_GOOGLE_IMAGES),
        attributes=cells.rest(),
    )


def esci(cells: Cells) -> Draft:
    """ESCI products; without a picture column, pictures are looked up by product_id.

    The table lists a product once per locale: one product_id in two locales is a
    duplicate id.
    """
    description = cells.take("description", "product_description")
    return Draft(
        id=cells.id("product_id"),
        title=cells.take("title", "product_title"),
        description=strip_html(description) if isinstance(description, str) else description,
        brand=cells.take("brand", "product_brand"),
        category=cells.take("category", "product_category"),
        price=cells.take("price", "product_price"),
        currency=cells.take("currency"),
        availability=cells.take("availability"),
        pictures=cells.pictures(*_ESCI_IMAGES) or None,
        attributes=cells.rest(),
    )


def amazon_reviews(cells: Cells) -> Draft:
    """Amazon-Reviews-2023 metadata; each of `details` becomes an attribute."""
    details = cells.take("details", "details")
    price = cells.take("price", "price")
    return Draft(
        id=cells.id("parent_asin"),
        title=cells.take("title", "title"),
        description=cells.take("description", "description", "features"),
        brand=cells.take("brand", "store"),
        category=cells.take("category", "main_category"),
        price=None if price in ("None", "—") else price,
        currency=cells.take("currency"),
        availability=cells.take("availability"),
        pictures=_amazon_pictures(cells.take("image", "images")),
        attributes={**_amazon_details(details), **cells.rest()},
    )


def _amazon_pictures(images: Any) -> list[Picture]:
    if isinstance(images, dict):  # a mapping of lists, as the Parquet files have it
        columns = {key: value for key, value in images.items() if isinstance(value, list)}
        length = max(map(len, columns.values()), default=0)
        images = [
            {key: value[i] for key, value in columns.items() if i < len(value)}
            for i in range(length)
        ]
    if not isinstance(images, list):
        return [] if is_empty(images) else [Picture(images)]
    pictures = []
    for image in images:
        found = image
        if isinstance(image, dict):
            sizes = (image.get(key) for key in ("hi_res", "large", "thumb"))
            found = next((size for size in sizes if not is_empty(size)), None)
        if not is_empty(found):
            main = isinstance(image, dict) and image.get("variant") == "MAIN"
            pictures.append(Picture(found, main))
    return pictures


def _amazon_details(details: Any) -> dict[str, Any]:
    if isinstance(details, str):
        try:
            details = json.loads(details)
        except (ValueError, RecursionError) as error:
            raise RowError("details", details, "details is not a JSON object") from error
    return details if isinstance(details, dict) else {}


def schema_org(cells: Cells) -> Draft:
    """schema.org Product in JSON-LD; `sku` or `productID` is the id before `@id`."""
    kinds = cells.take("type", "@type")
    names = [kind for kind in _list(kinds) if isinstance(kind, str)]
    if kinds is not None and not any(re.split("[/:]", name)[-1] in _SCHEMA_TYPES for name in names):
        raise RowError("@type", kinds, "not a schema.org Product")
    brand = cells.take("brand", "brand", "manufacturer")
    offers = cells.take("offers", "offers")
    offer = next((offer for offer in _list(offers) if isinstance(offer, dict)), {})
    more = {
        entry["name"]: entry.get("value")
        for entry in _list(cells.take("additional_property", "additional_property"))
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }
    return Draft(
        id=cells.id(*_SCHEMA_IDS),
        title=cells.take("title", "name"),
        description=cells.take("description", "description"),
        brand=brand.get("name") if isinstance(brand, dict) else brand,
        category=cells.take("category", "category"),
        price=_first(cells.take("price"), offer.get("price"), offer.get("lowPrice")),
        currency=_first(cells.take("currency"), offer.get("priceCurrency")),
        availability=_first(cells.take("availability"), _bare(offer.get("availability"))),
        pictures=cells.pictures("image"),
        attributes={**more, **cells.rest("@context")},
    )


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _first(*values: Any) -> Any:
    return next((value for value in values if not is_empty(value)), None)


def _bare(value: Any) -> Any:
    """ "https://schema.org/InStock" -> "InStock"."""
    return value.rpartition("/")[2] if isinstance(value, str) else value


def generic(cells: Cells) -> Draft:
    """Any table with an id, pictures and what else goes by a common name."""
    return Draft(
        id=cells.id(*_GENERIC_IDS),
        title=cells.take("title", "title", "name", "product_title", "product_name"),
        description=cells.take("description", "description", "product_description"),
        brand=cells.take("brand", "brand", "vendor", "manufacturer"),
        category=cells.take("category", "category", "product_type", "product_category"),
        price=cells.take("price", "price"),
        currency=cells.take("currency", "currency", "price_currency"),
        availability=cells.take("availability", "availability", "stock_status"),
        pictures=cells.pictures(*_GENERIC_IMAGES),
        attributes=cells.rest(),
    )


_GENERIC = Profile(generic, (), _GENERIC_IDS, _GENERIC_IMAGES)

# In the order in which they are tried.
PROFILES = {
    "shopify": Profile(
        shopify,
        tuple(
            frozenset(mark)
            for mark in (
                {"handle", "image_src"},
                {"handle", "variant_sku"},
                {"handle", "body_(html)"},
                {"url_handle", "product_image_url"},
                {"url_handle", "title"},
            )
        ),
        ("handle", "url_handle"),
        _SHOPIFY_IMAGES,
        one_product_spans_rows=True,
    ),
    "amazon_reviews_2023": Profile(
        amazon_reviews, (frozenset({"parent_asin"}),), ("parent_asin",), ("images",)
    ),
    "esci": Profile(esci, (frozenset({"product_id", "product_title"}),), ("product_id",), ()),
    "schema_org": Profile(
        schema_org, (frozenset({"@type"}), frozenset({"@context"})), _SCHEMA_IDS, ("image",)
    ),
    "google": Profile(google, (frozenset({"id", "image_link"}),), ("id",), _GOOGLE_IMAGES),
    "generic": _GENERIC,
    "folder": _GENERIC,  # what the reader of folders gives
}


def recognise(columns: Iterable[str]) -> str:
    """The name of the first profile whose columns are among `columns`."""
    keys = frozenset(map(column_key, columns))
    matching = (
        name for name, profile in PROFILES.items() if any(mark <= keys for mark in profile.marks)
    )
    return next(matching, "generic")
