"""Exact places of judged answers and the first answers of each query.

The scores of all queries with a whole gallery do not fit into memory (186 k x 80 k are
60 GB), so they are made block by block and used at once. Most of the work is one matrix
product; the rest must not cost much beside it, so a block is looked at through the best
values of its segments, and only segments that can matter are compared value by value.

A fast product rounds each score by the order of its summands, which moves an answer past its
neighbours at random. So the blocks only say what is clearly above or below; scores closer
than the rounding error are computed again in float64 (`inner_products`). The result does not
depend on block sizes, threads, number format or the device.

Since exactness does not rest on the product, it may be rough: where the processor multiplies
bfloat16 by itself (AMX), that is seven times faster than float32. Blocks hold how far a score
lies below a centre, the query's best judged answer: rounding is relative, so the values near
the centre, which decide, are the most precise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.retrieval.order import Floats
from benchmarks.retrieval.task import Ints, Links
from indexing.processor import usable_cores

QUERY_BLOCK = 512
GALLERY_BLOCK = 4096
_SEGMENT = 64

Progress = Callable[[int, int], None]
Fill = Callable[[int, Tensor], None]


class Scorer(Protocol):
    """Scores of queries with gallery rows, fast and rounded, or exact."""

    queries: int
    gallery: int
    device: str  # where the blocks are made
    dtype: torch.dtype  # of the blocks
    # A value v of a block is no further than error + slope * |v| from the exact one.
    error: float
    slope: float

    def blocks(self, first: int, last: int, centre: Floats) -> Fill:
        """How to fill blocks of these queries.

        `centre` is float32 [last - first], and zero where `slope` is. The function fills
        `out` [last - first, w] with centre - score for the rows from `start` on; what lies
        past the gallery's end gets infinity.
        """

    def exact(self, query: Ints, row: Ints) -> Floats:
        """Scores of pairs, float32 [m], the same whatever else is asked."""


@dataclass(frozen=True)
class Counts:
    """What `count_answers` finds; m judged answers, q queries."""

    scores: Floats  # [m] of the judged answers
    above: Ints  # [m] answers that are neither judged nor taken out and score higher
    tied: Ints  # [m] those of the same score
    rows: Ints  # [q, depth] the best answers that are neither, -1 where there are no more
    row_scores: Floats  # [q, depth] their scores, -inf where there are no more


def count_answers(
    scorer: Scorer,
    judged: Links,
    taken_out: Links,
    depth: int,
    *,
    progress: Progress | None = None,
) -> Counts:
    """Compare every answer with the judged ones, exactly, and keep the first `depth`.

    `taken_out` are answers that a query may not get. Memory is a few blocks of
    QUERY_BLOCK x GALLERY_BLOCK scores a core.
    """
    spans = [
        (first, min(first + QUERY_BLOCK, scorer.queries))
        for first in range(0, scorer.queries, QUERY_BLOCK)
    ]
    parts: list[Counts] = []
    with _one_thread_each() as workers, ThreadPoolExecutor(workers) as pool:
        work = pool.map(lambda span: _Block(scorer, judged, taken_out, depth, span).count(), spans)
        for part, (_, last) in zip(work, spans, strict=True):
            parts.append(part)
            if progress is not None:
                progress(last, scorer.queries)
    return Counts(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.above for part in parts]),
        np.concatenate([part.tied for part in parts]),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.row_scores for part in parts]),
    )


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """As many workers as torch has threads, each of which computes alone: the small steps
    between two products then run on all cores, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield min(threads, usable_cores())
    finally:
        torch.set_num_threads(threads)


class _Block:
    """A span of queries against the whole gallery."""

    def __init__(
        self,
        scorer: Scorer,
        judged: Links,
        taken_out: Links,
        depth: int,
        span: tuple[int, int],
    ) -> None:
        first, last = span
        self._scorer, self._first, self._last = scorer, first, last
        self._size, self._device = last - first, scorer.device
        self._depth = min(depth, scorer.gallery)
        self._width = min(GALLERY_BLOCK, -(-scorer.gallery // _SEGMENT) * _SEGMENT)
        self._judged = _between(judged, first, last)
        self._hidden = self._judged.union(_between(taken_out, first, last))
        self._out_depth = depth

    def count(self) -> Counts:
        torch.set_num_threads(1)  # a setting of each thread
        query, row = self._judged.query, self._judged.row
        self._scores = self._scorer.exact(query + self._first, row)
        self._above = np.zeros(len(query), np.int64)
        self._tied = np.zeros(len(query), np.int64)
        self._slots = _slots(query, self._scores)
        self._found: list[tuple[Tensor, Tensor, Tensor]] = []
        self._best = torch.empty((self._size, 0), device=self._device)
        self._centre = self._centres()
        fill = self._scorer.blocks(self._first, self._last, self._centre)
        shape = (self._size, self._width)
        buffer = torch.empty(shape, dtype=self._scorer.dtype, device=self._device)
        hidden_column = self._hidden.row % self._width
        hidden_block = self._hidden.row // self._width
        for number, start in enumerate(range(0, self._scorer.gallery, self._width)):
            fill(start, buffer)
            here = np.flatnonzero(hidden_block == number)
            buffer[
                torch.from_numpy(self._hidden.query[here]), torch.from_numpy(hidden_column[here])
            ] = torch.inf
            segments = buffer.view(self._size, -1, _SEGMENT)
            tops = _least(segments)
            self._compare(segments, tops, start)
            self._collect(segments, tops, start)
        rows, row_scores = self._first_answers()
        return Counts(self._scores, self._above, self._tied, rows, row_scores)

    def _centres(self) -> Floats:
        """The best judged score of each query, where that makes the blocks more precise."""
        centres = np.full(self._size, -np.inf, np.float32)
        if self._scorer.slope:
            np.maximum.at(centres, self._judged.query, self._scores)
        return np.where(np.isfinite(centres), centres, np.float32(0))

    def _error(self, values: Tensor) -> Tensor:
        """How far values of a block near these may be from the exact ones."""
        return 1.02 * (self._scorer.error + self._scorer.slope * values.abs())

    def _compare(self, segments: Tensor, tops: Tensor, start: int) -> None:
        """Count what scores higher than each judged answer."""
        flat = segments.view(-1, _SEGMENT)
        for pairs in self._slots:
            # At most one judged answer of each query at a time.
            query = self._judged.query[pairs]
            queries = torch.from_numpy(query).to(self._device)
            limits = torch.from_numpy(self._centre[query] - self._scores[pairs]).to(self._device)
            errors = self._error(limits)
            slot, segment = _where(tops[queries] <= (limits + errors)[:, None])
            place = queries[slot] * segments.shape[1] + segment
            values = flat.index_select(0, place).float()
            least, most = (limits - errors)[slot][:, None], (limits + errors)[slot][:, None]
            higher = _count(values < least)
            close = _count(values <= most) - higher
            counted = torch.zeros(len(pairs), dtype=torch.int64, device=self._device)
            counted.index_add_(0, slot, higher)
            self._above[pairs] += counted.cpu().numpy()
            near = close.nonzero()[:, 0]
            if len(near):
                values, least, most = values[near], least[near], most[near]
                which, column = _where((values >= least) & (values <= most))
                self._decide(
                    pairs[slot[near][which].cpu().numpy()],
                    (segment[near][which] * _SEGMENT + column).cpu().numpy() + start,
                )

    def _decide(self, pair: Ints, row: Ints) -> None:
        """Compare exactly what the fast scores cannot tell apart."""
        scores = self._scorer.exact(self._judged.query[pair] + self._first, row)
        np.add.at(self._above, pair[scores > self._scores[pair]], 1)
        np.add.at(self._tied, pair[scores == self._scores[pair]], 1)

    def _collect(self, segments: Tensor, tops: Tensor, start: int) -> None:
        """Keep what may be among the first answers."""
        if not self._best.shape[1]:
            # Any k values bound the k-th best one; those of the best segments bound it well.
            best = tops.topk(min(self._depth, tops.shape[1]), dim=1, largest=False).indices
            values = segments[torch.arange(self._size, device=self._device)[:, None], best]
            self._keep_best(values.view(self._size, -1).float())
        limits = self._limits()[:, None]
        query, segment = _where(tops <= limits)
        values = segments.view(-1, _SEGMENT).index_select(0, query * segments.shape[1] + segment)
        values = values.float()
        which, column = _where(values <= limits[query])
        query, values = query[which], values[which, column]
        row = segment[which] * _SEGMENT + column + start
        self._found.append((query, row, values))
        if start:
            counts = torch.bincount(query, minlength=self._size)
            first = counts.cumsum(0) - counts
            place = torch.arange(len(query), device=self._device) - first[query]
            fresh = torch.full((self._size, int(counts.max())), torch.inf, device=self._device)
            fresh[query, place] = values  # they come in the order of the queries
            self._keep_best(torch.cat([self._best, fresh], dim=1))

    def _keep_best(self, values: Tensor) -> None:
        kept = min(self._depth, values.shape[1])
        self._best = values.topk(kept, dim=1, largest=False).values

    def _limits(self) -> Tensor:
        """What a value may be at most to be among the first answers, [size]."""
        # The largest finite number: what was taken out is never an answer.
        most = torch.finfo(torch.float32).max
        if self._best.shape[1] < self._depth:
            return torch.full((self._size,), most, device=self._device)
        last = self._best[:, -1].clamp_max(most)
        return (last + 2 * self._error(last)).clamp_max(most)

    def _first_answers(self) -> tuple[Ints, Floats]:
        """The first answers in exact order, the lower row first among equals."""
        query, row, values = (torch.cat(parts) for parts in zip(*self._found, strict=True))
        keep = values <= self._limits()[query]
        queries, rows_found = query[keep].cpu().numpy(), row[keep].cpu().numpy()
        scores = self._scorer.exact(queries + self._first, rows_found)
        order = np.lexsort((rows_found, -scores, queries))
        queries, rows_found, scores = queries[order], rows_found[order], scores[order]
        place = np.arange(len(queries)) - np.searchsorted(queries, queries)
        first = place < self._depth
        rows = np.full((self._size, self._out_depth), -1, np.int64)
        row_scores = np.full(rows.shape, -np.inf, np.float32)
        rows[queries[first], place[first]] = rows_found[first]
        row_scores[queries[first], place[first]] = scores[first]
        return rows, row_scores


def _between(links: Links, first: int, last: int) -> Links:
    """The links of these queries, numbered from 0."""
    part = slice(*np.searchsorted(links.query, [first, last]))
    return Links(links.query[part] - first, links.row[part])


def _slots(query: Ints, scores: Floats) -> list[Ints]:
    """Judged answers in rounds: each round holds at most one of a query, the best ones first."""
    order = np.lexsort((-scores, query))
    place = np.arange(len(query)) - np.searchsorted(query, query)
    rounds = np.empty(len(query), np.int64)
    rounds[order] = place
    return [np.flatnonzero(rounds == number) for number in range(int(rounds.max(initial=-1)) + 1)]


def _least(segments: Tensor) -> Tensor:
    """The least value of each segment, float32; -inf may stand for any negative one."""
    if segments.dtype != torch.bfloat16:
        return segments.amin(dim=2)
    # As whole numbers they are compared five times faster, and in the same order but for
    # negative ones, which come first in the order of their size.
    least = segments.view(torch.int16).amin(dim=2)
    return least.view(torch.bfloat16).float().masked_fill(least < 0, -torch.inf)


def _where(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and columns of what is True, row by row (torch's `nonzero` is slow on a CPU)."""
    if mask.is_cuda:
        found = mask.nonzero()
        return found[:, 0], found[:, 1]
    rows, columns = np.divmod(np.flatnonzero(mask.numpy()), max(1, mask.shape[1]))
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _count(mask: Tensor) -> Tensor:
    """How many are True in each row of a bool [n, 64], int64 [n].

    Eight flags are added at once, each in its own byte: summing flags is slow.
    """
    bytes_ = mask.view(torch.int64).sum(dim=1).view(torch.uint8)
    return bytes_.view(-1, 8).sum(dim=1)
