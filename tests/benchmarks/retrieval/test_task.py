"""Tasks: the order of links, and what is left of a task without some of its pictures."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.retrieval.task import Links, Side, Task
from indexing.catalog.product import ProductImage

Pairs = set[tuple[int, int]]


def pairs(links: Links) -> list[tuple[int, int]]:
    return list(zip(links.query.tolist(), links.row.tolist(), strict=True))


def links(wanted: Pairs) -> Links:
    return Links(
        np.array([query for query, _ in sorted(wanted)], np.int64),
        np.array([row for _, row in sorted(wanted)], np.int64),
    )


def side(letter: str, size: int) -> Side:
    names = [f"{letter}{number}" for number in range(size)]
    return Side(
        names,
        np.arange(size) // 2,
        [ProductImage(location=f"{name}.png") for name in names],
        [f"text of {name}" for name in names],
        [f"category of {name}" for name in names],
    )


def test_links_are_put_in_order_and_repeats_dropped() -> None:
    made = Links.of(np.array([2, 0, 2, 0, 1]), np.array([5, 9, 5, 3, 7]))
    assert pairs(made) == [(0, 3), (0, 9), (1, 7), (2, 5)]
    assert (made.query.dtype, made.row.dtype) == (np.int64, np.int64)
    assert pairs(Links.of(np.empty(0, np.int64), np.empty(0, np.int64))) == []


def test_a_side_is_taken_with_everything_it_has_and_in_the_order_asked_for() -> None:
    taken = side("g", 6).take(np.array([5, 0]))
    assert taken.ids == ["g5", "g0"]
    assert taken.products.tolist() == [2, 0]
    assert taken.pictures is not None
    assert [picture.location for picture in taken.pictures] == ["g5.png", "g0.png"]
    assert taken.texts == ["text of g5", "text of g0"]
    assert taken.categories == ["category of g5", "category of g0"]
    bare = Side(["a", "b"], np.arange(2)).take(np.array([1]))
    assert (bare.ids, bare.pictures, bare.texts, bare.categories) == (["b"], None, None, None)


def test_right_is_what_reaches_the_grade() -> None:
    judged = links({(0, 0), (0, 1), (0, 2), (0, 3)})
    task = Task("t", "T", side("q", 1), side("g", 4), judged, np.array([0, 10, 100, 1]))
    assert task.right().tolist() == [False, True, True, True]
    strict = Task("t", "T", side("q", 1), side("g", 4), judged, np.array([0, 10, 100, 1]), 100)
    assert strict.right().tolist() == [False, False, True, False]


SIZE = 6
cells = st.sets(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)), max_size=14)
numbers = st.sets(st.integers(0, SIZE - 1))


@given(cells, cells, cells, numbers, numbers, st.data())
def test_without_keeps_what_needs_nothing_that_is_gone(
    judged: Pairs, removed: Pairs, duplicates: Pairs, bad_queries: set[int], bad_rows: set[int],
    data: st.DataObject,
) -> None:  # fmt: skip
    grades = {pair: data.draw(st.sampled_from([0, 1, 2])) for pair in sorted(judged)}
    task = Task(
        "t", "T", side("q", SIZE), side("g", SIZE), links(judged),
        np.array([grades[pair] for pair in sorted(judged)], np.int64),
        relevant=2, lenient=1, removed=links(removed), duplicates=links(duplicates),
        trials=True, note="n",
    )  # fmt: skip
    left = task.without(
        np.array(sorted(bad_queries), np.int64), np.array(sorted(bad_rows), np.int64)
    )
    answered = {
        query for (query, row), grade in grades.items() if grade == 2 and row not in bad_rows
    }
    assert left.queries.ids == [f"q{n}" for n in sorted(answered - bad_queries)]
    assert left.gallery.ids == [f"g{n}" for n in range(SIZE) if n not in bad_rows]
    assert left.gallery.texts == [f"text of {name}" for name in left.gallery.ids]

    def named(found: Links) -> list[tuple[str, str]]:
        return [(left.queries.ids[query], left.gallery.ids[row]) for query, row in pairs(found)]

    def expected(whole: Pairs) -> list[tuple[str, str]]:
        kept = {pair for pair in whole if pair[0] in answered - bad_queries}
        return [(f"q{query}", f"g{row}") for query, row in sorted(kept) if row not in bad_rows]

    assert named(left.judged) == expected(judged)
    assert named(left.removed) == expected(removed)
    assert named(left.duplicates) == expected(duplicates)
    assert left.grades.tolist() == [
        grades[int(query[1:]), int(row[1:])] for query, row in named(left.judged)
    ]
    assert (left.relevant, left.lenient, left.trials, left.note) == (2, 1, True, "n")
