"""How fast exact evaluation is: `python -m benchmarks.exact_speed`.

The same queries and gallery go through `count_answers` (ranks of all right answers and the
first k), through a plain blocked float32 product that throws its scores away, and through
FAISS's `knn`, as its wheel comes and with the BLAS kernel that fits the processor. They take
turns, slice by slice of the queries, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

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
from indexing.malloc import keep_freed_memory

Floats = NDArray[np.float32]
_CLUSTERS = 1000
_SIDES = ("queries", "gallery")


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
        noise = rng.standard_normal((len(rows), dim), np.float32) * np.float32(5.5 / dim**0.5)
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


class FaissProcess:
    """FAISS in a process of its own, as its BLAS chooses a kernel once, when it is loaded."""

    def __init__(self, folder: Path, fitting_kernel: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = context.Pool(1, _load, (folder, fitting_kernel))

    def __enter__(self) -> FaissProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()

    def knn(self, first: int, last: int, k: int) -> float:
        """Seconds of the k nearest of these queries."""
        seconds: float = self._pool.apply(_knn, (first, last, k))
        return seconds


_loaded: dict[str, Any] = {}


def _load(folder: Path, fitting_kernel: bool) -> None:
    if fitting_kernel:
        faiss: Any = import_faiss()
    else:
        import faiss  # not through our door, which chooses the kernel
    _loaded.update(faiss=faiss, **{side: np.load(folder / f"{side}.npy") for side in _SIDES})


def _knn(first: int, last: int, k: int) -> float:
    faiss = _loaded["faiss"]
    started = time.perf_counter()
    queries, gallery = (_loaded[side] for side in _SIDES)
    faiss.knn(queries[first:last], gallery, k, metric=faiss.METRIC_INNER_PRODUCT)
    return time.perf_counter() - started


def measure(
    queries: Annotated[int, typer.Option(help="Number of queries.")] = 186_000,
    gallery: Annotated[int, typer.Option(help="Number of gallery vectors.")] = 80_000,
    dim: Annotated[int, typer.Option(help="Length of a vector.")] = 512,
    k: Annotated[int, typer.Option(help="Answers kept of each query.")] = 10,
    slices: Annotated[int, typer.Option(help="How often they take turns.")] = 6,
    faiss: Annotated[bool, typer.Option(help="Time FAISS's knn, too.")] = True,
    bfloat16: Annotated[
        bool, typer.Option(help="Use bfloat16 where the processor multiplies it by itself.")
    ] = True,
) -> None:
    """Time exact evaluation beside a plain product and FAISS's knn."""
    keep_freed_memory()
    asked, base = make_vectors(queries, gallery, dim)
    ranks: list[NDArray[np.int64]] = []

    def ours(first: int, last: int) -> float:
        started = time.perf_counter()
        right = Links(np.arange(last - first), np.arange(first, last) % gallery)
        scorer = VectorScorer(asked[first:last], base, dtype=None if bfloat16 else torch.float32)
        counts = count_answers(scorer, right, Links(), k)
        ranks.append(1 + counts.above)
        return time.perf_counter() - started

    def plain(first: int, last: int) -> float:
        started = time.perf_counter()
        plain_product(asked[first:last], base)
        return time.perf_counter() - started

    with ExitStack() as stack:
        ways: dict[str, Callable[[int, int], float]] = {"count_answers": ours, "product": plain}
        if faiss:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for side, vectors in zip(_SIDES, (asked, base), strict=True):
                np.save(folder / f"{side}.npy", vectors)
            for name, fitting in (("FAISS knn, as installed", False), ("FAISS knn, fitted", True)):
                process = stack.enter_context(FaissProcess(folder, fitting))
                ways[name] = partial(process.knn, k=k)
        bounds = np.linspace(0, queries, slices + 1).astype(int).tolist()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for first, last in pairwise(bounds):
            for name, way in ways.items():
                seconds[name].append(way(first, last))
    table = Table("what", "seconds", "times count_answers (median)", "min", "max")
    for name in ways:
        ratios = np.array(seconds[name]) / np.array(seconds["count_answers"])
        row = [f"{value:.2f}" for value in (np.median(ratios), ratios.min(), ratios.max())]
        table.add_row(name, f"{sum(seconds[name]):.1f}", *row)
    console = Console(width=110)
    console.print(table)
    found = np.concatenate(ranks)
    console.print(f"R@1 {np.mean(found <= 1):.3f}, R@10 {np.mean(found <= 10):.3f}")


if __name__ == "__main__":
    typer.run(measure)
