"""Filtered search beside post-filtering: recall and time by how many rows a filter allows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ann import K, Note, exact_scores
from benchmarks.ann_data import Dataset
from benchmarks.ann_report import recalled
from benchmarks.ann_systems import Planned
from indexing.durable import replace_bytes
from indexing.faiss_import import import_faiss
from indexing.vectors import Allowed, ExactIndex, Rows, VectorIndex

Floats = NDArray[np.float32]

FILE = "filters.json"
SHARES = (0.5, 0.1, 0.01, 0.001)


@dataclass(frozen=True)
class Band:
    """One filter and one kind of query; times are medians of a query alone, on one thread."""

    queries: str
    filter: str  # scattered or gathered
    share: float  # of the rows that it allows
    ours_recall: float
    post_recall: float
    ours_ms: float
    post_ms: float
    exact_ms: float


def measure_filters(
    data: Dataset, folder: Path, seed: int = 0, *, note: Note = lambda _: None
) -> list[Band]:
    """Measure all bands on the compressed index and write `folder`/filters.json.

    Each query is asked of all three one after the other, so that a machine that slows down
    slows all of them. Post-filtering fetches as many answers as leaves the candidates that are
    ranked as they are, drops those that are not allowed and keeps the K best. Recall counts
    against exact search of the allowed rows, ties as in `ann_report.recalled`.
    """
    exact = ExactIndex.from_vectors(data.vectors)
    system = Planned()
    system.build(data.vectors, 1)
    system.use("", 1)
    search = system.record.search
    fetched = max(K, (search.candidates if search is not None else 0) // 4)
    note(system.label)
    import_faiss().omp_set_num_threads(1)
    bands = []
    for name, share, allowed in _filters(data.vectors, seed):
        for kind, queries in data.queries.items():
            systems: dict[str, Callable[[Floats], Rows]] = {
                "ours": partial(_asked, system.index, allowed=allowed),
                "post": partial(_post_filtered, system.index, fetched, allowed),
                "exact": partial(_asked, exact, allowed=allowed),
            }
            rows: dict[str, list[Rows]] = {key: [] for key in systems}
            seconds: dict[str, list[float]] = {key: [] for key in systems}
            for number in range(len(queries)):
                for key, ask in systems.items():
                    started = time.perf_counter()
                    rows[key].append(ask(queries[number : number + 1]))
                    seconds[key].append(time.perf_counter() - started)
            found = {key: np.concatenate(parts) for key, parts in rows.items()}
            scores = {key: exact_scores(data.vectors, queries, part) for key, part in found.items()}
            recall = {
                key: float(recalled(found[key], scores[key], scores["exact"][:, -1]).mean())
                for key in ("ours", "post")
            }
            ms = {key: 1000 * float(np.median(part)) for key, part in seconds.items()}
            band = Band(
                queries=kind,
                filter=name,
                share=share,
                ours_recall=recall["ours"],
                post_recall=recall["post"],
                ours_ms=ms["ours"],
                post_ms=ms["post"],
                exact_ms=ms["exact"],
            )
            bands.append(band)
            note(
                f"{kind}, {name} {share:.1%}: recall {band.ours_recall:.3f}, {band.ours_ms:.2f} ms"
            )
    content = {"data": data.description, "index": system.label, "bands": [asdict(b) for b in bands]}
    replace_bytes(folder / FILE, (json.dumps(content, indent=1) + "\n").encode())
    return bands


def _filters(vectors: NDArray[np.float32], seed: int) -> list[tuple[str, float, Allowed]]:
    """Name, share and mask of each filter."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal((vectors.shape[1],), np.float32)
    keys = {"scattered": rng.random(len(vectors)), "gathered": np.asarray(vectors @ direction)}
    return [
        (name, share, key >= np.partition(key, -wanted)[-wanted])
        for name, key in keys.items()
        for share in SHARES
        for wanted in [max(K, round(share * len(vectors)))]
    ]


def _asked(index: VectorIndex, query: Floats, *, allowed: Allowed) -> Rows:
    return index.search(query, K, allowed)[1]


def _post_filtered(index: VectorIndex, fetched: int, allowed: Allowed, query: Floats) -> Rows:
    """The first K allowed rows among so many answers, -1 where there are fewer."""
    answered = index.search(query, fetched)[1][0]
    left = answered[allowed[answered]][:K]
    return np.pad(left, (0, K - len(left)), constant_values=-1)[np.newaxis]
