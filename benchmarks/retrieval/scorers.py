"""Scores of unit vectors, for exact evaluation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.retrieval.exact import Fill
from benchmarks.retrieval.order import Floats
from benchmarks.retrieval.task import Ints
from indexing.processor import processor_flags
from indexing.vectors import inner_products

_PAIRS = 1 << 8  # pairs whose vectors are gathered at once: they stay in the cache
_ROWS = 1 << 14  # vectors that are rounded at once
_TOLD_APART = 4  # errors to a standard deviation of scores: with fewer, float32 is faster
_TILE = 32  # AMX multiplies this many bfloat16 of a row at a time


class VectorScorer:
    """Inner products of unit vectors."""

    def __init__(
        self,
        queries: Floats,
        gallery: Floats,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """`queries` is float32 [q, d], `gallery` float32 [n, d].

        `dtype` is that of the fast product: float32, or bfloat16 (the default) where the
        processor multiplies it faster and the scores lie far enough apart for it to tell
        most of them. It changes the time and no answer.
        """
        self.queries, self.gallery = len(queries), len(gallery)
        self.device = device
        self._vectors = queries, gallery
        # Each of d sums and products rounds by 2^-24 of at most |query| |row| = 1, in any order
        # (Higham 2002, section 3.1); a few more for what is added and compared around them.
        self.dtype, self.slope = torch.float32, 0.0
        self.error = (queries.shape[1] + 8) * 2.0**-24
        if dtype == torch.bfloat16 or (dtype is None and fast_bfloat16(device)):
            # What rounding took from the vectors, by the Cauchy-Schwarz bound; the centre's
            # columns double the sum's size; then the sum is rounded to 8 bits.
            rough = 2 * self.error + _most_lost(queries) + _most_lost(gallery)
            if dtype is not None or _spread(queries, gallery) > _TOLD_APART * rough:
                self.dtype, self.slope, self.error = torch.bfloat16, 2.0**-8, rough
        self._right = self._on_device(gallery, np.ones((len(gallery), 3), np.float32))

    def blocks(self, first: int, last: int, centre: Floats) -> Fill:
        # Three columns more subtract the score from the centre, which three bfloat16 hold.
        rest, parts = torch.from_numpy(centre), []
        for _ in range(3):
            parts.append(rest.to(self.dtype).float())
            rest = rest - parts[-1]
        left = self._on_device(-self._vectors[0][first:last], torch.stack(parts, dim=1).numpy())

        def fill(start: int, out: Tensor) -> None:
            rows = self._right[start : start + out.shape[1]]
            if len(rows) == out.shape[1]:
                torch.mm(left, rows.T, out=out)
            else:
                out[:, : len(rows)] = left @ rows.T
                out[:, len(rows) :] = torch.inf

        return fill

    def exact(self, query: Ints, row: Ints) -> Floats:
        queries, gallery = self._vectors
        scores = np.empty(len(query), np.float32)
        for start in range(0, len(query), _PAIRS):
            part = slice(start, start + _PAIRS)
            scores[part] = inner_products(queries[query[part]], gallery[row[part]])
        return scores

    def _on_device(self, vectors: Floats, columns: Floats) -> Tensor:
        if self.dtype == torch.float32:  # the centre is zero
            return torch.from_numpy(vectors).to(self.device)
        width = vectors.shape[1] + columns.shape[1]
        wide = torch.zeros(len(vectors), -(-width // _TILE) * _TILE, dtype=self.dtype)
        wide[:, : vectors.shape[1]] = torch.from_numpy(vectors)
        wide[:, vectors.shape[1] : width] = torch.from_numpy(columns)
        return wide.to(self.device)


def fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 matrices are multiplied faster than float32 ones, with float32 sums."""
    if device != "cpu":  # a GPU may round partial sums, which the error bound does not know
        return False
    return "amx_bf16" in processor_flags()


def _spread(queries: Floats, gallery: Floats) -> float:
    """The standard deviation of a query's scores, by a sample."""
    some, rows = (side[:: len(side) // 100 + 1] for side in (queries, gallery))
    return float(np.median((some @ rows.T).std(axis=1)))


def _most_lost(vectors: Floats) -> float:
    """The largest distance between a vector and itself in bfloat16."""
    most = 0.0
    for start in range(0, len(vectors), _ROWS):
        part = torch.from_numpy(vectors[start : start + _ROWS])
        lost = torch.linalg.vector_norm(part - part.bfloat16().float(), dim=1)
        most = max(most, float(lost.max()))
    return most
