"""Every index type: written, read back, and searched beside brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexing import index_types, plan
from indexing.approximate import ApproximateIndex
from indexing.errors import IndexCorruptError, IndexFolderError, IndexPlanError, QueryError
from indexing.faiss_import import import_faiss
from indexing.index_types import IndexRecord, Plan, read_index, write_index
from indexing.ranking import best_rows
from indexing.vectors import VectorIndex, inner_products

Floats = NDArray[np.float32]
N, DIM = 3000, 32


def clustered(count: int, seed: int) -> Floats:
    """Unit vectors around 40 centres, the same for all seeds."""
    centres = np.random.default_rng(0).standard_normal((40, DIM))
    rng = np.random.default_rng(seed)
    drawn = centres[rng.integers(0, 40, count)] + rng.standard_normal((count, DIM))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


VECTORS = clustered(N, 1)
QUERIES = clustered(20, 2)


def brute_force(query: Floats, k: int, allowed: NDArray[np.bool_]) -> list[int]:
    rows = np.flatnonzero(allowed)
    scores = inner_products(query[np.newaxis], VECTORS[rows])
    best: list[int] = rows[np.lexsort((rows, -scores))[:k]].tolist()
    return best


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IndexRecord]:
    path = tmp_path_factory.mktemp("index") / "index.faiss"
    chosen = Plan.approximate(plan.default_factory(N, DIM), N, DIM)
    return path, write_index(VECTORS, path, chosen)


@pytest.fixture(scope="module")
def index(built: tuple[Path, IndexRecord]) -> VectorIndex:
    return read_index(built[0], VECTORS, built[1])


class TestRanking:
    @given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 80))
    def test_the_best_of_rows_are_those_of_sorting_all(self, seed: int, m: int, k: int) -> None:
        """With numbers of few values, so that ties are everywhere."""
        rng = np.random.default_rng(seed)
        vectors = rng.integers(-1, 2, (100, 4)).astype(np.float32)
        query = rng.integers(-1, 2, 4).astype(np.float32)
        rows = np.sort(rng.choice(100, m, replace=False))
        scores, best = best_rows(query, vectors, rows, k)
        exact = vectors[rows] @ query
        order = np.lexsort((rows, -exact))[:k]
        assert best.tolist() == rows[order].tolist()
        assert scores.tolist() == exact[order].tolist()

    def test_vectors_mapped_from_disk_rank_as_those_in_memory(self, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", VECTORS)
        mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
        rows = np.arange(0, N, 3)
        for query in QUERIES[:3]:
            here, there = (best_rows(query, v, rows, 7) for v in (VECTORS, mapped))
            assert here[0].tolist() == there[0].tolist()
            assert here[1].tolist() == there[1].tolist()


class TestApproximate:
    def test_the_record_says_what_was_measured(self, built: tuple[Path, IndexRecord]) -> None:
        found = built[1].search
        assert found is not None
        assert found.recall_in >= 0.99
        assert found.recall_out >= 0.98
        assert (found.outside, found.queries, found.complete) == ("stand-ins", 64, True)
        assert found.bytes_per_vector == built[0].stat().st_size / N
        assert IndexRecord.model_validate_json(built[1].model_dump_json()) == built[1]
        assert "held-out" in str(built[1])

    def test_recall_is_that_of_the_record_on_queries_that_it_never_saw(
        self, index: VectorIndex
    ) -> None:
        rows = index.search(QUERIES, 10)[1]
        everything = np.ones(N, np.bool_)
        truth = [brute_force(query, 10, everything) for query in QUERIES]
        hits = [len({*a} & {*b}) for a, b in zip(rows.tolist(), truth, strict=True)]
        assert sum(hits) >= 0.98 * 10 * len(QUERIES)

    def test_scores_are_exact_and_in_order(self, index: VectorIndex) -> None:
        scores, rows = index.search(QUERIES, 10)
        for query, mine, found in zip(QUERIES, scores, rows, strict=True):
            assert mine.tolist() == inner_products(query[np.newaxis], VECTORS[found]).tolist()
            assert (np.diff(mine) <= 0).all()

    @settings(max_examples=40)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 1.0]))
    def test_any_filter_gives_k_allowed_answers_and_narrow_ones_the_exact(
        self, index: VectorIndex, seed: int, share: float
    ) -> None:
        rng = np.random.default_rng(seed)
        gathered = VECTORS @ rng.standard_normal(DIM)
        key = gathered if seed % 2 else rng.random(N)
        wanted = round(share * N)
        allowed = np.zeros(N, np.bool_)
        allowed[np.argsort(key)[:wanted]] = True
        query = QUERIES[seed % len(QUERIES)]
        scores, rows = index.search(query[np.newaxis], 10, allowed)
        found = min(10, wanted)
        assert allowed[rows[0, :found]].all()
        assert rows[0, found:].tolist() == [-1] * (10 - found)
        assert np.isneginf(scores[0, found:]).all()
        assert np.isfinite(scores[0, :found]).all()
        truth = brute_force(query, 10, allowed)
        if wanted <= 300:  # fewer than are ranked by their full vectors anyway
            assert rows[0, :found].tolist() == truth
        else:
            assert len({*rows[0].tolist()} & {*truth}) >= 9

    def test_wide_filters_go_into_the_scan_and_find_what_exact_search_finds(
        self, built: tuple[Path, IndexRecord]
    ) -> None:
        faiss = import_faiss()
        forced = ApproximateIndex(  # a scan that costs nothing
            faiss.read_index(str(built[0])), VECTORS, candidates=400, scan_seconds=1e-12
        )
        hits = 0
        for number, query in enumerate(QUERIES):
            allowed = np.random.default_rng(number).random(N) < 0.5
            assert not forced.prefers_scan(int(allowed.sum()), 400)
            rows = forced.search(query[np.newaxis], 10, allowed)[1][0]
            hits += len({*rows.tolist()} & {*brute_force(query, 10, allowed)})
        assert hits >= 0.99 * 10 * len(QUERIES)

    def test_costs_decide_between_the_scan_and_all_rows(
        self, built: tuple[Path, IndexRecord]
    ) -> None:
        faiss = import_faiss()
        loaded = faiss.read_index(str(built[0]))
        here = ApproximateIndex(
            loaded, VECTORS, candidates=100, scan_seconds=1e-3, row_seconds=1e-6
        )
        assert here.prefers_scan(1100, 100)  # a thousand rows more, of a microsecond each
        assert not here.prefers_scan(1101, 100)

    def test_more_answers_than_candidates_and_than_vectors(self, index: VectorIndex) -> None:
        scores, rows = index.search(QUERIES[:2], N + 5)
        assert sorted(rows[0].tolist()) == [-1] * 5 + list(range(N))
        assert np.isneginf(scores[:, N:]).all()

    def test_an_index_that_finds_too_few_is_helped_out(
        self, built: tuple[Path, IndexRecord]
    ) -> None:
        faiss = import_faiss()
        one_list = ApproximateIndex(
            faiss.read_index(str(built[0])), VECTORS, candidates=10, probes=1, scan_seconds=1e-12
        )
        rows = one_list.search(QUERIES, 600)[1]
        assert (rows >= 0).all()
        assert all(len({*mine}) == 600 for mine in rows.tolist())

    def test_queries_that_make_no_sense_are_refused(self, index: VectorIndex) -> None:
        with pytest.raises(QueryError, match="NaN"):
            index.search(np.full((1, DIM), np.nan, np.float32), 1)
        with pytest.raises(QueryError, match=f"must be \\[n, {DIM}\\]"):
            index.search(np.zeros((1, 3), np.float32), 1)
        assert index.search(np.empty((0, DIM), np.float32), 2)[1].shape == (0, 2)

    @pytest.mark.parametrize(
        "factory", ["Flat", "SQ8", "PQ16x4fs", "RaBitQfs", "IVF8,Flat", "HNSW16", "PCA16,SQ8"]
    )
    def test_types_of_the_factory_answer_with_and_without_filters(
        self, factory: str, tmp_path: Path
    ) -> None:
        vectors = VECTORS[:600]
        path = tmp_path / "x"
        record = write_index(vectors, path, Plan.approximate(factory, 600, DIM))
        index = read_index(path, vectors, record)
        allowed = np.arange(600) % 2 == 0
        rows = index.search(QUERIES, 10, allowed)[1]
        padded = np.concatenate([allowed, np.zeros(N - 600, np.bool_)])
        truth = [brute_force(query, 10, padded) for query in QUERIES]
        hits = [len({*a} & {*b}) for a, b in zip(rows.tolist(), truth, strict=True)]
        assert sum(hits) >= 0.97 * 10 * len(QUERIES)


class TestFiles:
    def test_an_exact_plan_writes_what_an_exact_index_reads(self, tmp_path: Path) -> None:
        record = write_index(VECTORS[:50], tmp_path / "x", Plan.exact(50, DIM))
        assert record == IndexRecord()
        index = read_index(tmp_path / "x", VECTORS[:50], record)
        assert index.search(VECTORS[7:8], 1)[1].tolist() == [[7]]
        with pytest.raises(IndexCorruptError, match="another number"):
            read_index(tmp_path / "x", VECTORS[:49], record)

    def test_a_file_of_other_vectors_is_refused(self, built: tuple[Path, IndexRecord]) -> None:
        with pytest.raises(IndexCorruptError, match="does not hold"):
            read_index(built[0], VECTORS[:-1], built[1])
        with pytest.raises(IndexCorruptError, match="not IndexFlatIP"):
            read_index(built[0], VECTORS, IndexRecord())

    def test_a_file_that_is_cut_short_is_refused(
        self, built: tuple[Path, IndexRecord], tmp_path: Path
    ) -> None:
        cut = tmp_path / "cut"
        cut.write_bytes(built[0].read_bytes()[:-9])
        with pytest.raises(IndexCorruptError, match="cut"):
            read_index(cut, VECTORS, built[1])

    def test_what_does_not_read_back_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lossy(index: object, path: Path) -> None:
            path.write_bytes(b"half")

        monkeypatch.setattr(index_types, "save_faiss", lossy)
        with pytest.raises(IndexFolderError, match="check the disk"):
            write_index(VECTORS[:200], tmp_path / "x", Plan.approximate("SQ8", 200, DIM))

    def test_vectors_that_are_not_finite_are_refused(self, tmp_path: Path) -> None:
        vectors = VECTORS[:200].copy()
        vectors[3, 3] = np.inf
        with pytest.raises(ValueError, match="finite"):
            write_index(vectors, tmp_path / "x", Plan.approximate("SQ8", 200, DIM))

    def test_too_few_vectors_to_learn_from_are_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(IndexPlanError, match=r"'PQ16' cannot be learned from 50 vectors"):
            write_index(VECTORS[:50], tmp_path / "x", Plan.approximate("PQ16", 50, DIM))

    def test_progress_counts_the_vectors(self, tmp_path: Path) -> None:
        told: list[tuple[int, int]] = []
        write_index(
            VECTORS[:200],
            tmp_path / "x",
            Plan.approximate("SQ8", 200, DIM),
            progress=lambda done, total: told.append((done, total)),
        )
        assert told == [(200, 200)]

    def test_a_record_follows_the_plan_that_it_was_made_by(
        self, built: tuple[Path, IndexRecord]
    ) -> None:
        factory = plan.default_factory(N, DIM)
        assert built[1].follows(Plan.approximate(factory, N, DIM))
        assert not built[1].follows(Plan.approximate(factory, N, DIM, 0.95))
        assert not built[1].follows(Plan.exact(N, DIM))
        assert IndexRecord().follows(Plan.exact(N, DIM))
        assert not IndexRecord().follows(Plan.approximate(factory, N, DIM))
