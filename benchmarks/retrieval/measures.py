"""Measures of retrieval, from the places of judged answers.

    R@K        the share of queries with a right answer among the first K
    R_frac@K   right answers among the first K / min(K, right answers there are)
    RR, AP     reciprocal rank of the first right answer; average precision
    nDCG@10    grades as gains, divided by log2(1 + rank) (Jarvelin and Kekalainen 2002)

With trials, each right answer is asked for alone: R@K and RR are over trials, from whose
rankings the query's other right answers are taken out, and any@K is R@K over queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.retrieval.answers import Stored
from benchmarks.retrieval.task import Ints

Floats = NDArray[np.float64]
CUTOFFS = (1, 5, 10)
DEEP = 100


@dataclass(frozen=True)
class Measured:
    """Values of several measures over the same units: queries, or trials.

    `query` is int64 [n], the query of each unit; `values` float64 [n] by measure.
    """

    query: Ints
    values: dict[str, Floats]


def measure(task: Stored, ranks: Ints, strict_ranks: Ints) -> list[Measured]:
    """All measures of one system: over trials where the task has them, and over queries.

    Args:
        ranks, strict_ranks: int64 [m], places of the judged answers; 0 for not found.
    """
    right = task.grades >= task.relevant
    asked = np.unique(task.judged.query[right])
    over_queries = dict(_over_queries(task, ranks, strict_ranks, right, asked))
    if not task.trials:
        return [Measured(asked, over_queries)]
    own_rank = asked_ranks(task, ranks)
    trials = {f"R@{k}": _hits(own_rank, k) for k in (*CUTOFFS, DEEP)}
    trials["RR"] = 1 / own_rank
    if task.duplicates:
        strict = asked_ranks(task, strict_ranks)
        trials |= {f"strict R@{k}": _hits(strict, k) for k in CUTOFFS}
    anyhow = {f"any@{k}": over_queries[f"R@{k}"] for k in CUTOFFS}
    anyhow |= {name: over_queries[name] for name in over_queries if name.startswith("R_frac")}
    return [Measured(task.judged.query[right], trials), Measured(asked, anyhow)]


def asked_ranks(task: Stored, ranks: Ints) -> Floats:
    """The ranks that R@K is about: of each trial, or of each query's first right answer;
    infinite where it was not found."""
    right = task.grades >= task.relevant
    query = task.judged.query[right]
    if task.trials:
        return _trial_ranks(query, ranks[right])
    return first_ranks(query, ranks[right], np.unique(query))


def first_ranks(query: Ints, ranks: Ints, asked: Ints) -> Floats:
    """The best rank of each of the queries `asked`; infinite where nothing was found."""
    best = np.full(int(asked.max(initial=-1)) + 1, np.inf)
    found = ranks > 0
    np.minimum.at(best, query[found], ranks[found])
    return best[asked]


def _over_queries(
    task: Stored, ranks: Ints, strict_ranks: Ints, right: NDArray[np.bool_], asked: Ints
) -> Iterator[tuple[str, Floats]]:
    query = task.judged.query
    best = first_ranks(query[right], ranks[right], asked)
    for k in (*CUTOFFS, DEEP):
        yield f"R@{k}", _hits(best, k)
    yield "RR", 1 / best
    per_query = np.bincount(query[right], minlength=len(task.query_ids))[asked]
    if per_query.max(initial=0) > 1:
        for k in CUTOFFS:
            first = (ranks > 0) & (ranks <= k) & right
            found = np.bincount(query[first], minlength=len(task.query_ids))[asked]
            yield f"R_frac@{k}", found / np.minimum(k, per_query)
        yield "AP", _average_precision(query[right], ranks[right], asked, per_query)
    if task.grades.max(initial=0) > task.relevant or task.lenient is not None:
        yield "nDCG@10", _ndcg(task, ranks, asked)
        yield "judged nDCG@10", _ndcg(task, _among_judged(query, ranks), asked)
    if task.lenient is not None:
        accepted = task.grades >= task.lenient
        best = first_ranks(query[accepted], ranks[accepted], asked)
        for k in CUTOFFS:
            yield f"lenient R@{k}", _hits(best, k)
        wrong_first = (ranks == 1) & ~accepted
        errors = np.zeros(len(task.query_ids))
        errors[query[wrong_first]] = 1
        yield "error@1", errors[asked]
    if task.duplicates:
        best = first_ranks(query[right], strict_ranks[right], asked)
        for k in CUTOFFS:
            yield f"strict R@{k}", _hits(best, k)


def _hits(ranks: Floats, k: int) -> Floats:
    hits: Floats = (ranks <= k).astype(np.float64)
    return hits


def _trial_ranks(query: Ints, ranks: Ints) -> Floats:
    """Ranks among wrong answers only; infinite where an answer was not found."""
    known = np.where(ranks > 0, ranks.astype(np.float64), np.inf)
    order = np.lexsort((known, query))
    before = np.arange(len(query)) - np.searchsorted(query, query)
    own = np.empty(len(query))
    own[order] = known[order] - before
    return own


def _average_precision(query: Ints, ranks: Ints, asked: Ints, per_query: Ints) -> Floats:
    known = np.where(ranks > 0, ranks.astype(np.float64), np.inf)
    order = np.lexsort((known, query))
    place = 1 + np.arange(len(query)) - np.searchsorted(query, query)
    size = int(asked.max(initial=-1)) + 1
    sums = np.bincount(query[order], weights=place / known[order], minlength=size)
    return sums[asked] / per_query


def _ndcg(task: Stored, ranks: Ints, asked: Ints, k: int = 10) -> Floats:
    query, size = task.judged.query, len(task.query_ids)
    gains = np.maximum(task.grades, 0).astype(np.float64)
    shown = (ranks > 0) & (ranks <= k)
    dcg = np.bincount(query[shown], gains[shown] / np.log2(1.0 + ranks[shown]), size)
    order = np.lexsort((-gains, query))
    place = 1 + np.arange(len(query)) - np.searchsorted(query, query)
    first = place <= k
    ideal = np.bincount(query[first], gains[order][first] / np.log2(1.0 + place[first]), size)
    return dcg[asked] / ideal[asked]


def _among_judged(query: Ints, ranks: Ints) -> Ints:
    """Ranks of the judged answers among themselves; 0 for those not found."""
    known = np.where(ranks > 0, ranks, np.iinfo(np.int64).max)
    order = np.lexsort((known, query))
    own = np.empty(len(query), np.int64)
    own[order] = 1 + np.arange(len(query)) - np.searchsorted(query, query)
    return np.where(ranks > 0, own, 0)
