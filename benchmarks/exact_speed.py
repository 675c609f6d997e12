"""How fast exact evaluation is: `python -m benchmarks.exact_speed`.

The same queries and gallery go through `count_answers` (ranks of all right answers and the
first k), through a plain blocked matrix product that throws its scores away, and through
FAISS's `knn` as its wheel comes, on as many threads each. They take turns, slice by slice of
the queries, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.retrieval.exact import GALLERY_BLOCK, QUERY_BLOCK, count_answers
from benchmarks.retrieval.scorers import VectorScorer
from benchmarks.retrieval.task import Links
from indexing.faiss_import import import_faiss

Floats = NDArray[np.float32]
_CLUSTERS = 1000


def make_vectors(queries: int, gallery: int, dim: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Unit vectors, float32 [queries, dim] and [gallery, dim]; query i looks for row i % gallery.

    The gallery is a mixture of a thousand Gaussians, and a query its right answer plus
    noise, so much that about half of the queries find it first.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((_CLUSTERS, dim), np.float32)
    base = rng.standard_normal((gallery, dim), np.float32)
    base += centres[rng.integers(0, _CLUSTERS, gallery)]
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    asked = np.empty((queries, dim), np.float32)
    for start in range(0, queries, QUERY_BLOCK):
        rows = np.arange(start, min(start + QUERY_BLOCK, queries)) % gallery
        noise = rng.standard_normal((len(rows), dim), np.float32) * np.float32(4.2 / dim**0.5)
        noisy = base[rows] + noise
        asked[start : start + len(rows)] = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    return asked, base


def plain_product(queries: Floats, gallery: Floats) -> None:
    """All scores, block by block, made and forgotten."""
    left, right = torch.from_numpy(queries), torch.from_numpy(gallery)
    buffer = torch.empty((QUERY_BLOCK, GALLERY_BLOCK))
    for first in range(0, len(left), QUERY_BLOCK):
        block = left[first : first + QUERY_BLOCK]
        for start in range(0, len(right), GALLERY_BLOCK):
            rows = right[start : start + GALLERY_BLOCK]
            torch.mm(block, rows.T, out=buffer.resize_(len(block), len(rows)))


def measure(
    queries: Annotated[int, typer.Option(help="Number of queries.")] = 186_000,
    gallery: Annotated[int, typer.Option(help="Number of gallery vectors.")] = 80_000,
    dim: Annotated[int, typer.Option(help="Length of a vector.")] = 512,
    k: Annotated[int, typer.Option(help="Answers kept of each query.")] = 10,
    slices: Annotated[int, typer.Option(help="How often they take turns.")] = 8,
    skip_faiss: Annotated[bool, typer.Option(help="Leave FAISS's knn out.")] = False,
) -> None:
    """Time exact evaluation beside a plain product and FAISS's knn."""
    asked, base = make_vectors(queries, gallery, dim)
    first_ranks: list[NDArray[np.int64]] = []

    def ours(rows: NDArray[np.int64]) -> None:
        right = Links(np.arange(len(rows)), rows % gallery)
        counts = count_answers(VectorScorer(asked[rows], base), right, Links(), k)
        first_ranks.append(1 + counts.above)

    def faiss_knn(rows: NDArray[np.int64]) -> None:
        faiss = import_faiss()
        faiss.knn(asked[rows], base, k, metric=faiss.METRIC_INNER_PRODUCT)

    ways: dict[str, Callable[[NDArray[np.int64]], None]] = {
        "count_answers": ours,
        "plain product": lambda rows: plain_product(asked[rows], base),
    }
    if not skip_faiss:
        ways["FAISS knn"] = faiss_knn
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for part in np.array_split(np.arange(queries), slices):
        for name, way in ways.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            way(part)
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - started_cpu)
    table = Table(
        "what", "wall s", "CPU s", "wall / count_answers (median of slices)", "min", "max"
    )
    for name in ways:
        ratios = np.array(wall[name]) / np.array(wall["count_answers"])
        row = [f"{sum(wall[name]):.1f}", f"{sum(cpu[name]):.1f}"]
        row += [f"{value:.2f}" for value in (np.median(ratios), ratios.min(), ratios.max())]
        table.add_row(name, *row)
    console = Console(width=110)
    console.print(table)
    ranks = np.concatenate(first_ranks)
    console.print(f"R@1 {np.mean(ranks <= 1):.3f}, R@10 {np.mean(ranks <= 10):.3f}")


if __name__ == "__main__":
    typer.run(measure)
