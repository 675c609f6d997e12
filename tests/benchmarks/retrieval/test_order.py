"""The order of answers against a plain one that lists the whole gallery."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.retrieval.order import Floats, judged_ranks, placed, strictly_falling, tied_order
from benchmarks.retrieval.task import Ints, Links

GRADES = (None, 0, 1, 10, 100)  # None: nobody judged it


@dataclass(frozen=True)
class Item:
    """One of the gallery, to one query."""

    row: int
    score: float
    grade: int | None


Gallery = list[Item]
items = st.tuples(st.sampled_from([0.25, 0.5, 0.75]), st.sampled_from(GRADES))
galleries = st.lists(items, min_size=1, max_size=14).map(
    lambda found: [Item(row, *both) for row, both in enumerate(found)]
)


def plain_order(gallery: Gallery) -> Gallery:
    """All of the gallery, best first: a level is laid out wrong ones first, and each higher
    grade is put into the middle of what lies there."""
    order: Gallery = []
    for score in sorted({item.score for item in gallery}, reverse=True):
        level = [item for item in gallery if item.score == score]
        laid = [item for item in level if item.grade == 0]
        laid += [item for item in level if item.grade is None]
        for grade in (1, 10, 100):
            middle = ceil(len(laid) / 2)
            block = [item for item in level if item.grade == grade]
            laid = laid[:middle] + block + laid[middle:]
        order += laid
    return order


def ordered(queries: list[Gallery], depth: int) -> tuple[list[list[int]], Ints, Floats, Ints]:
    """What the module says: rows and scores of the first answers, and judged ranks."""
    judged = [(q, item) for q, gallery in enumerate(queries) for item in gallery
              if item.grade is not None]  # fmt: skip
    wrong = [[item for item in gallery if item.grade is None] for gallery in queries]
    links = Links(
        np.array([q for q, _ in judged], np.int64),
        np.array([item.row for _, item in judged], np.int64),
    )
    scores = np.array([item.score for _, item in judged], np.float32)
    ranks = judged_ranks(
        len(queries),
        links,
        np.array([item.grade for _, item in judged], np.int64),
        scores,
        np.array([sum(o.score > i.score for o in wrong[q]) for q, i in judged], np.int64),
        np.array([sum(o.score == i.score for o in wrong[q]) for q, i in judged], np.int64),
    )
    wrong_rows = np.full((len(queries), depth), -1, np.int64)
    wrong_scores = np.full((len(queries), depth), -np.inf, np.float32)
    for q, others in enumerate(wrong):
        best = sorted(others, key=lambda item: (-item.score, item.row))[:depth]
        wrong_rows[q, : len(best)] = [item.row for item in best]
        wrong_scores[q, : len(best)] = [item.score for item in best]
    rows, shown = placed(depth, links, ranks, scores, wrong_rows, wrong_scores)
    return rows.tolist(), ranks, shown, links.query


@given(st.lists(galleries, min_size=1, max_size=3), st.integers(1, 16))
def test_ranks_and_first_answers_are_those_of_the_whole_order(
    queries: list[Gallery], depth: int
) -> None:
    rows, ranks, shown, _ = ordered(queries, depth)
    expected_ranks: list[int] = []
    for q, gallery in enumerate(queries):
        order = plain_order(gallery)
        place = {item.row: number for number, item in enumerate(order, 1)}
        expected_ranks += [place[item.row] for item in gallery if item.grade is not None]
        first, empty = order[:depth], max(0, depth - len(order))
        assert rows[q] == [item.row for item in first] + [-1] * empty
        assert shown[q].tolist() == [item.score for item in first] + [-np.inf] * empty
    assert ranks.tolist() == expected_ranks


@given(galleries)
def test_of_equal_scores_half_of_the_lower_ones_come_before_the_right_ones(
    gallery: Gallery,
) -> None:
    """From whatever grade on an answer is right: with n wrong ones of its score the best right
    one has the rank 1 + better + n/2, rounded up."""
    rows, *_ = ordered([gallery], len(gallery))
    assert sorted(rows[0]) == list(range(len(gallery)))
    order = [gallery[row] for row in rows[0]]
    assert [item.score for item in order] == sorted((i.score for i in gallery), reverse=True)
    for relevant in (1, 10, 100):
        for score in {item.score for item in gallery}:
            level = [item for item in order if item.score == score]
            right = [(item.grade or 0) >= relevant for item in level]
            if any(right):
                better = sum(item.score > score for item in gallery)
                rank = 1 + order.index(level[right.index(True)])
                assert rank == 1 + better + ceil(right.count(False) / 2)
    for item, other in pairwise(order):
        if (item.score, item.grade) == (other.score, other.grade):
            assert item.row < other.row  # the gallery's order


@given(
    st.lists(st.tuples(st.sampled_from([0.25, 0.5, 0.75]), st.sampled_from([None, 0, 1, 10]))),
    st.data(),
)
def test_a_hit_is_rank_at_most_k_with_half_of_the_ties(
    others: list[tuple[float, int | None]], data: st.DataObject
) -> None:
    """One answer of the grade 100: a hit among the first K where 1 + better + ties/2 <= K."""
    right = data.draw(st.integers(0, len(others)))
    found = [*others[:right], (0.5, 100), *others[right:]]
    gallery = [Item(row, score, grade) for row, (score, grade) in enumerate(found)]
    rows, *_ = ordered([gallery], len(gallery))
    better = sum(score > 0.5 for score, _ in others)
    ties = sum(score == 0.5 for score, _ in others)
    for k in range(1, len(gallery) + 1):
        assert (right in rows[0][:k]) == (1 + better + ties / 2 <= k)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("place", [0, -1])
def test_who_scores_all_the_same_finds_nothing_first(size: int, place: int) -> None:
    grades: list[int | None] = [None] * size
    grades[place] = 1
    rows, ranks, *_ = ordered([[Item(row, 0.5, grade) for row, grade in enumerate(grades)]], size)
    assert ranks.tolist() == [1 + ceil((size - 1) / 2)]
    assert (rows[0][0] == place % size) == (size == 1)


def test_ranks_of_tied_answers_worked_out_by_hand() -> None:
    # Five wrong ones, then two of grade 1, then two of grade 2 in the middle of those seven.
    assert tied_order([1, 2, 2, 1], 5) == [0, 1, 2, 3]
    assert tied_order([1, 2, 2, 1]) == [0, 1, 2, 3]
    assert tied_order([1, 2], 1) == [1, 0]  # wrong, 2, 1: one of two lower ones comes before
    assert tied_order([3, 1, 1, 2, 1]) == [1, 2, 0, 3, 4]
    assert tied_order([]) == []


def test_what_was_not_found_has_no_rank_and_does_not_move_the_rest() -> None:
    judged = Links(np.array([0, 0, 0, 1]), np.array([2, 5, 7, 0]))
    scores = np.array([0.5, -np.inf, 0.25, -np.inf], np.float32)
    above, tied = np.array([1, 9, 4, 9]), np.array([0, 3, 0, 3])
    ranks = judged_ranks(2, judged, np.array([1, 100, 1, 1]), scores, above, tied)
    assert ranks.tolist() == [2, 0, 6, 0]
    rows, shown = placed(
        3, judged, ranks, scores, np.array([[8, 9, 3], [4, -1, -1]]),
        np.array([[0.75, 0.375, 0.3125], [0.5, -np.inf, -np.inf]], np.float32),
    )  # fmt: skip
    assert rows.tolist() == [[8, 2, 9], [4, -1, -1]]
    assert shown.tolist() == [[0.75, 0.5, 0.375], [0.5, -np.inf, -np.inf]]


def test_nothing_judged() -> None:
    rows = np.array([[1, 0]])
    none, empty = np.empty(0, np.int64), np.empty(0, np.float32)
    assert judged_ranks(1, Links(), none, empty, none, none).tolist() == []
    found, shown = placed(2, Links(), none, empty, rows, np.array([[0.5, 0.25]], np.float32))
    assert found.tolist() == [[1, 0]]
    assert shown.tolist() == [[0.5, 0.25]]


scores_of_a_run = st.lists(
    st.one_of(
        st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0]),
        st.floats(-100, 100, width=32, allow_subnormal=True),
    ),
    min_size=1,
    max_size=12,
)


@given(st.lists(scores_of_a_run, min_size=1, max_size=3))
def test_scores_fall_strictly_and_move_no_more_than_they_must(runs: list[list[float]]) -> None:
    width = max(map(len, runs))
    table = np.full((len(runs), width), -np.inf, np.float32)
    for row, run in zip(table, runs, strict=True):
        row[: len(run)] = sorted(run, reverse=True)
    falling = strictly_falling(table)
    for run, before, after in zip(runs, table, falling, strict=True):
        assert np.isneginf(after[len(run) :]).all()
        last = np.float32(np.inf)
        for place in range(len(run)):
            # The highest score that is no higher than it was and lower than the one before.
            highest = min(before[place], np.nextafter(last, np.float32(-np.inf)))
            assert after[place] == highest
            assert after[place] < last
            last = after[place]
        if len(set(run)) == len(run):
            assert after.tolist() == before.tolist()
