"""Stored answers to scores: nothing is searched again, so scoring costs seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.retrieval.answers import TASK, Stored, System, load_task, stored_run
from benchmarks.retrieval.measures import Measured, asked_ranks, first_ranks, measure
from benchmarks.retrieval.scored import (
    CURVE,
    SHOWN,
    CategoryScores,
    Comparison,
    Figure,
    Range,
    SystemScores,
    TaskScores,
    WorstQuery,
)
from benchmarks.retrieval.task import Ints
from benchmarks.statistics import RESAMPLES, Interval, Summary, mcnemar, summaries
from indexing.errors import BenchmarkError

COMPARED = ("R@1", "R@5", "R@10", "RR", "nDCG@10")
BY_CATEGORY = ("R@1", "R@5", "R@10")
WORST = 12


def score_folder(folder: Path, *, resamples: int = RESAMPLES, seed: int = 0) -> list[TaskScores]:
    """The scores of all tasks below `folder`, in the order of their names.

    Raises:
        BenchmarkError: There is none, or one is damaged.
    """
    tasks = sorted(path.parent for path in folder.glob(f"*/{TASK}"))
    if not tasks:
        raise BenchmarkError(f"{folder} holds no stored answers: give the --out of `bench recall`")
    return [score_task(task, resamples=resamples, seed=seed) for task in tasks]


def score_task(folder: Path, *, resamples: int = RESAMPLES, seed: int = 0) -> TaskScores:
    """The scores of every system of one task, and each one compared with the first."""
    task = load_task(folder)
    if not task.systems:
        raise BenchmarkError(f"{folder} holds no answers of any system: run `bench recall` again")
    measured = [measure(task, ranks, strict) for _, ranks, strict in task.systems]
    figures = _figures(task, measured, resamples, seed)
    right = task.grades >= task.relevant
    systems = [
        SystemScores(
            system=system.name,
            route=system.route,
            figures=figures[number],
            categories=_by_category(task, measured[number][0], resamples, seed),
            curve=_curve(asked_ranks(task, ranks)),
            seconds={name: round(value, 3) for name, value in system.seconds.items()},
            note=system.note,
        )
        for number, (system, ranks, _) in enumerate(task.systems)
    ]
    return TaskScores(
        name=task.name,
        title=task.title,
        note=task.note,
        queries=len(task.query_ids),
        query_products=len(np.unique(task.query_products)),
        gallery=len(task.gallery_ids),
        gallery_products=len(np.unique(task.gallery_products)),
        right_answers=int(right.sum()),
        removed=task.removed,
        duplicates=task.duplicates,
        left_out=task.left_out,
        systems=systems,
        comparisons=_comparisons(task, measured, resamples, seed),
        worst=_worst(folder, task, *task.systems[0][:2]),
    )


def _figures(
    task: Stored, measured: list[list[Measured]], resamples: int, seed: int
) -> list[dict[str, Figure]]:
    figures: list[dict[str, Figure]] = [{} for _ in measured]
    for group in range(len(measured[0])):  # over trials, over queries
        columns = {
            (number, name): values
            for number, system in enumerate(measured)
            for name, values in system[group].values.items()
        }
        clusters = task.query_products[measured[0][group].query]
        table = np.stack(list(columns.values()), axis=1)
        found = summaries(table, clusters, resamples=resamples, seed=seed)
        for (number, name), summary in zip(columns, found, strict=True):
            figures[number][name] = _figure(summary, clusters)
    return figures


def _by_category(
    task: Stored, measured: Measured, resamples: int, seed: int
) -> list[CategoryScores]:
    """The first measures for each category, the largest first."""
    if not any(task.query_categories or []):
        return []
    categories = np.array(task.query_categories)[measured.query]
    scores = []
    for category, count in zip(*np.unique(categories, return_counts=True), strict=True):
        rows = np.flatnonzero(categories == category)
        clusters = task.query_products[measured.query[rows]]
        table = np.stack([measured.values[name][rows] for name in BY_CATEGORY], axis=1)
        found = summaries(table, clusters, resamples=resamples, seed=seed)
        figures = {
            name: _figure(summary, clusters)
            for name, summary in zip(BY_CATEGORY, found, strict=True)
        }
        scores.append((-int(count), CategoryScores(category=str(category), figures=figures)))
    return [entry for _, entry in sorted(scores, key=lambda pair: (pair[0], pair[1].category))]


def _curve(ranks: NDArray[np.float64]) -> list[float]:
    return [float((ranks <= k).mean()) for k in range(1, CURVE + 1)]


def _comparisons(
    task: Stored, measured: list[list[Measured]], resamples: int, seed: int
) -> list[Comparison]:
    """The system under test minus each other one, and each index route minus the exact one."""
    names = [system for system, _, _ in task.systems]
    pairs = [(0, other) for other in range(1, len(names)) if names[other].route == "exact"]
    pairs += [
        (index, exact)
        for index, system in enumerate(names)
        for exact, other in enumerate(names)
        if system.route == "index" and other.route == "exact" and other.name == system.name
    ]
    found = []
    for one, other in pairs:
        first, second = measured[one][0], measured[other][0]
        shared = [name for name in COMPARED if name in first.values and name in second.values]
        differences = np.stack([first.values[n] - second.values[n] for n in shared], axis=1)
        clusters = task.query_products[first.query]
        intervals = summaries(differences, clusters, resamples=resamples, seed=seed)
        for column, (name, summary) in enumerate(zip(shared, intervals, strict=True)):
            wins = int((differences[:, column] > 0).sum())
            losses = int((differences[:, column] < 0).sum())
            found.append(
                Comparison(
                    system=names[one].name,
                    route=names[one].route,
                    against=names[other].name,
                    against_route=names[other].route,
                    measure=name,
                    difference=_range(summary.micro),
                    wins=wins,
                    losses=losses,
                    mcnemar_p=mcnemar(wins, losses) if name.startswith("R@") else None,
                )
            )
    return found


def _worst(folder: Path, task: Stored, system: System, ranks: Ints) -> list[WorstQuery]:
    """The queries whose right answer came last, one of each product."""
    right = np.flatnonzero(task.grades >= task.relevant)
    query = task.judged.query[right]
    asked = np.unique(query)
    best = first_ranks(query, ranks[right], asked)
    order = sorted(range(len(asked)), key=lambda at: (-best[at], task.query_ids[asked[at]]))
    run = stored_run(folder, system)
    worst: list[WorstQuery] = []
    products: set[int] = set()
    for at in order:
        number = int(asked[at])
        product = int(task.query_products[number])
        if product in products or best[at] <= 1 or len(worst) == WORST:
            continue
        products.add(product)
        own = right[query == number]
        answer = own[int(np.argmin(np.where(ranks[own] > 0, ranks[own], np.iinfo(np.int64).max)))]
        worst.append(
            WorstQuery(
                query=task.query_ids[number],
                rank=int(ranks[answer]),
                right=task.gallery_ids[int(task.judged.row[answer])],
                answers=run.get(task.query_ids[number], [])[:SHOWN],
            )
        )
    return worst


def _figure(summary: Summary, clusters: Ints) -> Figure:
    return Figure(
        micro=_range(summary.micro),
        macro=_range(summary.macro),
        queries=len(clusters),
        products=len(np.unique(clusters)),
    )


def _range(interval: Interval) -> Range:
    return Range(mean=interval.mean, low=interval.low, high=interval.high)
