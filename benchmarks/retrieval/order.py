"""The order of answers: by score, and a rule for ties that flatters nobody.

Among answers of equal score, those of a higher grade stand in the middle of those of lower
ones: half of the lower ones, rounded up, come before them. So a right answer that ties with n
wrong ones has the rank 1 + (better ones) + n/2, rounded up, from whatever grade on an answer
is right. Among equal scores and equal grades the gallery's order holds, but that those graded
0 come before those that nobody judged.

The rule is applied once, and what comes out is a plain ranking. Every measure is computed
from that ranking, by us and by whoever reads the stored run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.retrieval.task import Ints, Links

Floats = NDArray[np.float32]


def tied_order(grades: Sequence[int], below: int = 0) -> list[int]:
    """The order of right answers of one score, given in the gallery's order: indices into
    `grades`. They stand together in the middle of `below` wrong ones of the same score."""
    order: list[int] = []
    for grade in sorted(set(grades)):
        level = [number for number, of in enumerate(grades) if of == grade]
        half = -(-(below + len(order)) // 2) - -(-below // 2)
        order[half:half] = level
    return order


def judged_ranks(
    queries: int,
    judged: Links,
    grades: Ints,
    scores: Floats,
    wrong_above: Ints,
    wrong_tied: Ints,
) -> Ints:
    """The place of every judged answer in the whole ranking of its query, from 1.

    Args:
        queries: Their number.
        judged: [m] answers with their `grades` and `scores`, int64 and float32 [m].
        wrong_above: int64 [m], how many answers that are not judged score higher.
        wrong_tied: int64 [m], how many of them have the same score.

    Returns:
        int64 [m]; 0 for an answer whose score is -inf, which was not found.
    """
    ranks = 1 + wrong_above + -(-wrong_tied // 2)
    bounds = np.searchsorted(judged.query, np.arange(queries + 1))
    for query in np.flatnonzero(np.diff(bounds) > 1):
        part = slice(bounds[query], bounds[query + 1])
        ranks[part] = _several(grades[part], scores[part], wrong_above[part], wrong_tied[part])
    # An answer graded 0 is as wrong as those that nobody judged.
    alone = np.diff(bounds)[judged.query] == 1
    lone_wrong = np.flatnonzero(alone & (grades <= 0))
    ranks[lone_wrong] = 1 + wrong_above[lone_wrong]
    ranks[np.isneginf(scores)] = 0
    return ranks


def _several(grades: Ints, scores: Floats, above: Ints, tied: Ints) -> Ints:
    ranks = np.empty(len(grades), np.int64)
    before = 0  # judged answers of a higher score
    for score in sorted(set(scores.tolist()), reverse=True):
        here = np.flatnonzero(scores == score)
        # Answers that nobody judged are wrong, like grade 0, and stand around the rest.
        right = here[grades[here] > 0]
        wrong = here[grades[here] <= 0]
        unjudged = int(tied[here[0]])
        below = unjudged + len(wrong)
        half = -(-below // 2)
        start = 1 + int(above[here[0]]) + before
        first = start + half if len(right) else start
        for place, index in enumerate(tied_order(grades[right].tolist(), below)):
            ranks[right[index]] = first + place
        _place_wrong(ranks, wrong, start, half, len(right))
        before += len(here)
    return ranks


def _place_wrong(ranks: Ints, wrong: Ints, start: int, half: int, middle: int) -> None:
    """Judged wrong answers lead their level: they are known to be wrong."""
    for place, index in enumerate(wrong):
        ranks[index] = start + place + (middle if place >= half else 0)


def placed(
    depth: int, judged: Links, ranks: Ints, scores: Floats, wrong_rows: Ints, wrong_scores: Floats
) -> tuple[Ints, Floats]:
    """The first `depth` answers: judged ones at their ranks, the wrong ones around them.

    Args:
        judged, ranks, scores: [m] as in `judged_ranks`.
        wrong_rows: int64 [q, depth], the best of the others in order, filled up with -1.
        wrong_scores: float32 [q, depth], filled up with -inf.

    Returns:
        Rows int64 [q, depth], -1 where there are no more, and scores float32 [q, depth].
    """
    taken = np.full(wrong_rows.shape, -1, np.int64)
    shown = np.flatnonzero((ranks >= 1) & (ranks <= depth))
    taken[judged.query[shown], ranks[shown] - 1] = shown
    free = taken < 0
    number = np.cumsum(free, axis=1) - 1
    rows = np.take_along_axis(wrong_rows, np.maximum(number, 0), axis=1)
    found = np.take_along_axis(wrong_scores, np.maximum(number, 0), axis=1)
    rows = np.where(free, rows, judged.row[taken] if len(judged) else -1)
    found = np.where(free, found, scores[taken] if len(judged) else -np.inf)
    return rows, found.astype(np.float32)


def strictly_falling(scores: Floats) -> Floats:
    """Scores [q, k] in which no two of a row are equal, changed by the least that does it."""
    falling: Floats = scores.copy()
    for column in range(1, falling.shape[1]):
        below = np.nextafter(falling[:, column - 1], np.float32(-np.inf))
        falling[:, column] = np.minimum(falling[:, column], below)
    return falling
