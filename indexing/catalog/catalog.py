"""A catalog to validated products: rows are drafted by a profile, checked, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from indexing.catalog.checks import checked_product
from indexing.catalog.drafts import Cells
from indexing.catalog.files import shown
from indexing.catalog.locations import ImageRoot
from indexing.catalog.product import Product
from indexing.catalog.profiles import PROFILES
from indexing.catalog.rejects import Reject, RowError, printable
from indexing.catalog.rows import Row, Table
from indexing.catalog.shopify import merge_rows
from indexing.catalog.values import is_empty
from indexing.errors import DuplicateIdError

OnDuplicate = Literal["error", "first", "last"]


@dataclass
class Counts:
    """What became of the rows read so far: rows == products + merged + rejected.

    `merged` rows belong to the product of a row before them; `images_rejected` counts
    refused pictures of products that were kept.
    """

    rows: int = 0
    products: int = 0
    merged: int = 0
    rejected: int = 0
    images_rejected: int = 0


class _Outcome(NamedTuple):
    """What one or more rows gave: a product and refused pictures, or one reject."""

    row: int
    rows: int
    product: Product | None
    rejects: list[Reject]


class Catalog:
    """The products of a catalog. Each iteration reads the file again, row by row.

    `profile` is the kind of catalog that was recognised, `counts` belongs to the latest
    iteration and is final at its end. Iterating raises CatalogError where the file turns
    out to be damaged, and DuplicateIdError.
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
        self.on_reject = on_reject

    def __iter__(self) -> Iterator[Product]:
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
            if self.on_reject is not None:
                for reject in rejects:
                    self.on_reject(reject)
            if product is not None:
                yield product

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
        scope: Literal["row", "image"] = "image"
        try:
            if first.problem:
                raise first.problem
            cells = first.cells
            if self._reader.one_product_spans_rows:
                cells = merge_rows([row.cells for row in rows], self._mapping)
            draft = self._reader.draft(Cells(cells, self._mapping))
            product_id = None if is_empty(draft.id) else printable(draft.id)
            product, errors = checked_product(draft, self._root)
        except RowError as error:
            scope, errors = "row", [error]
        rejects = [
            Reject(
                row=first.number,
                id=product_id,
                field=printable(error.field),
                value=printable(error.value),
                reason=printable(error.reason),
                scope=scope,
            )
            for error in errors
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
