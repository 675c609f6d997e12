"""A catalog to validated products: rows are drafted by a profile, checked, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from indexing.catalog.drafts import Cells, Draft, Picture
from indexing.catalog.locations import ImageRoot, LocationError
from indexing.catalog.product import Product, ProductImage
from indexing.catalog.profiles import PROFILES, merge_rows
from indexing.catalog.rows import Reject, Row, RowError, Scope, Table
from indexing.catalog.values import as_attribute, as_currency, as_id, as_price, as_text, is_empty
from indexing.errors import DuplicateIdError
from indexing.messages import printable, shown

OnDuplicate = Literal["error", "first", "last"]
Refusal = tuple[Scope, RowError]


@dataclass
class Counts:
    """What became of the rows read so far: rows == products + merged + rejected.

    `merged` rows belong to the product of a row before them; `images_rejected` and
    `fields_rejected` count what was refused of products that were kept.
    """

    rows: int = 0
    products: int = 0
    merged: int = 0
    rejected: int = 0
    images_rejected: int = 0
    fields_rejected: int = 0


class _Outcome(NamedTuple):
    """What one or more rows gave: a product and what was refused of it, or one reject."""

    row: int
    rows: int
    product: Product | None
    rejects: list[Reject]


class Catalog:
    """The products of a catalog. Each pass over them reads the file again, row by row.

    `profile` is the kind of catalog that was recognised, `counts` belongs to the latest
    pass and is final at its end. Reading raises CatalogError where the file turns out to
    be damaged, and DuplicateIdError.
    """

    def __init__(
        self,
        path: Path,
        profile: str,
        table: Table,
        root: ImageRoot,
        mapping: Mapping[str, str],
        on_duplicate: OnDuplicate,
        on_reject: Callable[[Reject], None] | None,
    ) -> None:
        self.path = path
        self.profile = profile
        self.images_root = root.folder
        self.counts = Counts()
        self._reader = PROFILES[profile]
        self._table = table
        self._root = root
        self._mapping = mapping
        self._on_duplicate = on_duplicate
        self._on_reject = on_reject

    def __iter__(self) -> Iterator[Product]:
        return (product for _, product in self.read())

    def read(
        self, on_reject: Callable[[Reject], None] | None = None
    ) -> Iterator[tuple[int, Product]]:
        """Yields each product with the number of its first row.

        What is refused goes to `on_reject`, and to that of the constructor.
        """
        listeners = [listener for listener in (self._on_reject, on_reject) if listener]
        counts = self.counts = Counts()
        # Only a look at all rows tells which of two is the last.
        wanted = self._last_rows() if self._on_duplicate == "last" else {}
        for outcome in self._outcomes():
            product, rejects = outcome.product, outcome.rejects
            if product is not None:
                row = wanted.setdefault(product.id, outcome.row)
                if row != outcome.row:
                    rejects = [self._duplicate(product.id, row, outcome.row)]
                    product = None
            counts.rows += outcome.rows
            counts.merged += outcome.rows - 1
            counts.products += product is not None
            counts.rejected += product is None
            counts.images_rejected += sum(reject.scope == "image" for reject in rejects)
            counts.fields_rejected += sum(reject.scope == "field" for reject in rejects)
            for reject in rejects:
                for listener in listeners:
                    listener(reject)
            if product is not None:
                yield outcome.row, product

    def _duplicate(self, product_id: str, kept: int, row: int) -> Reject:
        if self._on_duplicate == "error":
            raise DuplicateIdError(
                f"{shown(self.path)}: rows {kept} and {row} both have the id "
                f"'{printable(product_id)}'; make ids unique, or keep one row of each with "
                "--on-duplicate first|last"
            )
        shown_id = printable(product_id)
        return Reject(row, shown_id, "id", shown_id, f"duplicate id; row {kept} is kept")

    def _last_rows(self) -> dict[str, int]:
        products = ((outcome.product, outcome.row) for outcome in self._outcomes())
        return {product.id: row for product, row in products if product is not None}

    def _outcomes(self) -> Iterator[_Outcome]:
        return map(self._outcome, self._groups())

    def _outcome(self, rows: list[Row]) -> _Outcome:
        first = rows[0]
        product: Product | None = None
        product_id: str | None = None
        refused: list[Refusal]
        try:
            if first.problem:
                raise first.problem
            cells = first.cells
            if self._reader.one_product_spans_rows:
                cells = merge_rows([row.cells for row in rows], self._mapping)
            draft = self._reader.draft(Cells(cells, self._mapping))
            product_id = None if is_empty(draft.id) else printable(draft.id)
            product, refused = checked_product(draft, self._root)
        except RowError as error:
            refused = [("row", error)]
        rejects = [
            Reject(
                row=first.number,
                id=product_id,
                field=printable(error.field),
                value=printable(error.value),
                reason=printable(error.reason),
                scope=scope,
            )
            for scope, error in refused
        ]
        return _Outcome(first.number, len(rows), product, rejects)

    def _groups(self) -> Iterator[list[Row]]:
        """Rows that make one product: each alone, or neighbours that share an id."""
        group: list[Row] = []
        shared: object = None
        for row in self._table.rows():
            if row.problem or not self._reader.one_product_spans_rows:
                yield [row]
                continue
            row_id = Cells(row.cells, self._mapping).id(*self._reader.id)
            if group and (row_id != shared or is_empty(row_id)):
                yield group
                group = []
            group.append(row)
            shared = row_id
        if group:
            yield group


def checked_product(draft: Draft, root: ImageRoot) -> tuple[Product, list[Refusal]]:
    """The product of a draft, and its pictures and fields that are refused.

    The first picture of a product is its main one. A price, a currency or an attribute
    that cannot be read costs itself and not the product. Raises RowError.
    """
    product_id = as_id(draft.id)
    images, refused_images = _images(_pictures(draft, product_id, root), root)
    if not images:
        if not refused_images:
            raise RowError("image", None, "the row names no picture")
        first = refused_images[0]
        number = len(refused_images)
        others = f" (and so on for all {number} pictures)" if number > 1 else ""
        raise RowError(first.field, first.value, first.reason + others)
    price, currency, refused_fields = _price(draft)
    attributes, refused_attributes = _attributes(draft.attributes)
    try:
        product = Product(
            id=product_id,
            title=as_text("title", draft.title),
            description=as_text("description", draft.description, "\n"),
            brand=as_text("brand", draft.brand),
            category=as_text("category", draft.category, " > "),
            price=price,
            currency=currency,
            availability=as_text("availability", draft.availability),
            attributes=attributes,
            images=images,
        )
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        field = ".".join(map(str, first_error["loc"]))
        raise RowError(field, first_error["input"], first_error["msg"]) from error
    refused: list[Refusal] = [("image", error) for error in refused_images]
    refused += [("field", error) for error in (*refused_fields, *refused_attributes)]
    return product, refused


def _price(draft: Draft) -> tuple[float | None, str, list[RowError]]:
    """Amount, currency, and those of both that cannot be read."""
    amount, currency, refused = None, "", []
    try:
        amount, currency = as_price(draft.price)
    except RowError as error:
        refused.append(error)
    try:
        currency = currency or as_currency(draft.currency)
    except RowError as error:
        refused.append(error)
    return amount, currency, refused


def _attributes(cells: Mapping[str, Any]) -> tuple[dict[str, str], list[RowError]]:
    """The attributes that say something, and those that cannot be read."""
    attributes: dict[str, str] = {}
    refused = []
    for column, value in cells.items():
        try:
            name, text = as_text("the name of an attribute", column), as_attribute(column, value)
        except RowError as error:
            refused.append(RowError(column, error.value, error.reason))
            continue
        if text:
            attributes.setdefault(name, text)
    return attributes, refused


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
