"""Measures: small cases worked out by hand, and trials against really removing the siblings."""

from __future__ import annotations

from math import ceil, inf, log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.retrieval.answers import Stored
from benchmarks.retrieval.measures import Measured, asked_ranks, first_ranks, measure
from benchmarks.retrieval.order import judged_ranks
from benchmarks.retrieval.task import Links

Judged = list[tuple[int, int, int]]  # query, grade, rank
Ranks = NDArray[np.int64]


def stored(judged: Judged, queries: int, **changes: Any) -> Stored:
    """A task whose judged answers are the gallery's rows 0, 1, ... of these queries."""
    fields: dict[str, Any] = {
        **{"name": "t", "title": "T", "note": "", "relevant": 1, "lenient": None},
        **{"trials": False, "removed": 0, "duplicates": 0, "left_out": {}},
        "query_ids": [f"q{n}" for n in range(queries)],
        "query_products": np.arange(queries),
        "query_categories": None,
        "gallery_ids": [f"g{n}" for n in range(1000)],
        "gallery_products": np.arange(1000),
        "judged": Links(
            np.array([query for query, _, _ in judged], np.int64), np.arange(len(judged))
        ),
        "grades": np.array([grade for _, grade, _ in judged], np.int64),
        "systems": [],
    }
    return Stored(**{**fields, **changes})


def ranks_of(judged: Judged) -> Ranks:
    return np.array([rank for _, _, rank in judged], np.int64)


def measured(
    judged: Judged, queries: int, strict: Ranks | None = None, **changes: Any
) -> list[Measured]:
    ranks = ranks_of(judged)
    return measure(stored(judged, queries, **changes), ranks, ranks if strict is None else strict)


def values(found: Measured) -> dict[str, list[float]]:
    return {name: pytest.approx(one.tolist(), abs=1e-12) for name, one in found.values.items()}


def test_one_right_answer_a_query() -> None:
    """Ranks 1, 6, 101, and one that was not found."""
    [found] = measured([(0, 1, 1), (1, 1, 6), (2, 1, 101), (3, 1, 0)], 4)
    assert found.query.tolist() == [0, 1, 2, 3]
    assert values(found) == {
        "R@1": [1, 0, 0, 0],
        "R@5": [1, 0, 0, 0],
        "R@10": [1, 1, 0, 0],
        "R@100": [1, 1, 0, 0],
        "RR": [1, 1 / 6, 1 / 101, 0],
    }


def test_several_right_answers() -> None:
    """Query 0: ranks 2, 3 and 12 of three right ones. Query 1: rank 5, and one not found."""
    judged = [(0, 1, 12), (0, 1, 2), (0, 0, 1), (0, 1, 3), (1, 1, 0), (1, 1, 5)]
    [found] = measured(judged, 2)
    assert values(found) == {
        "R@1": [0, 0],
        "R@5": [1, 1],
        "R@10": [1, 1],
        "R@100": [1, 1],
        "RR": [1 / 2, 1 / 5],
        "R_frac@1": [0, 0],
        "R_frac@5": [2 / 3, 1 / 2],
        "R_frac@10": [2 / 3, 1 / 2],
        "AP": [(1 / 2 + 2 / 3 + 3 / 12) / 3, (1 / 5 + 0) / 2],
    }


def test_fractions_are_of_k_where_there_are_more_right_answers() -> None:
    judged = [(0, 1, rank) for rank in (1, 2, 4, 5, 7, 8, 9, 30)]
    [found] = measured(judged, 1)
    assert found.values["R_frac@1"] == [1]
    assert found.values["R_frac@5"] == pytest.approx([4 / 5])
    assert found.values["R_frac@10"] == pytest.approx([7 / 8])


def test_grades_as_esci_has_them() -> None:
    """E 100, S 10, C 1, I 0: E alone is right; S is, in the lenient figures, as well."""
    judged = [
        *[(0, 100, 3), (0, 10, 1), (0, 1, 2), (0, 0, 40)],  # a substitute comes first
        *[(1, 0, 1), (1, 100, 12), (1, 100, 2)],  # an irrelevant one comes first
        *[(2, 100, 2), (2, 10, 0)],  # a product that nobody judged comes first
        *[(3, 1, 1), (3, 100, 0)],  # a complement comes first
        *[(4, 100, 1)],
    ]
    [found] = measured(judged, 5, relevant=100, lenient=10)
    assert found.query.tolist() == [0, 1, 2, 3, 4]
    shown = values(found)
    assert shown["R@1"] == [0, 0, 0, 0, 1]
    assert shown["R@5"] == [1, 1, 1, 0, 1]
    assert shown["lenient R@1"] == [1, 0, 0, 0, 1]
    assert shown["lenient R@5"] == [1, 1, 1, 0, 1]
    assert shown["error@1"] == [0, 1, 0, 1, 0]
    ideal = [100 + 10 / log2(3) + 1 / 2, 100 + 100 / log2(3), 100 + 10 / log2(3)]
    ideal += [100 + 1 / log2(3), 100]
    gained = [10 + 1 / log2(3) + 100 / 2, 100 / log2(3), 100 / log2(3), 1, 100]
    assert shown["nDCG@10"] == [g / i for g, i in zip(gained, ideal, strict=True)]
    # Among themselves; what was not found gains nothing.
    among = [10 + 1 / log2(3) + 100 / 2, 100 / log2(3) + 100 / 2, 100, 1, 100]
    assert shown["judged nDCG@10"] == [g / i for g, i in zip(among, ideal, strict=True)]


def test_ndcg_looks_at_ten_places_and_the_ten_best_grades() -> None:
    judged = [(0, grade, rank) for rank, grade in enumerate([*[1] * 10, *[2] * 12], 1)]
    [found] = measured(judged, 1)
    assert found.values["nDCG@10"] == pytest.approx([1 / 2])
    assert found.values["judged nDCG@10"] == pytest.approx([1 / 2])
    [lone] = measured([(0, 2, 11), (0, 1, 10)], 1)
    assert lone.values["nDCG@10"] == pytest.approx([1 / log2(11) / (2 + 1 / log2(3))])
    assert lone.values["judged nDCG@10"] == pytest.approx([(1 + 2 / log2(3)) / (2 + 1 / log2(3))])


def test_grades_that_say_no_more_than_right_have_no_ndcg() -> None:
    [found] = measured([(0, 1, 1), (0, 0, 2)], 1)
    assert not any("nDCG" in name for name in found.values)
    [graded] = measured([(0, 1, 1), (0, 2, 2)], 1)
    assert {"nDCG@10", "judged nDCG@10"} <= set(graded.values)


def test_nothing_found() -> None:
    judged = [(0, 100, 0), (0, 10, 0), (1, 100, 0), (1, 100, 0)]
    for found in (
        measured(judged, 2, relevant=100, lenient=10, duplicates=1),
        measured(judged, 2, relevant=100, trials=True, duplicates=1),
    ):
        for part in found:
            for name, one in part.values.items():
                assert not one.any(), name


def test_strict_figures_come_from_the_ranks_with_duplicates() -> None:
    judged = [(0, 1, 1), (0, 1, 8), (1, 1, 2)]
    strict = np.array([3, 12, 6])
    [found] = measured(judged, 2, duplicates=4, strict=strict)
    shown = values(found)
    assert (shown["R@1"], shown["R@5"], shown["R@10"]) == ([1, 0], [1, 1], [1, 1])
    assert (shown["strict R@1"], shown["strict R@5"]) == ([0, 0], [1, 0])
    assert shown["strict R@10"] == [1, 1]
    assert "strict R@1" not in measured(judged, 2, strict=strict)[0].values


def test_trials_ask_for_each_right_answer_alone() -> None:
    """Ranks 2, 3 and 7 of one query: without the siblings before them they are 2, 2 and 5."""
    judged = [(0, 1, 7), (0, 1, 2), (0, 1, 3), (1, 1, 1), (1, 1, 0)]
    strict = np.array([12, 2, 6, 1, 0])
    over_trials, over_queries = measured(judged, 2, trials=True, duplicates=1, strict=strict)
    assert over_trials.query.tolist() == [0, 0, 0, 1, 1]
    assert values(over_trials) == {
        "R@1": [0, 0, 0, 1, 0],
        "R@5": [1, 1, 1, 1, 0],
        "R@10": [1, 1, 1, 1, 0],
        "R@100": [1, 1, 1, 1, 0],
        "RR": [1 / 5, 1 / 2, 1 / 2, 1, 0],
        "strict R@1": [0, 0, 0, 1, 0],
        "strict R@5": [0, 1, 1, 1, 0],
        "strict R@10": [1, 1, 1, 1, 0],
    }
    assert over_queries.query.tolist() == [0, 1]
    assert values(over_queries) == {
        "any@1": [0, 1],
        "any@5": [1, 1],
        "any@10": [1, 1],
        "R_frac@1": [0, 1],
        "R_frac@5": [2 / 3, 1 / 2],
        "R_frac@10": [1, 1 / 2],
    }


@given(st.data())
def test_a_trial_is_what_removing_the_siblings_gives(data: st.DataObject) -> None:
    """With many ties: the rank is 1 + better + half of the ties among what is left."""
    size = data.draw(st.integers(2, 9))
    line = st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=size, max_size=size)
    table = np.array(data.draw(st.lists(line, min_size=1, max_size=3)), np.float32)
    chosen = st.sets(st.integers(0, size - 1), min_size=1, max_size=4)
    right = [sorted(data.draw(chosen)) for _ in table]
    pairs = [(query, row) for query, rows in enumerate(right) for row in rows]
    own = np.array([table[query, row] for query, row in pairs], np.float32)
    wrong = [np.delete(table[query], right[query]) for query, _ in pairs]
    above = np.array([(w > o).sum() for w, o in zip(wrong, own, strict=True)])
    tied = np.array([(w == o).sum() for w, o in zip(wrong, own, strict=True)])
    judged = [(query, 1, 0) for query, _ in pairs]
    task = stored(judged, len(table), trials=True)
    ranks = judged_ranks(len(table), task.judged, task.grades, own, above, tied)
    expected = [1 + a + ceil(t / 2) for a, t in zip(above.tolist(), tied.tolist(), strict=True)]
    assert asked_ranks(task, ranks).tolist() == expected
    over_trials, _ = measure(task, ranks, ranks)
    for k in (1, 5, 10):
        assert over_trials.values[f"R@{k}"].tolist() == [rank <= k for rank in expected]
    assert over_trials.values["RR"].tolist() == pytest.approx([1 / rank for rank in expected])


def test_ranks_that_a_curve_is_drawn_of_are_those_of_the_measures() -> None:
    judged = [(0, 1, 7), (0, 1, 2), (0, 0, 1), (2, 1, 0), (2, 1, 4)]
    assert asked_ranks(stored(judged, 3), ranks_of(judged)).tolist() == [2, 4]
    trials = stored(judged, 3, trials=True)
    assert asked_ranks(trials, ranks_of(judged)).tolist() == [6, 2, inf, 4]


def test_first_ranks() -> None:
    query, ranks = np.array([0, 0, 1, 3, 3]), np.array([4, 0, 0, 9, 2])
    assert first_ranks(query, ranks, np.array([0, 1, 3])).tolist() == [4, inf, 2]
