"""Every index under comparison gives the exact answers where it may look at everything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.ann import exact_scores
from benchmarks.ann_data import IN, OUT, Dataset, synthetic
from benchmarks.ann_report import recalled
from benchmarks.ann_systems import DEFAULT, SYSTEMS, Hnswlib, Planned, Scann, System, Usearch
from indexing.errors import BenchmarkError

Floats = NDArray[np.float32]


def brute_force(vectors: Floats, queries: Floats, k: int) -> NDArray[np.int64]:
    return np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :k]


def searched(system: System, setting: str, queries: Floats, k: int = 10) -> NDArray[np.int64]:
    system.use(setting, 1)
    return system.search(queries, k)


def recall(data: Dataset, kind: str, rows: NDArray[np.int64]) -> float:
    """By the rule of `recalled`, with truth by brute force."""
    queries = data.queries[kind]
    truth = exact_scores(data.vectors, queries, brute_force(data.vectors, queries, rows.shape[1]))
    found = exact_scores(data.vectors, queries, rows)
    return float(recalled(rows, found, truth[:, -1]).mean())


EXHAUSTIVE: dict[str, tuple[Callable[[], System], str]] = {
    "exact": (SYSTEMS["exact"], DEFAULT),
    "shoplens": (lambda: Planned(1.0), DEFAULT),
    "faiss-flat": (SYSTEMS["faiss-flat"], DEFAULT),
    "faiss-hnsw": (SYSTEMS["faiss-hnsw"], "efSearch=1200"),
    "faiss-hnsw-sq8": (SYSTEMS["faiss-hnsw-sq8"], "efSearch=1200"),
    "faiss-ivf": (SYSTEMS["faiss-ivf"], "nprobe=1200"),
    "faiss-ivf-pq": (SYSTEMS["faiss-ivf-pq"], "nprobe=1200,k_factor_rf=120"),
    "faiss-sq8": (SYSTEMS["faiss-sq8"], DEFAULT),
    "faiss-rabitq": (SYSTEMS["faiss-rabitq"], "k_factor_rf=120"),
    "hnswlib": (lambda: Hnswlib([]), "ef=1200"),
    "usearch": (lambda: Usearch([]), "expansion=1200"),
    "scann": (lambda: Scann([]), "leaves=35,reorder=1200"),
}


class TestSystems:
    def test_every_system_is_checked_here(self) -> None:
        assert set(EXHAUSTIVE) == set(SYSTEMS)

    @pytest.mark.parametrize("name", EXHAUSTIVE)
    def test_looking_at_everything_gives_the_exact_answers(self, name: str) -> None:
        """On vectors of two values a number: 8 bits hold those exactly, and ties abound."""
        if not name.startswith(("exact", "faiss", "shoplens")):
            pytest.importorskip(name)
        rng = np.random.default_rng(0)
        signs = np.where(rng.random((1240, 32)) < 0.5, -1, 1) / 32**0.5
        vectors, queries = np.split(signs.astype(np.float32), [1200])
        # Queries off the grid, so that most scores differ.
        queries += rng.standard_normal(queries.shape).astype(np.float32) * 0.1
        data = Dataset("signs", vectors, {IN: queries})
        make, setting = EXHAUSTIVE[name]
        system = make()
        system.build(vectors, 1)
        rows = searched(system, setting, queries)
        assert rows.dtype == np.int64
        assert recall(data, IN, rows) == 1.0
        alone = np.concatenate([system.search(query[np.newaxis], 10) for query in queries[:5]])
        assert recall(Dataset("", vectors, {IN: queries[:5]}), IN, alone) == 1.0

    @pytest.mark.parametrize("name", ["exact", "faiss-flat", "faiss-hnsw", "faiss-ivf"])
    def test_unquantised_systems_answer_as_brute_force(self, name: str) -> None:
        data = synthetic(1200, 32, 40)
        make, setting = EXHAUSTIVE[name]
        system = make()
        system.build(data.vectors, 1)
        rows = searched(system, setting, data.queries[IN])
        assert np.array_equal(rows, brute_force(data.vectors, data.queries[IN], 10))

    @pytest.mark.parametrize("name", [name for name in SYSTEMS if name.startswith("faiss")])
    def test_every_setting_is_one_that_the_index_knows(self, name: str) -> None:
        data = synthetic(1000, 16, 4)
        system = SYSTEMS[name]()
        system.build(data.vectors, 1)
        recalls = [recall(data, IN, searched(system, s, data.queries[IN])) for s in system.settings]
        assert recalls[-1] >= max(recalls) - 0.03

    def test_a_dimension_that_codes_cannot_divide_is_refused(self) -> None:
        with pytest.raises(BenchmarkError, match="multiple of 4"):
            SYSTEMS["faiss-ivf-pq"]().build(np.ones((1000, 10), np.float32), 1)

    def test_a_usearch_index_of_few_vectors_fills_up_with_no_row(self) -> None:
        pytest.importorskip("usearch")
        system = Usearch([])
        system.build(np.eye(8, dtype=np.float32)[:3], 1)
        assert sorted(searched(system, "expansion=16", np.eye(8, dtype=np.float32)[:1], 5)[0]) == [
            -1,
            -1,
            0,
            1,
            2,
        ]


@pytest.mark.parametrize(
    ("name", "setting"), [("faiss-ivf", "nprobe=4"), ("faiss-hnsw", "efSearch=16")]
)
def test_queries_of_another_kind_cost_recall(name: str, setting: str) -> None:
    data = synthetic(6000, 64, 300)
    system = SYSTEMS[name]()
    system.build(data.vectors, 1)
    inside, outside = (
        recall(data, kind, searched(system, setting, data.queries[kind])) for kind in (IN, OUT)
    )
    assert inside > outside + 0.1
