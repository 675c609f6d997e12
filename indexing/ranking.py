"""The best of given rows, by scores that are summed in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexing.faiss_import import import_faiss
from indexing.vectors import ROUNDING, Rows, Scores, inner_products

_CHUNK = 1 << 16


def best_rows(
    query: NDArray[np.float32], vectors: NDArray[np.float32], rows: Rows, k: int
) -> tuple[Scores, Rows]:
    """The `k` best of distinct `rows`, best first, the lower row first among equals.

    A float32 pass keeps the rows that may be among the best, and only those are summed in
    float64, so scores and order are those of `inner_products`. Rows of `vectors` are read
    where they lie, in order, and nothing is copied of those that are not kept.

    Args:
        query: float32 [d].
        vectors: C-contiguous float32 [n, d], which may be mapped from disk.
        rows: int64 [m], in ascending order for the sake of speed.

    Returns scores float32 [min(k, m)] and rows int64 of the same shape.
    """
    if len(rows) > k:
        rough = _products(query, vectors, rows)
        kth = np.partition(rough, len(rows) - k)[len(rows) - k]
        rows = rows[rough >= kth - 2 * ROUNDING]
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _CHUNK):
        chunk = vectors[rows[start : start + _CHUNK]]
        scores[start : start + _CHUNK] = inner_products(query[np.newaxis], chunk)
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


def _products(query: NDArray[np.float32], vectors: NDArray[np.float32], rows: Rows) -> Scores:
    """Inner products in float32, faster than NumPy's by the copy of the rows it makes."""
    faiss = import_faiss()
    query = np.ascontiguousarray(query)
    rows = np.ascontiguousarray(rows)
    products = np.empty(len(rows), np.float32)
    faiss.fvec_inner_products_by_idx(
        faiss.swig_ptr(products),
        faiss.swig_ptr(query),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(rows),
        len(query),
        1,
        len(rows),
    )
    return products
