"""A catalog, read and embedded: products on disk, vectors in the cache, rejects in a file."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexing.catalog import Catalog, Reject
from indexing.embed import Embedded, Progress, VectorCache, embed_pictures
from indexing.errors import IndexFolderError
from indexing.manifest import IndexCounts
from indexing.messages import printable
from indexing.models.protocol import Encoder
from indexing.spool import Spool, spool
from indexing.store import OpenIndex, open_index

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class CatalogVectors:
    """What became of a catalog."""

    found: Spool
    embedded: Embedded
    usable: Mask  # bool [products of the catalog]: has at least one picture with a vector
    embed_seconds: float

    @property
    def usable_images(self) -> Mask:
        """bool [pictures of the catalog]: has a vector."""
        return np.array([key is not None for key in self.embedded.keys], np.bool_)


def read_catalog_vectors(
    catalog: Catalog,
    encoder: Encoder,
    cache: VectorCache,
    scratch: Path,
    rejects: Path,
    *,
    batch_size: int,
    shard_size: int,
    progress: Progress | None,
    on_found: Callable[[int], object] = lambda pictures: None,
) -> CatalogVectors:
    """Read all of `catalog`, and bring the vectors of its pictures into `cache`.

    What cannot be used is written to the file `rejects`. `on_found` is told how many pictures
    there are before any is encoded. Raises CatalogError as reading does.
    """
    tables = scratch / "found"
    tables.mkdir()
    with rejects.open("w", encoding="utf-8") as file:

        def reject(item: Reject) -> None:
            file.write(item.to_json() + "\n")

        found = spool(catalog, tables, reject)
        on_found(found.images.num_rows)
        started = time.monotonic()
        embedded = embed_pictures(
            found.pictures(),
            found.images.num_rows,
            encoder,
            cache,
            batch_size=batch_size,
            shard_size=shard_size,
            progress=progress,
        )
        seconds = time.monotonic() - started
        usable = np.zeros(len(found.product_rows), np.bool_)
        read = CatalogVectors(found, embedded, usable, seconds)
        usable[found.images["product"].to_numpy()[read.usable_images]] = True
        for item in _picture_rejects(read):
            reject(item)
    return read


def add_known(cache: VectorCache, folder: Path, encoder: Encoder) -> OpenIndex | None:
    """Make the vectors of the index in `folder` known; None where there is no whole index of
    this encoder."""
    try:
        previous = open_index(folder, encoder=encoder)
    except IndexFolderError:
        return None
    for segment in previous.segments:
        cache.add_array(segment.keys, segment.vectors, segment.hashes)
    return previous


def count(catalog: Catalog, read: CatalogVectors, kept: Mask) -> IndexCounts:
    """What became of the rows, where the products of `kept` go into the segment."""
    counts = catalog.counts
    dropped = int(np.count_nonzero(~read.usable))
    images = kept[read.found.images["product"].to_numpy()] & read.usable_images
    return IndexCounts(
        rows=counts.rows,
        products=int(np.count_nonzero(kept)),
        merged=counts.merged,
        rejected=counts.rejected + dropped,
        images=int(np.count_nonzero(images)),
        images_rejected=counts.images_rejected + len(read.embedded.failures),
        fields_rejected=counts.fields_rejected,
        unchanged=counts.products - dropped - int(np.count_nonzero(kept)),
    )


@contextmanager
def scratch_folder(staging: Path) -> Iterator[Path]:
    """A folder for what each run makes anew."""
    folder = staging / "scratch"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _picture_rejects(read: CatalogVectors) -> Iterator[Reject]:
    """The pictures that failed, and each product that is left without any."""
    found, failures = read.found, read.embedded.failures
    failed: dict[int, list[int]] = defaultdict(list)
    owners = found.images["product"].to_numpy()
    for picture in sorted(failures):
        failed[int(owners[picture])].append(picture)
    for first, batch in found.product_batches() if failed else ():
        for number in sorted(failed.keys() & range(first, first + batch.num_rows)):
            row, product_id = int(found.product_rows[number]), batch["id"][number - first].as_py()
            for picture in failed[number]:
                location = printable(found.images["location"][picture].as_py())
                reason = failures[picture]
                yield Reject(row, printable(product_id), "images", location, reason, "image")
            if not read.usable[number]:
                reason = "none of its pictures can be used"
                yield Reject(row, printable(product_id), "images", "", reason)
