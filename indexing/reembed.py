"""The products of an index, embedded by another encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexing.attributes.storing import STALE, write_columns
from indexing.catalog import Reject
from indexing.catalog.product import ProductImage
from indexing.committing import file_records, next_segment
from indexing.embed import Progress, VectorCache, embed_pictures
from indexing.errors import IndexFolderError
from indexing.index_types import plan_index
from indexing.manifest import ATTRIBUTES, REJECTS, IndexCounts, SegmentRecord
from indexing.messages import printable
from indexing.models.protocol import Encoder
from indexing.near import main_pictures
from indexing.segment_files import write_merged_tables, write_vectors
from indexing.store import OpenIndex
from indexing.table import Images

MAX_MISSING = 0.05  # share of the pictures that may have become unreadable


def reembed(
    before: OpenIndex, new: Encoder, cache: VectorCache, work: Path, progress: Progress | None
) -> SegmentRecord:
    """Write the products of `before` to the folder `work` as a segment of `new`'s vectors.

    Attributes stay as they are, until a build reads those anew of which the main picture is
    another by now.

    Raises IndexFolderError where more than MAX_MISSING of the pictures cannot be embedded;
    what else cannot be goes to the segment's rejects.
    """
    table = before.images.table
    pictures = [
        ProductImage(location=location, path=path, role=role)
        for location, path, role in zip(
            *(table[name].to_pylist() for name in ("location", "path", "role")), strict=True
        )
    ]
    embedded = embed_pictures(pictures, len(pictures), new, cache, progress=progress)
    if len(embedded.failures) > MAX_MISSING * len(pictures):
        first = min(embedded.failures)
        raise IndexFolderError(
            f"{len(embedded.failures):,} of {len(pictures):,} pictures of {before.folder} cannot "
            f"be embedded, first {pictures[first].location} ({embedded.failures[first]}): restore "
            "them, or build anew with `shoplens index`"
        )
    usable = np.array([key is not None for key in embedded.keys], np.bool_)
    keys = [key for key in embedded.keys if key is not None]
    owners = before.images.product
    alive = np.zeros(len(before.products), np.bool_)
    alive[owners[usable]] = True
    images = table.filter(pa.array(usable))
    replaced = {
        "product": pa.array((np.cumsum(alive) - 1)[owners[usable]]),
        "sha256": pa.array([key.hex() for key in keys], pa.string()),
        "phash": pa.array(cache.gather_hashes(keys), pa.uint64()),
    }
    for name, values in replaced.items():
        images = images.set_column(
            images.schema.get_field_index(name), table.schema.field(name), values
        )
    write_merged_tables(work, before.products.table.filter(pa.array(alive)), images)
    if before.attributes:
        columns = {name: column.take(alive) for name, column in before.attributes.items()}
        same = _mains(before.images, len(alive))[alive] == _mains(Images(images), alive.sum())
        modes = np.where(same, before.modes[alive], STALE).astype(np.int8)
        write_columns(work / ATTRIBUTES, columns, modes)
    with (work / REJECTS).open("w", encoding="utf-8") as rejects:
        for picture, reason in sorted(embedded.failures.items()):
            product = int(owners[picture])
            name, location = before.products.id_of(product), pictures[picture].location
            item = Reject(
                product + 1, printable(name), "images", printable(location), reason, "image"
            )
            rejects.write(item.to_json() + "\n")
    record = write_vectors(work, keys, cache, plan_index(len(keys), new.dim))
    products = int(np.count_nonzero(alive))
    return SegmentRecord(
        name=next_segment(before.folder),
        index=record,
        counts=IndexCounts(
            rows=len(alive),
            products=products,
            merged=0,
            rejected=len(alive) - products,
            images=len(keys),
            images_rejected=len(embedded.failures),
        ),
        removed=0,
        files=file_records(work),
    )


def _mains(images: Images, products: int) -> NDArray[np.str_]:
    """The SHA-256 of each product's main picture, str [products]; nothing where it has none."""
    rows = main_pictures(images.product, images.main, products)
    return np.array([*images.sha256, ""])[rows]
