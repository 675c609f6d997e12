"""Writing the files of a segment, streamed: a segment may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from indexing.attributes.fit import fit_reranking
from indexing.attributes.record import AttributesRecord
from indexing.attributes.storing import read_columns
from indexing.attributes.vocabulary import AttributeClassifier
from indexing.catalog_vectors import CatalogVectors, Mask
from indexing.embed import Progress, VectorCache
from indexing.index_types import IndexRecord, Plan, read_index, write_index
from indexing.manifest import (
    ATTRIBUTES,
    FAISS_INDEX,
    IMAGES,
    PRODUCTS,
    REJECTS,
    REMOVED,
    VECTORS,
)
from indexing.match_fit import calibrate
from indexing.match_queries import NoQueriesError, title_queries
from indexing.match_record import MatchRecord
from indexing.models.protocol import Encoder
from indexing.segments import read_vectors
from indexing.spool import ROWS
from indexing.table import IMAGE_SCHEMA, PRODUCT_SCHEMA, Images

REMOVED_SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False)])


def write_tables(work: Path, read: CatalogVectors, cache: VectorCache, kept: Mask) -> None:
    """Products and pictures of those products of a catalog that `kept` marks, all of them
    usable; a segment of them removes nothing."""
    with pq.ParquetWriter(work / PRODUCTS, PRODUCT_SCHEMA) as writer:
        for first, batch in read.found.product_batches():
            writer.write_batch(batch.filter(pa.array(kept[first : first + batch.num_rows])))
    pq.write_table(image_table(read, cache, kept), work / IMAGES)
    _write_removed(work / REMOVED, [])


def image_table(read: CatalogVectors, cache: VectorCache, kept: Mask) -> pa.Table:
    """The usable pictures of the products that `kept` marks, as rows of IMAGE_SCHEMA; their
    `product` counts those products only."""
    images = read.found.images
    mine = read.usable_images & kept[images["product"].to_numpy()]
    images = images.filter(pa.array(mine))
    columns = {name: images[name] for name in images.column_names}
    columns["product"] = pa.array((np.cumsum(kept) - 1)[images["product"].to_numpy()])
    keys = keys_of(read, kept)
    columns["sha256"] = pa.array([key.hex() for key in keys], pa.string())
    columns["phash"] = pa.array(cache.gather_hashes(keys), pa.uint64())
    return pa.table(columns, schema=IMAGE_SCHEMA)


def write_merged_tables(work: Path, products: pa.Table, images: pa.Table) -> None:
    """Products and pictures that come from other segments, of the schemas in table.py."""
    pq.write_table(products.combine_chunks(), work / PRODUCTS)
    pq.write_table(images.combine_chunks(), work / IMAGES)
    _write_removed(work / REMOVED, [])


def write_removal(work: Path, removed: Sequence[str]) -> None:
    """The tables of a segment without products, that only takes `removed` from those before it,
    and its empty list of rejects."""
    pq.write_table(PRODUCT_SCHEMA.empty_table(), work / PRODUCTS)
    pq.write_table(IMAGE_SCHEMA.empty_table(), work / IMAGES)
    _write_removed(work / REMOVED, removed)
    (work / REJECTS).touch()


def _write_removed(path: Path, removed: Sequence[str]) -> None:
    pq.write_table(pa.table({"id": pa.array(removed, pa.string())}, schema=REMOVED_SCHEMA), path)


def write_vectors(
    work: Path,
    keys: Sequence[bytes],
    cache: VectorCache,
    plan: Plan,
    queries: NDArray[np.float32] | None = None,
) -> IndexRecord:
    """The vectors of these pictures, in their order, and the index over them.

    `queries` are of another kind, for an approximate index to be tuned by.
    """
    chunks = (cache.gather(keys[start : start + ROWS]) for start in range(0, len(keys), ROWS))
    return write_vector_files(work, chunks, plan, queries)


def write_vector_files(
    work: Path,
    chunks: Iterable[NDArray[np.float32]],
    plan: Plan,
    queries: NDArray[np.float32] | None = None,
) -> IndexRecord:
    """As `write_vectors`, of vectors that come in chunks, float32 [m, plan.dim].

    Raises IndexFolderError where the disk does not give back what was written.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": (plan.count, plan.dim)}
    # Written as a stream: a full disk would kill the process that writes to a mapped file.
    with (work / VECTORS).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(chunk.tobytes())
    return write_index(read_vectors(work / VECTORS), work / FAISS_INDEX, plan, queries=queries)


def keys_of(read: CatalogVectors, kept: Mask) -> list[bytes]:
    """The hashes of the pictures of `image_table`, in its order."""
    mine = kept[read.found.images["product"].to_numpy()]
    return [key for key, taken in zip(read.embedded.keys, mine, strict=True) if key and taken]


def calibrated(
    work: Path, record: IndexRecord, encoder: Encoder, progress: Progress | None
) -> MatchRecord:
    """How surely the index in `work` tells what it has from what it has not."""
    vectors = read_vectors(work / VECTORS)
    return calibrate(
        _titles(work),
        Images(pq.read_table(work / IMAGES)),
        vectors,
        read_index(work / FAISS_INDEX, vectors, record),
        encoder,
        progress,
    )


def fitted(
    work: Path,
    classifiers: Sequence[AttributeClassifier],
    encoder: Encoder,
    progress: Progress | None,
) -> AttributesRecord:
    """What filled in the attributes in `work`, and how far they make answers better."""
    products = pq.read_table(work / PRODUCTS, columns=["id", "title"])
    attributes = [attribute for own in classifiers for attribute in own.attributes]
    columns, _ = read_columns(work / ATTRIBUTES, attributes)
    return fit_reranking(
        products["title"].to_pylist(),
        products["id"].to_pylist(),
        Images(pq.read_table(work / IMAGES)),
        read_vectors(work / VECTORS),
        encoder,
        columns,
        classifiers,
        progress,
    )


def title_vectors(work: Path, encoder: Encoder) -> NDArray[np.float32] | None:
    """Titles as vectors, for an approximate index to be tuned by; None where they are no use."""
    try:
        return title_queries(_titles(work), encoder).vectors
    except NoQueriesError:
        return None


def _titles(work: Path) -> list[str | None]:
    table = pq.read_table(work / PRODUCTS, columns=["title"])
    titles: list[str | None] = table["title"].to_pylist()
    return titles
