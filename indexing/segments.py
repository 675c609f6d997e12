"""Segments: the parts of an index, each with vectors of its own, searched as one.

A build makes one segment. An update adds another with the products that are new or changed,
and names the ids that are gone; nothing that is there is written again. What a later segment
replaces or removes is dead in those before it. Rows, as everyone else knows them, number the
living pictures only, segment after segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from indexing.attributes.columns import Column
from indexing.attributes.record import AttributesRecord
from indexing.attributes.storing import read_columns
from indexing.durable import sha256_of
from indexing.errors import IndexCorruptError, IndexFolderError
from indexing.index_types import read_index
from indexing.manifest import (
    ATTRIBUTES,
    FAISS_INDEX,
    IMAGES,
    PRODUCTS,
    REBUILD,
    REMOVED,
    VECTORS,
    FileRecord,
    SegmentRecord,
)
from indexing.vectors import Allowed, Rows, Scores, VectorIndex, check_search

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Segment:
    """One opened segment. Row i of `images` belongs to vector i."""

    record: SegmentRecord
    products: pa.Table  # PRODUCT_SCHEMA
    images: pa.Table  # IMAGE_SCHEMA, `product` being a row of `products`
    removed: pa.Array  # ids that are gone from the segments before
    vectors: Floats  # [n, dim], mapped read-only
    index: VectorIndex
    attributes: dict[str, Column]  # of the products; none where the index has none
    modes: NDArray[np.int8]  # what each product's attributes were read from, see storing.py

    @property
    def keys(self) -> list[bytes]:
        """The SHA-256 of the bytes of each picture."""
        return [bytes.fromhex(text) for text in self.images["sha256"].to_pylist()]

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """The perceptual hash of each picture."""
        hashes: NDArray[np.uint64] = self.images["phash"].to_numpy()
        return hashes


def open_segment(
    place: Path, record: SegmentRecord, dim: int, attributes: AttributesRecord | None
) -> Segment:
    """Open the segment whose files are in the folder `place`, after checking each of them.

    `attributes` are those of the index, if it has some.
    Raises IndexCorruptError where a file is missing or differs from its record.
    """
    for name, file in record.files.items():
        _check_file(place / name, file)
    try:
        products = pq.read_table(place / PRODUCTS)
        images = pq.read_table(place / IMAGES)
        removed = pq.read_table(place / REMOVED)["id"].combine_chunks()
        vectors = read_vectors(place / VECTORS)
        index = read_index(place / FAISS_INDEX, vectors, record.index)
        columns: dict[str, Column] = {}
        modes = np.empty(0, np.int8)
        if attributes is not None:
            columns, modes = read_columns(place / ATTRIBUTES, attributes.attributes)
    except FileNotFoundError as error:  # taken away since it was checked
        raise IndexCorruptError(f"{place} misses a file ({error}): {REBUILD}") from error
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise IndexCorruptError(f"{place} cannot be read ({error}): {REBUILD}") from error
    counts = record.counts
    if (
        products.num_rows != counts.products
        or not (images.num_rows == index.ntotal == counts.images)
        or vectors.shape != (counts.images, dim)
        or index.dim != dim
        or len(removed) != record.removed
        or (attributes is not None and len(modes) != counts.products)
    ):
        raise IndexCorruptError(
            f"{place} disagrees with its manifest: {products.num_rows} products, "
            f"{images.num_rows} pictures, vectors {vectors.shape}, index of {index.ntotal}, "
            f"{len(removed)} removed; {REBUILD}"
        )
    return Segment(record, products, images, removed, vectors, index, columns, modes)


def read_vectors(path: Path) -> Floats:
    """The vectors of a segment, mapped read-only. Raises ValueError for anything else."""
    vectors: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise ValueError(f"{path} holds {vectors.dtype} of shape {vectors.shape}")
    return vectors


@dataclass(frozen=True)
class Living:
    """What is alive of a segment: its products, its pictures, and their vectors' numbers."""

    products: pa.Table
    images: pa.Table  # `product` is a row among the living products
    rows: Rows  # of the segment's vectors, ascending
    attributes: dict[str, Column]  # of the living products
    modes: NDArray[np.int8]


def living(segments: Sequence[Segment]) -> list[Living]:
    """What of each segment no later one replaces or removes."""
    found: list[Living] = []
    gone: list[pa.Array] = []  # ids that the segments after this one claim
    for segment in reversed(segments):
        ids = segment.products["id"]
        claimed = pa.chunked_array(gone, pa.string()).combine_chunks() if gone else None
        alive = np.ones(len(ids), np.bool_)
        if claimed is not None and len(claimed):
            alive = ~pc.is_in(ids, value_set=claimed).to_numpy()
        found.append(_kept(segment, alive))
        gone += [*ids.chunks, segment.removed]
    return found[::-1]


def _kept(segment: Segment, alive: NDArray[np.bool_]) -> Living:
    if alive.all():
        rows = np.arange(segment.images.num_rows)
        return Living(segment.products, segment.images, rows, segment.attributes, segment.modes)
    owners = segment.images["product"].to_numpy()
    rows = np.flatnonzero(alive[owners])
    images = segment.images.take(pa.array(rows))
    place = images.schema.get_field_index("product")
    renumbered = pa.array((np.cumsum(alive) - 1)[owners[rows]])
    images = images.set_column(place, images.schema.field(place), renumbered)
    columns = {name: column.take(alive) for name, column in segment.attributes.items()}
    modes = segment.modes[alive] if columns else segment.modes
    return Living(segment.products.filter(pa.array(alive)), images, rows, columns, modes)


class SegmentedIndex:
    """The living vectors of several segments behind the protocol of one index."""

    def __init__(self, parts: Sequence[tuple[VectorIndex, Rows]], dim: int) -> None:
        """`parts`: each segment's index, and which of its rows live, ascending."""
        self._parts = parts
        self._starts = np.concatenate([[0], np.cumsum([len(rows) for _, rows in parts])])
        self._dim = dim

    @property
    def ntotal(self) -> int:
        return int(self._starts[-1])

    @property
    def dim(self) -> int:
        return self._dim

    def search(
        self, queries: Floats, k: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Rows]:
        check_search(self, queries, k, allowed)
        found_scores = [np.full((len(queries), k), -np.inf, np.float32)]
        found_rows = [np.full((len(queries), k), -1, np.int64)]
        for (index, living_rows), start in zip(self._parts, self._starts[:-1], strict=True):
            part = None if allowed is None else allowed[start : start + len(living_rows)]
            candidates = len(living_rows) if part is None else int(np.count_nonzero(part))
            if not candidates:
                continue
            mask = None
            if part is not None or len(living_rows) < index.ntotal:
                mask = np.zeros(index.ntotal, np.bool_)
                mask[living_rows] = True if part is None else part
            scores, rows = index.search(queries, min(k, candidates), mask)
            found_scores.append(scores)
            found_rows.append(_global(rows, living_rows, int(start)))
        scores, rows = np.hstack(found_scores), np.hstack(found_rows)
        # A row of -1 has the score -inf, which nothing that was found has.
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _global(rows: Rows, living_rows: Rows, start: int) -> Rows:
    """Rows of a segment as rows of the whole; -1 stays."""
    numbered = np.searchsorted(living_rows, np.maximum(rows, 0)) + start
    return np.where(rows < 0, -1, numbered)


class StackedVectors:
    """The living vectors of several segments, read like an array [n, dim] but not held."""

    dtype = np.dtype(np.float32)

    def __init__(self, parts: Sequence[tuple[Floats, Rows]], dim: int) -> None:
        self._parts = parts
        self._starts = np.concatenate([[0], np.cumsum([len(rows) for _, rows in parts])])
        self.shape = (int(self._starts[-1]), dim)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: Any) -> Floats:
        """One row [dim] by its number; [m, dim] by a slice, numbers or a mask."""
        if isinstance(wanted, slice):
            numbers = np.arange(*wanted.indices(len(self)))
        else:
            numbers = np.asarray(wanted)
            numbers = np.flatnonzero(numbers) if numbers.dtype == np.bool_ else numbers
        if numbers.ndim == 0:
            row: Floats = self[numbers[np.newaxis]][0]
            return row
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} of {len(self)}")
        vectors = np.empty((len(numbers), self.shape[1]), np.float32)
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        for part in np.unique(owners):
            mine = owners == part
            source, living_rows = self._parts[part]
            vectors[mine] = source[living_rows[numbers[mine] - self._starts[part]]]
        return vectors

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.float32, copy=False)


# Vectors as whoever reads some of their rows needs them.
VectorRows = Floats | StackedVectors


def _check_file(path: Path, record: FileRecord) -> None:
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise IndexCorruptError(
                f"{path} has {size} bytes and must have {record.bytes}: {REBUILD}"
            )
        if sha256_of(path) != record.sha256:
            raise IndexCorruptError(
                f"{path} is damaged (its SHA-256 is not the one in the manifest): {REBUILD}"
            )
    except FileNotFoundError:
        raise IndexCorruptError(f"{path} is missing: {REBUILD}") from None
    except OSError as error:
        raise IndexFolderError(f"{path} cannot be read: {error.strerror}") from error
