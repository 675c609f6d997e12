"""Splitting by title depends on the title and the seed, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.titles import normalise_title, position
from training.split import Mark, join


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Red  MUG!", "red mug", True),
        ("Caf\u00e9 mug", "Cafe\u0301 mug", True),
        ("red_mug", "red mug", True),
        ("red mug", "red mugs", False),
        ("mug red", "red mug", False),
    ],
)
def test_titles_that_differ_in_spelling_only_are_one(one: str, other: str, same: bool) -> None:
    assert (normalise_title(one) == normalise_title(other)) is same
    assert (position(one) == position(other)) is same


@given(st.text(), st.integers(0, 5))
def test_positions_are_in_the_unit_interval(title: str, seed: int) -> None:
    assert 0 <= position(title, seed) < 1


def test_positions_stay_where_they_are() -> None:
    """The builtin encoder's test titles are told by them."""
    assert position("red mug", 1) == 0.628672413742254
    assert position("Red mug!") == 0.8477263614492315


def test_positions_are_spread_evenly_and_the_seed_moves_them() -> None:
    places = np.array([position(f"title {i}") for i in range(5000)])
    counts, _ = np.histogram(places, bins=10, range=(0, 1))
    assert abs(counts - 500).max() < 5 * np.sqrt(450)  # five standard deviations
    other = np.array([position(f"title {i}", 1) for i in range(5000)])
    assert abs(np.corrcoef(places, other)[0, 1]) < 0.07


MARKS = st.tuples(st.integers(0, 2), st.sampled_from("abcdefgh"))


@given(st.lists(st.lists(MARKS, min_size=1, max_size=3), max_size=12))
def test_joined_rows_are_the_connected_components(rows: list[list[Mark]]) -> None:
    components: list[set[Mark]] = []
    for row in rows:
        touched = [component for component in components if component & set(row)]
        components = [component for component in components if component not in touched]
        components.append(set(row).union(*touched))
    [*expected] = (min(next(c for c in components if row[0] in c)) for row in rows)
    assert join(rows) == expected


def test_a_long_chain_is_one() -> None:
    rows = [[(0, f"{i:06}"), (0, f"{i + 1:06}")] for i in range(20_000)]
    assert set(join(rows)) == set(join(rows[::-1])) == {(0, "000000")}
