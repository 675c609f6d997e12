"""Nearest vectors: the protocol that every index type keeps, and the exact one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexing.errors import IndexCorruptError, QueryError
from indexing.faiss_import import import_faiss

Scores = NDArray[np.float32]
Rows = NDArray[np.int64]
Allowed = NDArray[np.bool_]

# Two kernels that sum in another order differ by less than this for unit vectors.
ROUNDING = 1e-5
# Candidates that are looked at in one go: bounds memory when very many scores are tied.
_BLOCK = 1 << 22
_CHUNK = 1 << 16


class VectorIndex(Protocol):
    """Unit vectors, numbered from 0, that can be searched by inner product."""

    @property
    def ntotal(self) -> int:
        """Number of vectors."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Rows]:
        """The k best rows of each query, best first, the lower row first among equals.

        `queries` is [q, dim]; `allowed` is bool [ntotal], True where a row may be
        answered. Returns scores float32 [q, k] and rows int64 [q, k]. Where fewer than
        k rows are allowed, the rest is row -1 with score -inf; no score is ever NaN.
        Raises QueryError for queries of another shape or with NaN or infinity.
        """


def inner_products(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> Scores:
    """Inner products of the rows of [m, d] and [m, d] or [1, d], summed in float64.

    Each depends on its two rows alone, not on how many others are asked for, so equal
    vectors have equal scores. Returns float32 [m].
    """
    # A sum over the last axis takes the same steps for every row.
    products: Scores = (queries.astype(np.float64) * vectors).sum(axis=1).astype(np.float32)
    return products


class ExactIndex:
    """Compares a query with every vector: exact with any filter, and truth for the rest.

    Scores are computed again in float64 for the candidates, so that they do not depend
    on how many queries are asked at once and equal vectors tie exactly.
    """

    def __init__(self, index: Any) -> None:
        self._index = index
        size = index.ntotal * index.d
        # A view of the vectors that FAISS holds, not a copy.
        flat = import_faiss().rev_swig_ptr(index.get_xb(), size) if size else np.empty(0, "f4")
        self.vectors: NDArray[np.float32] = flat.reshape(index.ntotal, index.d)

    @classmethod
    def from_vectors(cls, vectors: NDArray[np.float32]) -> ExactIndex:
        """An index of `vectors`, finite float32 [n, d]; they are copied."""
        index = import_faiss().IndexFlatIP(vectors.shape[1])
        for start in range(0, len(vectors), _CHUNK):  # the array may be mapped from disk
            chunk = np.ascontiguousarray(vectors[start : start + _CHUNK], dtype=np.float32)
            if not np.isfinite(chunk).all():
                raise ValueError("vectors must be finite")
            index.add(chunk)
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> ExactIndex:
        """Map what `save` wrote: as fast as a copy, and the system may take the memory back.

        Raises IndexCorruptError for anything else.
        """
        index = load_faiss(path, mapped=True)
        if not isinstance(index, import_faiss().IndexFlatIP):
            raise IndexCorruptError(f"{path} holds {type(index).__name__}, not IndexFlatIP")
        return cls(index)

    def save(self, path: Path) -> None:
        """Write to `path`, in place and without fsync: the caller makes it durable.

        Raises OSError where FAISS reports that it cannot write; it does not always
        (see `holds`).
        """
        save_faiss(self._index, path)

    def holds(self, vectors: NDArray[np.float32]) -> bool:
        """Whether these are its vectors, bit for bit: FAISS itself notices no full disk."""
        return vectors.shape == self.vectors.shape and all(
            np.array_equal(vectors[start : start + _CHUNK], self.vectors[start : start + _CHUNK])
            for start in range(0, len(vectors), _CHUNK)
        )

    @property
    def ntotal(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Rows]:
        check_search(self, queries, k, allowed)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        candidates = self.ntotal if allowed is None else int(np.count_nonzero(allowed))
        found = min(k, candidates)
        if not found:
            return scores, rows
        # FAISS orders equal scores as it likes and drops any of those at the boundary, so
        # ask for more until the last one is clearly worse than the k-th.
        pending = np.arange(len(queries))
        fetch = min(found + 8, candidates)
        while len(pending):
            undecided = []
            for block in np.array_split(pending, -(-len(pending) * fetch // _BLOCK)):
                best_scores, best_rows = self._fetch(queries[block], fetch, allowed)
                scores[block, :found] = best_scores[:, :found]
                rows[block, :found] = best_rows[:, :found]
                margin = best_scores[:, found - 1] - best_scores[:, -1]
                undecided.append(block[margin <= ROUNDING])
            pending = np.concatenate(undecided) if fetch < candidates else pending[:0]
            fetch = min(fetch * 8, candidates)
        return scores, rows

    def _fetch(
        self, queries: NDArray[np.float32], k: int, allowed: Allowed | None
    ) -> tuple[Scores, Rows]:
        """The k candidates of FAISS, scored again and put in order."""
        faiss = import_faiss()
        parameters = None
        if allowed is not None:
            bitmap = np.packbits(allowed, bitorder="little")
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bitmap))
        _, rows = self._index.search(queries, k, params=parameters)
        scores = np.empty(rows.shape, np.float32)
        for query, query_rows, row_scores in zip(queries, rows, scores, strict=True):
            for start in range(0, k, _CHUNK):
                chunk = self.vectors[query_rows[start : start + _CHUNK]]
                row_scores[start : start + _CHUNK] = inner_products(query[np.newaxis], chunk)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def check_search(
    index: VectorIndex, queries: NDArray[np.float32], k: int, allowed: Allowed | None
) -> None:
    """Raise QueryError for arguments that `VectorIndex.search` refuses."""
    if queries.ndim != 2 or queries.shape[1] != index.dim:
        raise QueryError(f"queries of shape {queries.shape}: must be [n, {index.dim}]")
    if not np.isfinite(queries).all():
        raise QueryError("a query vector holds NaN or infinity")
    if k < 1:
        raise QueryError(f"k is {k}: must be at least 1")
    if allowed is not None and allowed.shape != (index.ntotal,):
        raise QueryError(f"a filter of shape {allowed.shape}: must be [{index.ntotal}]")


def load_faiss(path: Path, *, mapped: bool = False) -> Any:
    """Read a FAISS index of any type, or map its arrays from the file.

    Raises IndexCorruptError for anything else.
    """
    faiss = import_faiss()
    # No array inside the file can be larger than the file itself.
    size = path.stat().st_size
    faiss.set_deserialization_vector_byte_limit(size)
    faiss.set_deserialization_loop_limit(size)
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise IndexCorruptError(f"{path} is not a FAISS index that can be read") from error


def save_faiss(index: Any, path: Path) -> None:
    """Write to `path`, in place and without fsync: the caller makes it durable.

    Raises OSError where FAISS reports that it cannot write; it does not always.
    """
    try:
        import_faiss().write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(f"FAISS cannot write {path}") from error
