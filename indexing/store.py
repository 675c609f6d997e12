"""Opening an index: what is in a folder, checked and put together.

    DIR/manifest.json       names the segments that hold; replacing it is the commit
    DIR/s000001/ …          segments: products, pictures, vectors, FAISS index, attributes, rejects
    DIR/versions/000001.json …  the manifests before, to go back to
    DIR/.staging/           work of an unfinished command, removed when it is committed
    DIR/.shoplens.lock      held by the one process that writes

Nothing in a committed segment is ever written again. A reader sees the old version or the
new one, and every byte is checked before a library parses it. Writing is committing.py's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexing.attributes.columns import Column, Known
from indexing.attributes.vocabulary import OTHER
from indexing.errors import IndexCorruptError, IndexFolderError
from indexing.manifest import REBUILD, Manifest, check_asker, check_encoder, read_manifest
from indexing.models.protocol import Encoder
from indexing.segments import (
    Segment,
    SegmentedIndex,
    StackedVectors,
    VectorRows,
    living,
    open_segment,
)
from indexing.table import Images, Products
from indexing.vectors import VectorIndex

_OPEN_ATTEMPTS = 3


@dataclass(frozen=True)
class OpenIndex:
    """One version of an index, whose files were checked. Row i of `images` belongs to vector i.

    What later segments replaced or removed is in `segments` only.
    """

    folder: Path
    manifest: Manifest
    segments: tuple[Segment, ...]
    products: Products
    images: Images
    vectors: VectorRows  # float32 [n, dim], mapped read-only
    index: VectorIndex
    # Of the products, by name; none where nothing filled them in.
    attributes: dict[str, Column] = field(default_factory=dict)
    # What each product's attributes were read from, see attributes/storing.py: int8 [products].
    modes: NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))

    def known(self, product: int) -> dict[str, Known]:
        """The attributes of a product that are given or filled in; OTHER is neither."""
        found = {name: column.known(product) for name, column in self.attributes.items()}
        return {name: own for name, own in found.items() if own and own.value != OTHER}


def open_index(
    folder: Path,
    *,
    encoder: Encoder | None = None,
    asker: Encoder | None = None,
    before: OpenIndex | None = None,
) -> OpenIndex:
    """Open an index after checking every file of it.

    `encoder` must be the one that made its vectors; `asker` may also be one optimised from it.
    `before` is an earlier version of the same folder: segments that it has opened are not
    opened again.

    Raises IndexFolderError where there is no index, IndexCorruptError where a file is
    missing or differs from the manifest, and IndexMismatchError for another schema
    version or, when `encoder` or `asker` is given, for the vectors of another encoder.
    """
    for _ in range(_OPEN_ATTEMPTS):
        manifest = read_manifest(folder)
        if encoder is not None:
            check_encoder(folder, manifest, encoder)
        if asker is not None:
            check_asker(folder, manifest, asker)
        try:
            return open_version(folder, manifest, before)
        except IndexCorruptError:
            # Versions that were committed meanwhile may take the files of this one away.
            if read_manifest(folder).version == manifest.version:
                raise
    raise IndexFolderError(f"{folder} changes faster than it can be opened: try again")


def open_version(folder: Path, manifest: Manifest, before: OpenIndex | None = None) -> OpenIndex:
    """Open the version that `manifest` names; raises IndexCorruptError as `open_index` does."""
    known = {} if before is None else {part.record.name: part for part in before.segments}
    segments = []
    for record in manifest.segments:
        segment = known.get(record.name)
        if segment is None or segment.record != record or not _same_columns(manifest, segment):
            segment = open_segment(
                folder / record.name, record, manifest.encoder.dim, manifest.attributes
            )
        segments.append(segment)
    return opened(folder, manifest, segments)


def opened(folder: Path, manifest: Manifest, segments: list[Segment]) -> OpenIndex:
    """The version of `manifest` out of its opened segments; raises IndexCorruptError."""
    parts, dim = living(segments), manifest.encoder.dim
    columns = {
        name: Column.concatenated([part.attributes[name] for part in parts])
        for name in parts[0].attributes
    }
    modes = np.concatenate([part.modes for part in parts])
    products = Products(pa.concat_tables([part.products for part in parts]), columns)
    images = Images.concatenated([part.images for part in parts], [p.products for p in parts])
    if len(products) != manifest.products or len(images) != manifest.images:
        raise IndexCorruptError(
            f"{folder} disagrees with its manifest: {len(products)} products and {len(images)} "
            f"pictures where there must be {manifest.products} and {manifest.images}; {REBUILD}"
        )
    whole = len(segments) == 1
    rows = [part.rows for part in parts]
    vectors = (
        segments[0].vectors
        if whole
        else StackedVectors([(s.vectors, r) for s, r in zip(segments, rows, strict=True)], dim)
    )
    index = (
        segments[0].index
        if whole
        else SegmentedIndex([(s.index, r) for s, r in zip(segments, rows, strict=True)], dim)
    )
    return OpenIndex(
        folder, manifest, tuple(segments), products, images, vectors, index, columns, modes
    )


def _same_columns(manifest: Manifest, segment: Segment) -> bool:
    """Whether a segment was opened with the attributes of a manifest."""
    wanted = () if manifest.attributes is None else manifest.attributes.attributes
    return tuple(column.attribute for column in segment.attributes.values()) == wanted
