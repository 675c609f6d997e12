"""The tables of an index folder: product fields, and which picture each vector is of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from indexing.attributes.columns import Columns
from indexing.attributes.vocabulary import ABSTAINED
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
    one that is named like a field of its own is left out.

    Where the merchant gives no value of an attribute, or one that means nothing, one that was
    filled in stands for it in `column`; `fields` are the merchant's own.
    """

    def __init__(self, table: pa.Table, filled: Columns | None = None) -> None:
        """`table`: PRODUCT_SCHEMA. `filled`: of its products, by attribute."""
        self._table = table
        self._filled = filled or {}
        self._columns: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def ids(self) -> list[str]:
        """The merchant's ids, in the order of the catalog."""
        ids: list[str] = self._table["id"].to_pylist()
        return ids

    def id_of(self, row: int) -> str:
        """The merchant's id of one product."""
        return str(self._table["id"][row])

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
        names.update(self._filled)
        return sorted(names.difference(PRODUCT_SCHEMA.names))

    @property
    def table(self) -> pa.Table:
        """All of it, PRODUCT_SCHEMA."""
        return self._table

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
        if name in self._filled:
            column = self._filled[name]
            words = np.array(column.attribute.values, object)
            gaps = column.filled != ABSTAINED
            texts[gaps] = words[column.filled[gaps]]
        return texts


class Images:
    """Which picture each vector is of: row i belongs to vector i."""

    def __init__(self, table: pa.Table) -> None:
        """`table`: IMAGE_SCHEMA, its `product` a row of the product table."""
        self._table = table

    @classmethod
    def concatenated(cls, tables: Sequence[pa.Table], products: Sequence[pa.Table]) -> Images:
        """The pictures of several product tables, numbered as those stand one after another."""
        moved, first = [], 0
        for table, owners in zip(tables, products, strict=True):
            place = table.schema.get_field_index("product")
            rows = pc.add(table["product"], pa.scalar(first, pa.int64()))
            moved.append(table.set_column(place, IMAGE_SCHEMA.field("product"), rows))
            first += owners.num_rows
        return cls(pa.concat_tables(moved))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def product(self) -> NDArray[np.int64]:
        """Row of the product of each picture."""
        rows: NDArray[np.int64] = self._table["product"].to_numpy()
        return rows

    def location(self, row: int) -> str:
        """A picture as the catalog names it."""
        return str(self._table["location"][row])

    def path(self, row: int) -> Path | None:
        """The file of a picture, None for a URL."""
        path = self._table["path"][row].as_py()
        return None if path is None else Path(path)

    def role(self, row: int) -> str:
        """`main` or `additional`."""
        return str(self._table["role"][row])

    def sha256_of(self, row: int) -> str:
        """Of the bytes of one picture, without reading all."""
        return str(self._table["sha256"][row])

    @cached_property
    def main(self) -> NDArray[np.bool_]:
        """Which pictures are their product's main one."""
        main: NDArray[np.bool_] = pc.equal(self._table["role"], "main").to_numpy()
        return main

    @cached_property
    def phash(self) -> NDArray[np.uint64]:
        """The perceptual hash of each picture, see phash.py."""
        hashes: NDArray[np.uint64] = self._table["phash"].to_numpy()
        return hashes

    @cached_property
    def sha256(self) -> list[str]:
        """Of each picture's bytes."""
        hashes: list[str] = self._table["sha256"].to_pylist()
        return hashes

    @property
    def table(self) -> pa.Table:
        """All of it, IMAGE_SCHEMA."""
        return self._table

    def column(self, name: str) -> list[str | None]:
        """One column of IMAGE_SCHEMA, whole."""
        values: list[str | None] = self._table[name].to_pylist()
        return values
