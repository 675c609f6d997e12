from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexing import tuning
from indexing.faiss_import import import_faiss
from indexing.plan import default_factory, new_index
from indexing.tuning import stand_ins, tune

Floats = NDArray[np.float32]
N, DIM = 4000, 32


def unit(vectors: NDArray[np.float64]) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


VECTORS = unit(np.random.default_rng(0).standard_normal((N, DIM)))


@pytest.fixture(scope="module")
def index() -> Any:
    made = new_index(default_factory(N, DIM), DIM)
    made.train(VECTORS)
    made.add(VECTORS)
    return made


def test_more_recall_takes_more_candidates(index: Any) -> None:
    low, high = (tune(index, VECTORS, target, seconds=1e9) for target in (0.6, 0.99))
    assert low.recall_in >= 0.55
    assert min(high.recall_in, high.recall_out) >= 0.98
    assert high.candidates > low.candidates
    assert low.complete
    assert high.complete


def test_an_index_that_is_exact_needs_the_fewest_candidates() -> None:
    flat = import_faiss().IndexFlatIP(DIM)
    flat.add(VECTORS)
    tuned = tune(flat, VECTORS, 0.99, seconds=1e9)
    assert (tuned.candidates, tuned.probes) == (20, 0)
    assert (tuned.recall_in, tuned.recall_out) == (1.0, 1.0)


def test_a_target_that_is_out_of_reach_gives_the_best_there_is(
    index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_CANDIDATES", (20, 50))
    tuned = tune(index, VECTORS, 0.99, seconds=1e9)
    assert tuned.candidates == 50
    assert 0.2 < tuned.recall_in < 0.99


def test_given_queries_are_what_the_other_kind_is(index: Any) -> None:
    """Queries that equal vectors find those at once, and are not kept from them."""
    tuned = tune(index, VECTORS, 0.9, outside=VECTORS[:50], seconds=1e9)
    assert tuned.recall_out > 0.9


def test_the_cap_ends_the_tuning_and_says_so(index: Any) -> None:
    seconds = count()  # each look at the clock takes a second
    tuned = tune(index, VECTORS, 0.99, seconds=0.5, clock=lambda: float(next(seconds)))
    assert not tuned.complete
    assert tuned.queries < 64
    assert tuned.candidates > 0


def test_equal_vectors_answer_for_each_other() -> None:
    """Every vector occurs 50 times: any of them is right, though an index finds only some."""
    copies = np.repeat(VECTORS[:80], 50, axis=0)
    flat = import_faiss().IndexFlatIP(DIM)
    flat.add(copies[::-1].copy())  # which prefers other rows among equals
    truth = tuning._exact(copies, copies[:40], np.full(40, -1), 1e9, lambda: 0.0)
    assert all(set(range(50)) >= set(rows.tolist()) for rows in truth)
    assert all(len(rows) == 50 for rows in truth)
    found = tuning._recalls(np.arange(39, -1, -1)[np.newaxis], truth[:1])
    assert found[0, [0, 4, 9, 39]].tolist() == [0.1, 0.5, 1.0, 1.0]


def test_exact_answers_leave_out_the_query_itself() -> None:
    truth = tuning._exact(VECTORS, VECTORS[:30], np.arange(30), 1e9, lambda: 0.0)
    products = VECTORS[:30].astype(np.float64) @ VECTORS.T.astype(np.float64)
    products[np.arange(30), np.arange(30)] = -np.inf
    for mine, rows in zip(products, truth, strict=True):
        assert set(rows.tolist()) == set(np.argsort(-mine)[:10].tolist())


def test_stand_ins_are_of_another_kind() -> None:
    """They share a direction that vectors do not have, and tell a quarter of the vector."""
    made = stand_ins(VECTORS, np.random.default_rng(1))
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    gap = made.mean(axis=0)
    assert np.linalg.norm(gap) == pytest.approx(0.5**0.5, abs=0.05)
    rest = made - gap
    assert np.linalg.matrix_rank(rest.astype(np.float64), tol=1e-2) <= DIM // 4 + 1
