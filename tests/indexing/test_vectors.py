from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexing import faiss_import
from indexing.errors import IndexCorruptError, MissingDependencyError, QueryError
from indexing.vectors import ExactIndex


def brute_force(
    vectors: NDArray[np.float32], query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]
) -> list[tuple[float, int]]:
    scored = [
        (float(np.float32(np.dot(vector.astype(float), query.astype(float)))), row)
        for row, vector in enumerate(vectors)
        if allowed[row]
    ]
    best = sorted(scored, key=lambda pair: (-pair[0], pair[1]))[:k]
    return best + [(-np.inf, -1)] * (k - len(best))


@st.composite
def cases(
    draw: st.DrawFn,
) -> tuple[NDArray[np.float32], NDArray[np.float32], int, NDArray[np.bool_]]:
    n, dim = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    # Whole numbers from few values: sums are exact, and ties are everywhere.
    numbers = st.integers(-1, 1)
    vectors = draw(st.lists(numbers, min_size=n * dim, max_size=n * dim))
    queries = draw(st.lists(numbers, min_size=3 * dim, max_size=3 * dim))
    allowed = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return (
        np.array(vectors, np.float32).reshape(n, dim),
        np.array(queries, np.float32).reshape(3, dim),
        draw(st.integers(1, 70)),
        np.array(allowed),
    )


@settings(max_examples=150, deadline=None)
@given(cases())
def test_answers_are_those_of_brute_force_ties_and_filters_included(
    case: tuple[NDArray[np.float32], NDArray[np.float32], int, NDArray[np.bool_]],
) -> None:
    vectors, queries, k, allowed = case
    index = ExactIndex.from_vectors(vectors)
    for mask in (None, allowed):
        scores, rows = index.search(queries, k, mask)
        assert (scores.shape, scores.dtype) == ((3, k), np.float32)
        assert rows.dtype == np.int64
        everything = np.ones(len(vectors), np.bool_) if mask is None else mask
        for query, query_scores, query_rows in zip(queries, scores, rows, strict=True):
            expected = brute_force(vectors, query, k, everything)
            answers = zip(query_scores.tolist(), query_rows.tolist(), strict=True)
            assert list(answers) == expected


def test_many_equal_vectors_come_in_row_order_whatever_the_batch() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    same = np.sort(rng.choice(3000, 900, replace=False))
    vectors[same] = vectors[same[0]]
    index = ExactIndex.from_vectors(vectors)
    queries = np.concatenate([vectors[same[:1]], vectors[:40]])
    scores, rows = index.search(queries, 700)
    assert rows[0].tolist() == same[:700].tolist()
    assert len(set(scores[0].tolist())) == 1
    for number, query in enumerate(queries):  # FAISS itself uses another kernel for 20 or more
        alone_scores, alone_rows = index.search(query[np.newaxis], 700)
        assert alone_rows[0].tolist() == rows[number].tolist()
        assert alone_scores[0].tolist() == scores[number].tolist()


def test_a_filter_that_allows_one_of_many_finds_it() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(10_000, 8)).astype(np.float32)
    index = ExactIndex.from_vectors(vectors)
    allowed = np.zeros(10_000, np.bool_)
    allowed[7_321] = True
    scores, rows = index.search(-vectors[7_321:7_322], 3, allowed)
    assert rows.tolist() == [[7_321, -1, -1]]
    assert scores[0, 0] == pytest.approx(-float(vectors[7_321] @ vectors[7_321]), rel=1e-6)
    assert np.isneginf(scores[0, 1:]).all()


def test_nothing_allowed_and_nothing_stored() -> None:
    index = ExactIndex.from_vectors(np.eye(3, dtype=np.float32))
    for empty, mask in (
        (index, np.zeros(3, np.bool_)),
        (ExactIndex.from_vectors(np.empty((0, 3), np.float32)), None),
    ):
        scores, rows = empty.search(np.eye(3, dtype=np.float32), 2, mask)
        assert rows.tolist() == [[-1, -1]] * 3
        assert np.isneginf(scores).all()


def test_no_queries_give_no_answers() -> None:
    index = ExactIndex.from_vectors(np.eye(3, dtype=np.float32))
    scores, rows = index.search(np.empty((0, 3), np.float32), 2)
    assert scores.shape == rows.shape == (0, 2)


@pytest.mark.parametrize(
    ("queries", "k", "allowed", "message"),
    [
        (np.zeros((1, 4), np.float32), 1, None, r"\(1, 4\): must be \[n, 3\]"),
        (np.zeros(3, np.float32), 1, None, r"must be \[n, 3\]"),
        (np.full((1, 3), np.nan, np.float32), 1, None, "NaN"),
        (np.full((1, 3), np.inf, np.float32), 1, None, "infinity"),
        (np.zeros((1, 3), np.float32), 0, None, "k is 0"),
        (np.zeros((1, 3), np.float32), 1, np.ones(4, np.bool_), "filter"),
    ],
)
def test_queries_that_make_no_sense_are_refused(
    queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, message: str
) -> None:
    index = ExactIndex.from_vectors(np.eye(3, dtype=np.float32))
    with pytest.raises(QueryError, match=message):
        index.search(queries, k, allowed)


def test_vectors_that_are_not_finite_are_refused() -> None:
    vectors = np.eye(3, dtype=np.float32)
    vectors[1, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        ExactIndex.from_vectors(vectors)


def test_a_saved_index_holds_the_same_vectors(tmp_path: Path) -> None:
    vectors = np.random.default_rng(2).normal(size=(100, 7)).astype(np.float32)
    ExactIndex.from_vectors(vectors).save(tmp_path / "x.faiss")
    loaded = ExactIndex.load(tmp_path / "x.faiss")
    assert (loaded.ntotal, loaded.dim) == (100, 7)
    assert loaded.holds(vectors)
    assert loaded.search(vectors[:5], 1)[1].shape == (5, 1)
    changed = vectors.copy()
    changed[99, 6] = np.nextafter(changed[99, 6], np.float32(9))
    assert not loaded.holds(changed)
    assert not loaded.holds(vectors[:99])


def test_what_is_no_exact_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.faiss"
    ExactIndex.from_vectors(np.eye(4, dtype=np.float32)).save(path)
    whole = path.read_bytes()
    for content in (b"", b"garbage", whole[:-1], whole[:20]):
        path.write_bytes(content)
        with pytest.raises(IndexCorruptError, match=r"x\.faiss"):
            ExactIndex.load(path)
    faiss = faiss_import.import_faiss()
    faiss.write_index(faiss.IndexFlatL2(4), str(path))
    with pytest.raises(IndexCorruptError, match="IndexFlatL2"):
        ExactIndex.load(path)


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "full"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="full"):
        ExactIndex.from_vectors(np.zeros((100_000, 8), np.float32)).save(path)


def test_missing_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss_import.import_faiss.cache_clear()
    monkeypatch.setitem(sys.modules, "faiss", None)
    try:
        with pytest.raises(MissingDependencyError, match=r"pip install 'shoplens\[cpu\]'"):
            ExactIndex.from_vectors(np.eye(3, dtype=np.float32))
    finally:
        faiss_import.import_faiss.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "flags", "chosen_by_user", "expected"),
    [
        ("GenuineIntel", "avx512f avx512cd avx512bw avx512dq avx512vl avx2", None, "SKYLAKEX"),
        ("AuthenticAMD", "avx512f avx512cd avx512bw avx512dq avx512vl avx2", None, "SKYLAKEX"),
        ("GenuineIntel", "avx512f avx512cd avx512bw avx512dq avx512vl avx2", "ZEN", "ZEN"),
        ("GenuineIntel", "avx2 fma", None, "HASWELL"),
        ("GenuineIntel", "avx2 fma", "", ""),
        ("AuthenticAMD", "avx2 fma", None, None),
        ("GenuineIntel", "avx512f avx512cd avx2", None, None),
        ("", "", None, None),
    ],
)
def test_the_blas_kernel_is_named_for_new_processors_unless_the_user_did(
    monkeypatch: pytest.MonkeyPatch,
    vendor: str,
    flags: str,
    chosen_by_user: str | None,
    expected: str | None,
) -> None:
    monkeypatch.setattr(faiss_import, "processor_flags", lambda: set(flags.split()))
    monkeypatch.setattr(faiss_import, "processor_info", {"vendor_id": vendor}.__getitem__)
    monkeypatch.setenv("OPENBLAS_CORETYPE", chosen_by_user or "")
    if chosen_by_user is None:
        monkeypatch.delenv("OPENBLAS_CORETYPE")
    faiss_import._choose_blas_kernel()
    assert os.environ.get("OPENBLAS_CORETYPE") == expected
