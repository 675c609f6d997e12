"""Stored answers to scores, on ranks that are made up so that the scores can be worked out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.retrieval.answers import RUN, Answers, System, store_answers, store_task
from benchmarks.retrieval.score import score_folder, score_task
from benchmarks.retrieval.scored import CURVE, Figure, TaskScores
from benchmarks.retrieval.task import Links, Side, Task
from benchmarks.statistics import Interval, summaries
from indexing.errors import BenchmarkError

GALLERY = 200
Store = Callable[..., TaskScores]


def make_task(products: Sequence[int], answers: int = 1, **changes: Any) -> Task:
    """A query for each of `products`, with so many right answers: the rows of its number."""
    size = len(products)
    judged = Links(np.repeat(np.arange(size), answers), np.arange(size * answers))
    fields: dict[str, Any] = {
        "queries": Side([f"q{n}" for n in range(size)], np.array(products)),
        "gallery": Side([f"g{n}" for n in range(GALLERY)], np.arange(GALLERY) // 4),
        **{"judged": judged, "grades": np.ones(size * answers, np.int64)},
    }
    return Task("made-up", "Made up", **{**fields, **changes})


@pytest.fixture
def score(tmp_path: Path) -> Store:
    """score(task, system=ranks, ...): the first is the one under test, `x_index` the index
    route of x. The run holds rows 10, 11, ... for all queries."""

    def store(
        task: Task, *, strict: Sequence[int] | None = None, **ranks: Sequence[int]
    ) -> TaskScores:
        folder = tmp_path / task.name
        store_task(folder, task, {"broken": 2})
        for position, (name, of) in enumerate(ranks.items()):
            rows = np.tile(np.arange(10, 20), (len(task.queries), 1))
            scores = np.tile(np.linspace(1, 0, 10, dtype=np.float32), (len(task.queries), 1))
            places = np.array(of, np.int64)
            answers = Answers(rows, scores, places, places if strict is None else np.array(strict))
            route: Any = "index" if name.endswith("_index") else "exact"
            system = System(
                name.removesuffix("_index"), route, 0 if route == "index" else position,
                {"rank": 1.23456}, f"note of {name}",
            )  # fmt: skip
            store_answers(folder, task, system, answers)
        return score_task(folder, resamples=200, seed=3)

    return store


def interval(values: Sequence[float], products: Sequence[int], macro: bool = False) -> Interval:
    table = np.array(values, float)[:, np.newaxis]
    [summary] = summaries(table, np.array(products), resamples=200, seed=3)
    return summary.macro if macro else summary.micro


def check(figure: Figure, values: Sequence[float], products: Sequence[int]) -> None:
    for found, macro in ((figure.micro, False), (figure.macro, True)):
        expected = interval(values, products, macro)
        assert (found.mean, found.low, found.high) == pytest.approx(astuple(expected), abs=1e-12)
    assert (figure.queries, figure.products) == (len(values), len(set(products)))


def test_figures_have_the_means_and_intervals_of_their_queries(score: Store) -> None:
    products, ranks = [7, 7, 7, 2, 2, 5], [1, 6, 0, 1, 2, 101]
    scored = score(make_task(products, note="read this"), ours=ranks)
    assert (scored.name, scored.title, scored.note) == ("made-up", "Made up", "read this")
    assert (scored.queries, scored.query_products) == (6, 3)
    assert (scored.gallery, scored.gallery_products) == (GALLERY, 50)
    assert (scored.right_answers, scored.removed, scored.duplicates) == (6, 0, 0)
    assert scored.left_out == {"broken": 2}
    [ours] = scored.systems
    assert (ours.system, ours.route, ours.note) == ("ours", "exact", "note of ours")
    assert ours.seconds == {"rank": 1.235}
    assert list(ours.figures) == ["R@1", "R@5", "R@10", "R@100", "RR"]
    check(ours.figures["R@1"], [1, 0, 0, 1, 0, 0], products)
    check(ours.figures["R@10"], [1, 1, 0, 1, 1, 0], products)
    check(ours.figures["RR"], [1, 1 / 6, 0, 1, 1 / 2, 1 / 101], products)
    assert ours.figures["R@1"].macro.mean == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert (scored.comparisons, ours.categories) == ([], [])


def test_the_curve_runs_through_the_figures(score: Store) -> None:
    ours = score(make_task([0, 1, 2, 3]), ours=[1, 7, 100, 101]).systems[0]
    assert len(ours.curve) == CURVE
    assert ours.curve == [0.25] * 6 + [0.5] * 93 + [0.75]
    for k in (1, 5, 10, 100):
        assert ours.curve[k - 1] == ours.figures[f"R@{k}"].micro.mean


def test_so_it_does_with_trials(score: Store) -> None:
    """Ranks 1 and 2 of a query are two trials at rank 1; 3 and 7 are at 3 and 6."""
    task = make_task([0, 1], answers=2, trials=True)
    scored = score(task, ours=[1, 2, 7, 3])
    [ours] = scored.systems
    assert ours.curve == [0.5] * 2 + [0.75] * 3 + [1.0] * 95
    for k in (1, 5, 10, 100):
        assert ours.curve[k - 1] == ours.figures[f"R@{k}"].micro.mean
    check(ours.figures["R@5"], [1, 1, 0, 1], [0, 0, 1, 1])
    check(ours.figures["any@1"], [1, 0], [0, 1])
    check(ours.figures["R_frac@5"], [1, 1 / 2], [0, 1])
    assert (scored.queries, scored.right_answers) == (2, 4)


def test_each_system_is_compared_with_the_first_on_the_same_queries(score: Store) -> None:
    products = [0, 0, 1, 1, 2, 2, 3, 3]
    ours, theirs, third = [1, 1, 1, 1, 6, 1, 0, 2], [2, 6, 1, 3, 1, 0, 0, 0], [1] * 8
    scored = score(make_task(products), ours=ours, theirs=theirs, third=third)
    assert [system.system for system in scored.systems] == ["ours", "theirs", "third"]
    found = {(one.against, one.measure): one for one in scored.comparisons}
    measures = ["R@1", "R@5", "R@10", "RR"]
    assert list(found) == [(name, measure) for name in ("theirs", "third") for measure in measures]
    assert all((one.system, one.route, one.against_route) == ("ours", "exact", "exact")
               for one in scored.comparisons)  # fmt: skip
    first = found["theirs", "R@1"]
    assert (first.wins, first.losses) == (4, 1)
    assert first.mcnemar_p == pytest.approx(2 * (1 + 5) / 2**5)
    difference = interval([1, 1, 0, 1, -1, 1, 0, 0], products)
    assert astuple(difference) == pytest.approx(
        (first.difference.mean, first.difference.low, first.difference.high), abs=1e-12
    )
    figures = [system.figures["R@1"].micro.mean for system in scored.systems]
    assert first.difference.mean == pytest.approx(figures[0] - figures[1])
    five = found["theirs", "R@5"]
    # The fifth query is theirs, the second, the sixth and the eighth are ours.
    assert (five.wins, five.losses) == (3, 1)
    assert five.mcnemar_p == pytest.approx(2 * (comb(4, 0) + comb(4, 1)) / 2**4)
    reciprocal = found["theirs", "RR"]
    assert (reciprocal.wins, reciprocal.losses, reciprocal.mcnemar_p) == (5, 1, None)
    assert found["third", "R@1"].wins == 0


def test_what_the_index_loses_is_compared_with_the_exact_answers(score: Store) -> None:
    scored = score(
        make_task([0, 1, 2]), ours=[1, 1, 3], ours_index=[1, 0, 3], theirs=[2, 2, 2]
    )  # fmt: skip
    assert [(s.system, s.route) for s in scored.systems] == [
        ("ours", "exact"), ("ours", "index"), ("theirs", "exact"),
    ]  # fmt: skip
    pairs = list(dict.fromkeys(
        (one.system, one.route, one.against, one.against_route) for one in scored.comparisons
    ))  # fmt: skip
    assert pairs == [("ours", "exact", "theirs", "exact"), ("ours", "index", "ours", "exact")]
    lost = [c for c in scored.comparisons if c.route == "index" and c.measure == "R@1"]
    assert [(one.wins, one.losses, one.difference.mean) for one in lost] == [
        (0, 1, pytest.approx(-1 / 3))
    ]


def test_categories_are_figures_of_their_queries_the_largest_first(score: Store) -> None:
    products = [0, 0, 1, 2, 3]
    task = make_task(products)
    queries = replace(task.queries, categories=["mugs", "mugs", "cups", "mugs", "cups"])
    scored = score(replace(task, queries=queries), ours=[1, 6, 0, 2, 1])
    [ours] = scored.systems
    assert [one.category for one in ours.categories] == ["mugs", "cups"]
    mugs, cups = (one.figures for one in ours.categories)
    assert list(mugs) == ["R@1", "R@5", "R@10"]
    check(mugs["R@5"], [1, 0, 1], [0, 0, 2])
    check(cups["R@1"], [0, 1], [1, 3])


@pytest.mark.parametrize("categories", [None, ["", "", ""]])
def test_no_categories(categories: list[str] | None, score: Store) -> None:
    task = make_task([0, 1, 2])
    task = replace(task, queries=replace(task.queries, categories=categories))
    assert score(task, ours=[1, 2, 3]).systems[0].categories == []


def test_grades_and_duplicates_reach_the_figures(score: Store) -> None:
    task = make_task(
        [0, 1], answers=2, grades=np.array([100, 10, 100, 1]), relevant=100, lenient=10,
        duplicates=Links(np.array([0, 1]), np.array([50, 51])),
        removed=Links(np.array([0]), np.array([52])),
    )  # fmt: skip
    scored = score(task, strict=[4, 1, 6, 1], ours=[3, 1, 5, 1])
    figures = scored.systems[0].figures
    check(figures["R@1"], [0, 0], [0, 1])
    check(figures["strict R@5"], [1, 0], [0, 1])
    check(figures["lenient R@1"], [1, 0], [0, 1])
    check(figures["error@1"], [0, 1], [0, 1])
    assert (scored.right_answers, scored.duplicates, scored.removed) == (2, 2, 1)
    both = score(task, ours=[3, 1, 5, 1], theirs=[1, 2, 3, 4])
    assert "nDCG@10" in {comparison.measure for comparison in both.comparisons}


def test_the_worst_queries_are_one_of_a_product_the_last_first(score: Store) -> None:
    products = [0, 0, 1, 2, 3, 4]
    scored = score(make_task(products), ours=[9, 30, 0, 1, 12, 9], theirs=[1] * 6)
    assert [(one.query, one.rank, one.right) for one in scored.worst] == [
        ("q2", 0, "g2"), ("q1", 30, "g1"), ("q4", 12, "g4"), ("q5", 9, "g5"),
    ]  # fmt: skip
    assert all(one.answers == [f"g{n}" for n in range(10, 15)] for one in scored.worst)
    several = score(make_task([0, 1], answers=3), ours=[0, 20, 9, 0, 0, 0])
    assert [(one.query, one.rank, one.right) for one in several.worst] == [
        ("q1", 0, "g3"), ("q0", 9, "g2"),
    ]  # fmt: skip
    many = score(make_task(range(40)), ours=range(2, 42))
    assert [one.rank for one in many.worst] == list(range(41, 29, -1))


def test_a_folder_of_tasks_in_the_order_of_their_names(score: Store, tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        score(replace(make_task([0, 1]), name=name), ours=[1, 2])
    (tmp_path / ".vectors").mkdir()
    first = score_folder(tmp_path, resamples=50, seed=1)
    assert [task.name for task in first] == ["a", "b", "c"]
    assert score_folder(tmp_path, resamples=50, seed=1) == first


def test_folders_without_answers_say_so(score: Store, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="holds no stored answers: give the --out"):
        score_folder(tmp_path / "nowhere")
    store_task(tmp_path / "empty", make_task([0]), {})
    with pytest.raises(BenchmarkError, match="holds no answers of any system"):
        score_folder(tmp_path)


def test_a_damaged_run_says_so(score: Store, tmp_path: Path) -> None:
    score(make_task([0, 1]), ours=[2, 2])
    (tmp_path / "made-up" / "ours.exact" / RUN).write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(BenchmarkError, match=r"run\.trec\.gz holds no stored answers that can be"):
        score_folder(tmp_path)
