"""A catalog, read once and put on disk as tables: it may be larger than memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from indexing.catalog import Catalog, Reject
from indexing.catalog.product import ProductImage
from indexing.table import IMAGE_SCHEMA, PRODUCT_SCHEMA, product_batch

ROWS = 4096  # rows that are in memory at once

_IMAGES = pa.schema([field for field in IMAGE_SCHEMA if field.name not in ("sha256", "phash")])


@dataclass(frozen=True)
class Spool:
    """Products on disk, in the order of the catalog, and all their pictures."""

    products: Path  # parquet, PRODUCT_SCHEMA
    product_rows: NDArray[np.int64]  # for each product the catalog's row where it begins
    images: pa.Table  # IMAGE_SCHEMA without the hashes; `product` is a row of `products`

    def pictures(self) -> Iterator[ProductImage]:
        """The pictures, in the order of `images`."""
        images = self.images.select(["location", "path", "role"])
        for batch in images.to_batches(max_chunksize=ROWS):
            columns = (column.to_pylist() for column in batch.columns)
            for location, path, role in zip(*columns, strict=True):
                yield ProductImage(location=location, path=path, role=role)

    def ids(self) -> pa.ChunkedArray:
        """The products' ids."""
        return pq.read_table(self.products, columns=["id"])["id"]

    def product_batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The products, some at a time, with the number of the first of them."""
        first = 0
        for batch in pq.ParquetFile(self.products).iter_batches(batch_size=ROWS):
            yield first, batch
            first += batch.num_rows


def spool(catalog: Catalog, folder: Path, on_reject: Callable[[Reject], None]) -> Spool:
    """Read all of `catalog` into files of `folder`; what it rejects goes to `on_reject`."""
    products, images = folder / "products.parquet", folder / "images.parquet"
    product_rows = array("q")
    with (
        pq.ParquetWriter(products, PRODUCT_SCHEMA) as product_writer,
        pq.ParquetWriter(images, _IMAGES) as image_writer,
    ):
        records = catalog.read(on_reject)
        while chunk := list(islice(records, ROWS)):
            first = len(product_rows)
            product_writer.write_batch(product_batch(product for _, product in chunk))
            image_rows = [
                _image_row(number, image)
                for number, (_, product) in enumerate(chunk, first)
                for image in product.images
            ]
            image_writer.write_batch(pa.RecordBatch.from_pylist(image_rows, schema=_IMAGES))
            product_rows.extend(row for row, _ in chunk)
    return Spool(products, np.array(product_rows, np.int64), pq.read_table(images))


def _image_row(product: int, image: ProductImage) -> dict[str, object]:
    # A path that is not UTF-8 cannot be stored: it becomes one that does not exist, and the
    # picture a reject that names it.
    path = image.path and os.fsencode(image.path).decode("utf-8", "replace")
    return {"product": product, "location": image.location, "path": path, "role": image.role}
