"""Nearest vectors among many: compressed codes in memory, full vectors on disk.

A FAISS index proposes candidates by its codes alone; their full vectors, mapped from disk,
put them in order. So what a picture takes in memory is its code, and the scores are those
of exact search. What can be lost is a neighbour that is not proposed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexing.faiss_import import import_faiss
from indexing.gpu import MOST_CANDIDATES
from indexing.ranking import best_rows
from indexing.vectors import Allowed, Rows, Scores, check_search

# More answers than this share of the candidates are not what recall was measured on.
_CANDIDATES_PER_ANSWER = 4


class ApproximateIndex:
    """Any FAISS index for inner products, whose candidates are ranked by full vectors.

    Args:
        index: trained and filled; number i is vector i.
        vectors: float32 [n, d], which may be mapped from disk.
        candidates: how many are ranked by their full vectors.
        probes: inverted lists that are looked at; 0 for all, or where there are none.
        scan_seconds: of one query to find candidates, and row_seconds to rank one of them.
        on_gpu: a copy of `index` on graphics cards, which looks for candidates where there is
            no filter and no more of them than FAISS's kernels can select.

    A filter that leaves few rows is answered from their full vectors alone and is exact;
    a wide one goes into the search for candidates. The costs decide which is which.
    """

    def __init__(
        self,
        index: Any,
        vectors: NDArray[np.float32],
        *,
        candidates: int,
        probes: int = 0,
        scan_seconds: float = 0.0,
        row_seconds: float = 1.0,
        on_gpu: Any = None,
    ) -> None:
        self._index = index
        self._vectors = np.require(vectors, np.float32, "C")  # FAISS reads it by its address
        self._candidates = candidates
        self._probes = probes
        self._scan_seconds = scan_seconds
        self._row_seconds = row_seconds
        self._on_gpu = on_gpu
        self._selects = _takes_selector(self._index)

    @property
    def ntotal(self) -> int:
        return len(self._vectors)

    @property
    def dim(self) -> int:
        return int(self._vectors.shape[1])

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Rows]:
        check_search(self, queries, k, allowed)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        count = self.ntotal if allowed is None else int(np.count_nonzero(allowed))
        found = min(k, count)
        if not (found and len(queries)):
            return scores, rows
        candidates = max(self._candidates, _CANDIDATES_PER_ANSWER * k)
        narrow = self.prefers_scan(count, candidates) or not (allowed is None or self._selects)
        everything: Rows | None = None
        proposed = None if narrow else self.propose(queries, candidates, allowed)
        for number, query in enumerate(queries):
            mine = np.empty(0, np.int64)
            if proposed is not None:
                mine = np.sort(proposed[number][proposed[number] >= 0])
            if len(mine) < found:  # lists that hold too few, or a graph that lost its way
                if everything is None:
                    everything = np.arange(count) if allowed is None else np.flatnonzero(allowed)
                mine = everything
            best = best_rows(query, self._vectors, mine, k)
            scores[number, :found], rows[number, :found] = best
        return scores, rows

    def prefers_scan(self, count: int, candidates: int) -> bool:
        """Whether to rank all of `count` rows costs less than to find candidates and rank those."""
        return (count - candidates) * self._row_seconds <= self._scan_seconds

    def propose(
        self, queries: NDArray[np.float32], candidates: int, allowed: Allowed | None = None
    ) -> Rows:
        """Candidates of each query, int64 [q, candidates], best by their codes first, -1 at
        the end of a row that has fewer."""
        rows: Rows
        if self._on_gpu is not None and allowed is None and candidates <= MOST_CANDIDATES:
            rows = self._on_gpu.search(queries, candidates)[1]
            return rows
        selector = None
        if allowed is not None:
            bitmap = np.packbits(allowed, bitorder="little")
            selector = import_faiss().IDSelectorBitmap(bitmap)
        parameters = _parameters(self._index, self._probes, selector, candidates)
        rows = self._index.search(queries, candidates, params=parameters)[1]
        return rows


def _parameters(index: Any, probes: int, selector: Any, candidates: int) -> Any:
    """What a search of `index` is told, from the outermost wrapper to the innermost."""
    faiss = import_faiss()
    chosen = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(faiss.downcast_index(index.index), probes, selector, candidates)
        return faiss.SearchParametersPreTransform(index_params=inner) if inner else None
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(faiss.downcast_index(index.base_index), probes, selector, candidates)
        # The codes in memory rank as many as the full vectors do: they only reorder.
        return faiss.IndexRefineSearchParameters(k_factor=1.0, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        # Rows of a filter may be gathered in lists that are far away: look at all of them.
        if selector is not None or not probes:
            probes = index.nlist
        return faiss.SearchParametersIVF(nprobe=min(probes, index.nlist), **chosen)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=candidates, **chosen)
    return faiss.SearchParameters(**chosen) if chosen else None


def _takes_selector(index: Any) -> bool:
    """Whether FAISS can filter inside a search of this type; it says so only by refusing."""
    faiss = import_faiss()
    selector = faiss.IDSelectorBitmap(np.zeros(index.ntotal // 8 + 1, np.uint8))
    query = np.zeros((1, index.d), np.float32)
    try:
        index.search(query, 1, params=_parameters(index, 0, selector, 1))
    except RuntimeError:
        return False
    return True
