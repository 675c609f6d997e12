"""The tables of an index folder: product fields, and which picture each vector is of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from indexing.catalog.product import Product

TEXT_FIELDS = ("title", "description", "brand", "category", "currency", "availability")

# One row a product, in catalog order. An empty text is stored as null.
PRODUCT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        ("title", pa.string()),
        ("description", pa.string()),
        ("brand", pa.string()),
        ("category", pa.string()),
        ("price", pa.float64()),
        ("currency", pa.string()),
        ("availability", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)

# One row a vector, in the order of the vectors. `product` is a row of the product table.
IMAGE_SCHEMA = pa.schema(
    [
        pa.field("product", pa.int64(), nullable=False),
        pa.field("location", pa.string(), nullable=False),
        ("path", pa.string()),
        pa.field("role", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("phash", pa.uint64(), nullable=False),
    ]
)


def product_batch(products: Iterable[Product]) -> pa.RecordBatch:
    """Products as rows of PRODUCT_SCHEMA."""
    rows = [
        {
            "id": product.id,
            "price": product.price,
            "attributes": [(key, value) for key, value in product.attributes.items() if value],
            **{name: getattr(product, name) or None for name in TEXT_FIELDS},
        }
        for product in products
    ]
    return pa.RecordBatch.from_pylist(rows, schema=PRODUCT_SCHEMA)


class Products:
    """The product fields of an index, by row. Attributes stand beside the other fields;
    one that is named like a field of its own is left out."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._columns: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def ids(self) -> list[str]:
        """The merchant's ids, in the order of the catalog."""
        ids: list[str] = self._table["id"].to_pylist()
        return ids

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {product_id: row for row, product_id in enumerate(self.ids)}

    def row_of(self, product_id: str) -> int:
        """The row of a product. Raises KeyError for an id that is not in the index."""
        return self._rows[product_id]

    def fields(self, row: int) -> dict[str, str | float]:
        """What is known of a product besides its id; empty fields are left out."""
        values = self._table.slice(row, 1).to_pylist()[0]
        attributes = dict(values.pop("attributes") or ())
        del values["id"]
        known = {name: value for name, value in values.items() if value is not None}
        own = set(PRODUCT_SCHEMA.names)
        return known | {name: value for name, value in attributes.items() if name not in own}

    @cached_property
    def _attribute_names(self) -> list[str]:
        names: set[str] = set()
        for chunk in self._table["attributes"].chunks:
            names.update(pc.unique(chunk.keys).to_pylist())
        return sorted(names.difference(PRODUCT_SCHEMA.names))

    def names(self) -> list[str]:
        """The names that `column` knows: the fields in their order, then the attributes."""
        return [
            *(name for name in PRODUCT_SCHEMA.names if name != "attributes"),
            *self._attribute_names,
        ]

    def column(self, name: str) -> NDArray[Any]:
        """One field of all products: float64 with NaN for `price`, else str or None objects.

        Raises KeyError for a name that is not in `names()`.
        """
        if name not in self._columns:
            if name not in self.names():
                raise KeyError(name)
            self._columns[name] = self._read_column(name)
        return self._columns[name]

    def _read_column(self, name: str) -> NDArray[Any]:
        if name == "price":
            prices: NDArray[np.float64] = self._table["price"].to_numpy()
            return prices
        if name in PRODUCT_SCHEMA.names:
            values = self._table[name]
        else:
            values = pc.map_lookup(self._table["attributes"], pa.scalar(name), "first")
        texts = np.empty(len(self), object)
        texts[:] = values.to_pylist()
        return texts


@dataclass(frozen=True)
class Images:
    """Which picture each vector is of; element i of every column belongs to vector i."""

    product: NDArray[np.int64]  # row of the product
    location: list[str]  # as the catalog names it
    path: list[str | None]  # the file, None for a URL
    role: list[str]  # "main" or "additional"
    sha256: list[str]  # of the picture's bytes
    phash: NDArray[np.uint64]  # see indexing/phash.py

    @classmethod
    def from_table(cls, table: pa.Table) -> Images:
        return cls(
            product=table["product"].to_numpy().astype(np.int64),
            location=table["location"].to_pylist(),
            path=table["path"].to_pylist(),
            role=table["role"].to_pylist(),
            sha256=table["sha256"].to_pylist(),
            phash=table["phash"].to_numpy().astype(np.uint64),
        )

    def __len__(self) -> int:
        return len(self.product)
