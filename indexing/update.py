"""Changes to an index without building it anew: products come, change and go.

An update writes one new segment with the products that are new or changed, so it costs what
they cost. The segments before it stay as they are; see segments.py.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from indexing.attributes.predicting import add_attributes
from indexing.attributes.storing import write_columns
from indexing.attributes.vocabulary import AttributeClassifier
from indexing.build import BuildReport
from indexing.catalog import Catalog
from indexing.catalog_vectors import (
    CatalogVectors,
    Mask,
    add_known,
    count,
    read_catalog_vectors,
    scratch_folder,
)
from indexing.committing import commit, file_records, locked_folder, next_segment, next_version
from indexing.embed import BATCH_SIZE, SHARD_SIZE, Progress, VectorCache
from indexing.errors import QueryError
from indexing.index_types import Plan
from indexing.manifest import (
    ATTRIBUTES,
    REJECTS,
    IndexCounts,
    Manifest,
    SegmentRecord,
    check_classifiers,
    check_encoder,
    read_manifest,
)
from indexing.messages import printable
from indexing.models.protocol import Encoder
from indexing.segment_files import (
    image_table,
    keys_of,
    write_removal,
    write_tables,
    write_vector_files,
    write_vectors,
)
from indexing.segments import living, open_segment
from indexing.store import OpenIndex, open_index


def update_index(
    catalog: Catalog,
    encoder: Encoder,
    folder: Path,
    *,
    batch_size: int = BATCH_SIZE,
    shard_size: int = SHARD_SIZE,
    classifiers: Sequence[AttributeClassifier] = (),
    progress: Progress | None = None,
) -> BuildReport:
    """Bring the products of `catalog` into the index of `folder`: new ones, and those of which
    a field or a picture has changed.

    Products that the catalog does not name stay. So does one none of whose pictures can be
    used any more; it is rejected. Only pictures that the index has no vectors of are encoded.

    `classifiers` are those that filled in the attributes of the index, if it has some.

    Raises IndexFolderError as `open_index` does, and where another process writes to the
    folder; IndexMismatchError for another encoder or other classifiers; CatalogError as
    reading does.
    """
    started = time.monotonic()
    check_encoder(folder, read_manifest(folder), encoder)
    check_classifiers(folder, read_manifest(folder), classifiers)
    with locked_folder(folder, "update") as staging, scratch_folder(staging) as scratch:
        cache = VectorCache(staging / encoder.fingerprint[:16], encoder.dim)
        previous = add_known(cache, folder, encoder)
        if previous is None:
            previous = open_index(folder, encoder=encoder)  # which says why it cannot be used
        work = scratch / "segment"
        work.mkdir()
        read = read_catalog_vectors(
            catalog,
            encoder,
            cache,
            scratch,
            work / REJECTS,
            batch_size=batch_size,
            shard_size=shard_size,
            progress=progress,
        )
        changed = read.usable & ~_unchanged(read, cache, previous)
        counts = count(catalog, read, changed)
        up_to_date = not changed.any()
        manifest = previous.manifest
        rejects = work / REJECTS
        if up_to_date:
            rejects = folder / REJECTS
            (work / REJECTS).replace(rejects)
        else:
            write_tables(work, read, cache, changed)
            if classifiers:
                add_attributes(work, classifiers, staging / "attributes", previous, progress)
            record = write_vectors(
                work, keys_of(read, changed), cache, Plan.exact(counts.images, encoder.dim)
            )
            segment = SegmentRecord(
                name=next_segment(folder),
                index=record,
                counts=counts,
                removed=0,
                files=file_records(work),
            )
            manifest = _commit_after(previous, segment, work, f"update from {catalog.path.name}")
            rejects = folder / segment.name / REJECTS
        shutil.rmtree(staging, ignore_errors=True)  # all of it is in the segment
        return BuildReport(
            folder=folder,
            rejects=rejects,
            counts=counts,
            images=manifest.images,
            encoded=read.embedded.encoded,
            reused=read.embedded.reused,
            up_to_date=up_to_date,
            seconds=time.monotonic() - started,
            embed_seconds=read.embed_seconds,
        )


def delete_products(folder: Path, ids: Iterable[str]) -> list[str]:
    """Remove products from the index of `folder`; gives those of `ids` that it did not hold.

    Raises QueryError where it holds none of them, and IndexFolderError as `update_index` does.
    """
    wanted = list(dict.fromkeys(ids))
    read_manifest(folder)  # which says why where there is none
    with locked_folder(folder, "delete") as staging, scratch_folder(staging) as scratch:
        previous = open_index(folder)
        held = set(previous.products.ids)
        known = [product_id for product_id in wanted if product_id in held]
        unknown = [product_id for product_id in wanted if product_id not in held]
        if not known:
            named = ", ".join(f"'{printable(name)}'" for name in unknown[:3]) or "no id given"
            more = f" and {len(unknown) - 3:,} more" if len(unknown) > 3 else ""
            raise QueryError(f"nothing to delete: {folder} does not hold {named}{more}")
        work = scratch / "segment"
        work.mkdir()
        dim = previous.manifest.encoder.dim
        write_removal(work, known)
        if previous.attributes:
            nothing = np.zeros(0, np.int64)
            columns = {name: column.take(nothing) for name, column in previous.attributes.items()}
            write_columns(work / ATTRIBUTES, columns, previous.modes[nothing])
        segment = SegmentRecord(
            name=next_segment(folder),
            index=write_vector_files(work, [], Plan.exact(0, dim)),
            counts=IndexCounts.none(),
            removed=len(known),
            files=file_records(work),
        )
        _commit_after(previous, segment, work, f"{len(known):,} products deleted")
    return unknown


def _commit_after(previous: OpenIndex, segment: SegmentRecord, work: Path, change: str) -> Manifest:
    """Commit `segment`, whose files are in `work`, behind the segments of `previous`."""
    folder, encoder = previous.folder, previous.manifest.encoder
    attributes = previous.manifest.attributes
    opened = open_segment(work, segment, encoder.dim, attributes)
    parts = living([*previous.segments, opened])
    manifest = next_version(
        folder,
        change,
        encoder,
        previous.manifest.match,
        attributes,
        [*previous.manifest.segments, segment],
        sum(part.products.num_rows for part in parts),
        sum(part.images.num_rows for part in parts),
    )
    commit(folder, manifest, {segment.name: work})
    return manifest


def _unchanged(read: CatalogVectors, cache: VectorCache, previous: OpenIndex) -> Mask:
    """bool [products of the catalog]: held by the index with the same fields and pictures."""
    unchanged = np.zeros(len(read.usable), np.bool_)
    place = {product_id: row for row, product_id in enumerate(previous.products.ids)}
    if not place:  # all of them were deleted
        return unchanged
    held = _pictures(previous.images.table)
    named = _pictures(image_table(read, cache, read.usable))
    usable_rows = np.cumsum(read.usable) - 1
    for first, batch in read.found.product_batches():
        rows = [place.get(product_id) for product_id in batch["id"].to_pylist()]
        before = previous.products.table.take(pa.array([row or 0 for row in rows])).to_pylist()
        for number, (row, old, new) in enumerate(
            zip(rows, before, batch.to_pylist(), strict=True), first
        ):
            if row is not None and read.usable[number] and old == new:
                unchanged[number] = held[row] == named[int(usable_rows[number])]
    return unchanged


def _pictures(images: pa.Table) -> dict[int, list[tuple[Any, ...]]]:
    """All columns of the pictures of each product, in their order."""
    grouped: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    columns = [images[name].to_pylist() for name in images.column_names if name != "product"]
    for product, *values in zip(images["product"].to_pylist(), *columns, strict=True):
        grouped[product].append(tuple(values))
    return grouped
