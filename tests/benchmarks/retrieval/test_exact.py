"""Exact counting against a dense float64 computation, on data made to break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.retrieval import exact, scorers
from benchmarks.retrieval.exact import Counts, Fill, Scorer, count_answers
from benchmarks.retrieval.order import Floats
from benchmarks.retrieval.scorers import VectorScorer
from benchmarks.retrieval.task import Ints, Links

DTYPES = [torch.float32, torch.bfloat16]
Vectors = tuple[Floats, Floats]


class TableScorer:
    """Scores from a table, and blocks of them that are as wrong as they may be."""

    device = "cpu"
    dtype = torch.float32
    slope = 0.0

    def __init__(self, table: Floats, error: float = 0.0) -> None:
        self.queries, self.gallery = table.shape
        self.error = error
        self._table = table
        self._wrong = np.random.default_rng(0).uniform(-error, error, table.shape)

    def blocks(self, first: int, last: int, centre: Floats) -> Fill:
        assert not centre.any()  # as there is no slope

        def fill(start: int, out: Tensor) -> None:
            part = slice(start, start + out.shape[1])
            shown = (self._table + self._wrong)[first:last, part].astype(np.float32)
            out[:] = torch.inf
            out[:, : shown.shape[1]] = torch.from_numpy(-shown)

        return fill

    def exact(self, query: Ints, row: Ints) -> Floats:
        return self._table[query, row]


def unit(vectors: NDArray[Any]) -> Floats:
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors, np.float32)


def random(rng: np.random.Generator) -> Vectors:
    return unit(rng.standard_normal((21, 40))), unit(rng.standard_normal((301, 40)))


def near(rng: np.random.Generator) -> Vectors:
    """Vectors of which all are nearly the same, as those of a model that learned nothing."""
    return unit(1 + 1e-3 * rng.random((21, 300))), unit(1 + 1e-3 * rng.random((301, 300)))


def signs(rng: np.random.Generator) -> Vectors:
    """Few distinct scores, far apart; 1/sqrt(48) loses the same in each product."""
    return unit(rng.choice([-1, 1], (21, 48))), unit(rng.choice([-1, 1], (301, 48)))


def repeated(rng: np.random.Generator) -> Vectors:
    rows = unit(rng.standard_normal((17, 24)))
    return rows[rng.integers(0, 17, 21)], rows[rng.integers(0, 17, 301)]


def two_tones(rng: np.random.Generator) -> Vectors:
    """As pixels of plain shapes: long vectors of two values."""
    pictures = unit(np.where(rng.random((9, 300)) < 0.5, 1.0, 0.1))
    return pictures[rng.integers(0, 9, 21)], pictures[rng.integers(0, 9, 301)]


def constant(rng: np.random.Generator) -> Vectors:
    return unit(np.ones((21, 300))), unit(np.ones((301, 300)))


def nothing(rng: np.random.Generator) -> Vectors:
    """Vectors of zeros: pictures of one shade."""
    return np.zeros((21, 8), np.float32), np.zeros((301, 8), np.float32)


DATA = [random, near, signs, repeated, two_tones, constant, nothing]


def some_links(rng: np.random.Generator, queries: int, gallery: int, share: float) -> Links:
    return Links.of(*np.nonzero(rng.random((queries, gallery)) < share))


def dense(table: Floats, judged: Links, taken_out: Links, depth: int) -> Counts:
    """All scores at once, and one query after the other."""
    known = np.zeros(table.shape, bool)
    known[judged.query, judged.row] = True
    known[taken_out.query, taken_out.row] = True
    scores = table[judged.query, judged.row]
    rows = np.full((len(table), depth), -1, np.int64)
    row_scores = np.full((len(table), depth), -np.inf, np.float32)
    for query, line in enumerate(table):
        others = np.flatnonzero(~known[query])
        best = others[np.lexsort((others, -line[others]))][:depth]
        rows[query, : len(best)], row_scores[query, : len(best)] = best, line[best]
    rest = np.where(known, np.float32(np.nan), table)[judged.query]
    above = (rest > scores[:, np.newaxis]).sum(axis=1)
    tied = (rest == scores[:, np.newaxis]).sum(axis=1)
    return Counts(scores, above, tied, rows, row_scores)


def table_of(vectors: Vectors) -> Floats:
    queries, gallery = (side.astype(np.float64) for side in vectors)
    return (queries @ gallery.T).astype(np.float32)


def check(found: Counts, expected: Counts) -> None:
    for field in fields(Counts):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert one.dtype == other.dtype, field.name
        np.testing.assert_array_equal(one, other, field.name)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def set_to(queries: int, gallery: int) -> None:
        monkeypatch.setattr(exact, "QUERY_BLOCK", queries)
        monkeypatch.setattr(exact, "GALLERY_BLOCK", gallery)

    return set_to


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("data", DATA)
def test_counts_are_those_of_all_scores_in_float64(
    data: Callable[[np.random.Generator], Vectors], dtype: torch.dtype,
    small_blocks: Callable[[int, int], None],
) -> None:  # fmt: skip
    rng = np.random.default_rng(5)
    vectors = data(rng)
    judged = some_links(rng, 21, 301, 0.02)
    taken_out = some_links(rng, 21, 301, 0.03)
    assert np.bincount(judged.query).max() > 3
    scorer = VectorScorer(*vectors, dtype=dtype)
    expected = dense(table_of(vectors), judged, taken_out, 10)
    check(count_answers(scorer, judged, taken_out, 10), expected)
    for queries, gallery in ((21, 64), (4, 128), (1, 256)):
        small_blocks(queries, gallery)
        check(count_answers(scorer, judged, taken_out, 10), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [8, 49, 300, 1000])
def test_a_block_is_no_further_from_the_truth_than_it_says(dim: int, dtype: torch.dtype) -> None:
    """Also where all products round the same way, so that what they lose adds up."""
    rng = np.random.default_rng(2)
    steps = np.where(rng.random((64, dim)) < 0.5, 1.0, 0.1)
    parts = [rng.standard_normal((64, dim)), rng.choice([-1, 1], (64, dim)), steps]
    vectors = unit(np.concatenate([*parts, np.ones((64, dim))]))
    scorer = VectorScorer(vectors, vectors, dtype=dtype)
    scores = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    centre = scores.max(axis=1).astype(np.float32) * (scorer.slope > 0)
    block = torch.empty((256, 320), dtype=dtype)
    scorer.blocks(0, 256, centre)(0, block)
    shown = block.double().numpy()
    assert np.isposinf(shown[:, 256:]).all()
    off = np.abs(centre[:, np.newaxis] - scores - shown[:, :256])
    assert (off <= scorer.error + scorer.slope * np.abs(shown[:, :256])).all()


def test_bfloat16_only_where_it_can_tell_scores_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would leave nearly all scores of `near` to be computed again."""
    rng = np.random.default_rng(3)
    monkeypatch.setattr(scorers, "fast_bfloat16", lambda device: True)
    assert VectorScorer(*random(rng)).dtype == torch.bfloat16
    for data in (near, constant, nothing):
        assert VectorScorer(*data(rng)).dtype == torch.float32
    assert VectorScorer(*random(rng), dtype=torch.float32).dtype == torch.float32
    monkeypatch.setattr(scorers, "fast_bfloat16", lambda device: False)
    assert VectorScorer(*random(rng)).dtype == torch.float32


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 129, 200])
def test_galleries_of_any_size(size: int, small_blocks: Callable[[int, int], None]) -> None:
    rng = np.random.default_rng(size)
    table = rng.integers(0, 5, (7, size)).astype(np.float32)
    judged = Links.of(np.arange(7), rng.integers(0, size, 7))
    for width in (64, 4096):
        small_blocks(3, width)
        for depth in (1, 10, 150):
            found = count_answers(TableScorer(table), judged, Links(), depth)
            check(found, dense(table, judged, Links(), depth))


@pytest.mark.parametrize("depth", [1, 7, 64, 500])
@pytest.mark.parametrize("error", [0.0, 0.3, 3.0, 1e4])
def test_rough_blocks_change_nothing(
    error: float, depth: int, small_blocks: Callable[[int, int], None]
) -> None:
    rng = np.random.default_rng(8)
    table = rng.normal(0, 1, (11, 400)).astype(np.float32).round(1)
    judged = some_links(rng, 11, 400, 0.02)
    taken_out = some_links(rng, 11, 400, 0.02)
    small_blocks(5, 64)
    scorer: Scorer = TableScorer(table, error)
    check(count_answers(scorer, judged, taken_out, depth), dense(table, judged, taken_out, depth))


def test_what_is_taken_out_is_never_an_answer(small_blocks: Callable[[int, int], None]) -> None:
    """Not even where nothing else is left, and it hides its place only."""
    table = np.tile(np.arange(130, dtype=np.float32), (3, 1))
    judged = Links(np.array([0, 1, 2]), np.array([0, 0, 129]))
    everything = np.stack(np.nonzero(np.ones((2, 130))))
    taken_out = Links.of(np.append(everything[0], [2, 2]), np.append(everything[1], [128, 127]))
    for width in (64, 4096):
        small_blocks(2, width)
        found = count_answers(TableScorer(table), judged, taken_out, 140)
        assert (found.rows[:2] == -1).all()
        assert np.isneginf(found.row_scores[:2]).all()
        assert found.rows[2].tolist() == [*range(126, -1, -1), *[-1] * 13]
        assert found.above.tolist() == [0, 0, 0]
        assert found.scores.tolist() == [0, 0, 129]


def test_nothing_judged_and_progress(small_blocks: Callable[[int, int], None]) -> None:
    small_blocks(4, 64)
    table = np.arange(9 * 70, dtype=np.float32).reshape(9, 70) % 13
    seen: list[tuple[int, int]] = []
    found = count_answers(
        TableScorer(table), Links(), Links(), 5, progress=lambda *done: seen.append(done)
    )
    check(found, dense(table, Links(), Links(), 5))
    assert seen == [(4, 9), (8, 9), (9, 9)]


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_neither_the_answers_nor_their_own_number(
    threads: int, small_blocks: Callable[[int, int], None]
) -> None:
    class Broken(TableScorer):
        def exact(self, query: Ints, row: Ints) -> Floats:
            raise RuntimeError("no")

    rng = np.random.default_rng(1)
    vectors = signs(rng)
    judged = some_links(rng, 21, 301, 0.02)
    small_blocks(2, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = count_answers(VectorScorer(*vectors), judged, Links(), 7)
        assert torch.get_num_threads() == threads
        with pytest.raises(RuntimeError, match="no"):
            count_answers(Broken(table_of(vectors)), judged, Links(), 7)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    check(found, dense(table_of(vectors), judged, Links(), 7))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("data", DATA)
def test_a_gpu_counts_the_same(data: Callable[[np.random.Generator], Vectors]) -> None:
    rng = np.random.default_rng(5)
    vectors = data(rng)
    judged, taken_out = some_links(rng, 21, 301, 0.02), some_links(rng, 21, 301, 0.03)
    expected = count_answers(VectorScorer(*vectors), judged, taken_out, 10)
    for dtype in DTYPES:
        scorer = VectorScorer(*vectors, "cuda", dtype)
        check(count_answers(scorer, judged, taken_out, 10), expected)
