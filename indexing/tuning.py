"""How widely an index must search to find what exact search finds, measured on held-out queries.

Queries of the kind of the vectors are some of the vectors themselves, each kept from
answering its own query. Queries of another kind, such as titles among pictures, are given;
else stand-ins are made of other vectors: unit(unit(P x) + u), where P projects on a random
quarter of the dimensions (a title tells a part of what a picture shows) and u is one random
direction (the gap between kinds, Liang et al. 2022, arXiv 2203.02053).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexing.approximate import ApproximateIndex
from indexing.faiss_import import import_faiss
from indexing.plan import CHUNK, TUNING_QUERIES
from indexing.ranking import best_rows
from indexing.vectors import Rows

Floats = NDArray[np.float32]

K = 10
# Settings are chosen for a little more than what was asked, as other queries find a little less.
_SLACK = 0.1
_CANDIDATES = (
    *(20, 50, 100, 200, 300, 400, 600, 800, 1200, 1600, 2000, 2400),
    *(3200, 4000, 4800, 5600, 6400, 8000, 9600),
)
_PROBED = (1.0, 0.85, 0.7, 0.6, 0.5, 0.35, 0.25, 0.12, 0.06, 0.03)  # shares of the lists
_TIMED = 15  # searches for one timing, for so many candidates each
_TIMED_CANDIDATES = 2000
_SMALLEST = 1e-9  # seconds, where the clock is too coarse
_KEPT = 64  # of the exact answers: the K best and what may tie with them
_TIE = 1e-6
_FEWEST = 32  # queries, however short the time


@dataclass(frozen=True)
class Tuned:
    """Settings of a search and what they were measured to give."""

    candidates: int
    probes: int
    recall_in: float  # recall@10 on queries that did not choose the settings
    recall_out: float
    queries: int  # of each kind that were measured
    complete: bool  # whether all settings were tried within the time
    scan_seconds: float
    row_seconds: float


def tune(
    index: Any,
    vectors: Floats,
    target: float,
    *,
    outside: Floats | None = None,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """The cheapest settings of a FAISS index whose recall@10 is at least `target`.

    Both kinds of queries must reach it. Half of each kind choose, the other half measure.
    Where no setting reaches it, the best is taken, and the measured recall says so. After
    `seconds` no further setting is tried.
    """
    started = clock()
    queries, without, outer = _queries(vectors, outside)
    truth = _exact(vectors, queries, without, seconds / 2, clock)
    complete = len(truth) == len(queries)
    queries, outer = queries[: len(truth)], outer[: len(truth)]
    chooses = np.arange(len(queries)) // 2 % 2 == 0  # pairs of both kinds take turns
    counts = sorted({min(count, len(vectors)) for count in _CANDIDATES})
    tried: list[_Setting] = []
    row_seconds = 0.0
    for probes in _probes(index):
        if tried and clock() - started > seconds:
            complete = False
            break
        searched = ApproximateIndex(index, vectors, candidates=counts[-1], probes=probes)
        proposed = searched.propose(queries, counts[-1])
        row_seconds = row_seconds or _row_seconds(vectors, queries, proposed)
        scan_seconds = _scan_seconds(searched, queries)
        found = _recalls(proposed, truth)
        here = [_Setting(count, probes, scan_seconds, found[:, count - 1]) for count in counts]
        tried += here
        if here[-1].worst(chooses, outer) < target:  # with fewer lists it gets worse
            break
    wanted = target + _SLACK * (1 - target)
    good = [setting for setting in tried if setting.worst(chooses, outer) >= wanted]
    if good:
        best = min(good, key=lambda setting: setting.scan_seconds + setting.count * row_seconds)
    else:
        best = max(tried, key=lambda setting: setting.worst(chooses, outer))
    return Tuned(
        candidates=best.count,
        probes=best.probes,
        recall_in=float(best.found[~chooses & ~outer].mean()),
        recall_out=float(best.found[~chooses & outer].mean()),
        queries=int(np.count_nonzero(~chooses & outer)),
        complete=complete,
        scan_seconds=best.scan_seconds,
        row_seconds=row_seconds,
    )


def stand_ins(vectors: Floats, rng: np.random.Generator) -> Floats:
    """Queries of another kind than unit `vectors` [q, d]: see the module."""
    dim = vectors.shape[1]
    known = np.linalg.qr(rng.standard_normal((dim, max(1, dim // 4))))[0]
    gap = rng.standard_normal(dim)
    partial = _unit(vectors.astype(np.float64) @ known @ known.T)
    return _unit(partial + gap / np.linalg.norm(gap)).astype(np.float32)


@dataclass(frozen=True)
class _Setting:
    count: int
    probes: int
    scan_seconds: float
    found: NDArray[np.float64]  # recall of each query

    def worst(self, chooses: NDArray[np.bool_], outer: NDArray[np.bool_]) -> float:
        """Mean recall of the queries that choose, of the kind that has less."""
        return float(min(self.found[chooses & ~outer].mean(), self.found[chooses & outer].mean()))


def _queries(vectors: Floats, outside: Floats | None) -> tuple[Floats, Rows, NDArray[np.bool_]]:
    """Both kinds by turns: queries, the row that may not answer each (-1: none), and
    whether it is of the other kind."""
    rng = np.random.default_rng(0)
    half = max(2, min(TUNING_QUERIES, len(vectors)) // 2)
    own = rng.choice(len(vectors), half, replace=len(vectors) < half)
    inside = np.asarray(vectors[own], np.float32)
    if outside is None or not len(outside):
        other, excluded = stand_ins(inside, rng), own
    else:
        other = outside[rng.choice(len(outside), half, replace=len(outside) < half)]
        excluded = np.full(half, -1)
    both = np.stack([inside, other.astype(np.float32)], axis=1).reshape(2 * half, -1)
    return both, np.stack([own, excluded], axis=1).ravel(), np.arange(2 * half) % 2 == 1


def _exact(
    vectors: Floats, queries: Floats, without: Rows, seconds: float, clock: Callable[[], float]
) -> list[Rows]:
    """The rows of the K best of each query, with those that tie with the last. Where that
    would take longer than `seconds`, of the first queries alone."""
    heap = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    started = clock()
    for start in range(0, len(vectors), CHUNK):
        products = queries @ np.asarray(vectors[start : start + CHUNK]).T
        owned = (without >= start) & (without < start + CHUNK)
        products[owned, without[owned] - start] = -np.inf
        kept = min(_KEPT, products.shape[1])
        rows = np.argpartition(-products, kept - 1, axis=1)[:, :kept]
        scores = np.take_along_axis(products, rows, axis=1)
        scores = np.concatenate([heap[0][: len(queries)], scores], axis=1)
        rows = np.concatenate([heap[1][: len(queries)], rows + start], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :_KEPT]
        heap = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        if not start:
            needed = (clock() - started) * len(vectors) / min(CHUNK, len(vectors))
            if needed > seconds:
                fewer = max(_FEWEST, 4 * int(len(queries) * seconds / needed / 4))
                queries, without = queries[:fewer], without[:fewer]
    last = min(K, heap[0].shape[1], len(vectors) - 1) - 1
    return [
        rows[scores >= scores[last] - _TIE]
        for scores, rows in zip(heap[0][: len(queries)], heap[1], strict=False)
    ]


def _probes(index: Any) -> list[int]:
    """How many inverted lists to try, most first; [0] where there are none."""
    lists = import_faiss().try_extract_index_ivf(index)
    if lists is None:
        return [0]
    return sorted({max(1, round(share * lists.nlist)) for share in _PROBED}, reverse=True)


def _recalls(proposed: Rows, truth: list[Rows]) -> NDArray[np.float64]:
    """Recall@K of each query among its first 1, 2, ... candidates, float64 [queries, most]."""
    found = np.stack([np.isin(rows, best) for rows, best in zip(proposed, truth, strict=True)])
    wanted = np.array([min(K, len(best)) for best in truth])[:, np.newaxis]
    shares: NDArray[np.float64] = np.minimum(np.cumsum(found, axis=1), wanted) / wanted
    return shares


def _scan_seconds(index: ApproximateIndex, queries: Floats) -> float:
    """The time of one query alone, to find candidates."""
    timed = []
    for row in range(min(_TIMED, len(queries))):
        started = time.thread_time()  # what other processes take does not count
        index.propose(queries[row : row + 1], _TIMED_CANDIDATES)
        timed.append(time.thread_time() - started)
    return max(float(np.median(timed)), _SMALLEST)


def _row_seconds(vectors: Floats, queries: Floats, proposed: Rows) -> float:
    """The time to rank one candidate by its full vector."""
    timed = []
    for query, rows in zip(queries[:_TIMED], proposed[:_TIMED], strict=True):
        rows = np.sort(rows[rows >= 0][:_TIMED_CANDIDATES])
        started = time.thread_time()
        best_rows(query, vectors, rows, K)
        timed.append((time.thread_time() - started) / max(1, len(rows)))
    return max(float(np.median(timed)), _SMALLEST)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
