"""Splitting by title depends on the title and the seed, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.catalog.product import ProductImage
from indexing.errors import TrainingError
from training.data import Pairs, read_pairs, split_pairs
from training.split import normalise_title, position


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


def test_positions_are_spread_evenly_and_the_seed_moves_them() -> None:
    places = np.array([position(f"title {i}") for i in range(5000)])
    counts, _ = np.histogram(places, bins=10, range=(0, 1))
    assert abs(counts - 500).max() < 5 * np.sqrt(450)  # five standard deviations
    other = np.array([position(f"title {i}", 1) for i in range(5000)])
    assert abs(np.corrcoef(places, other)[0, 1]) < 0.07


def pairs(titles: list[str]) -> Pairs:
    _, keys = np.unique([normalise_title(t) for t in titles], return_inverse=True)
    return Pairs([ProductImage(location=f"{i}.jpg") for i in range(len(titles))], titles, keys)


def test_no_title_is_on_both_sides_and_every_pair_is_on_one() -> None:
    titles = [f"Title {i % 60}" + ("!" if i % 2 else "") for i in range(240)]
    train, held_out = split_pairs(pairs(titles), 0.3, seed=0)
    sides = [{normalise_title(t) for t in side.titles} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    locations = [p.location for side in (train, held_out) for p in side.pictures]
    assert sorted(locations) == sorted(f"{i}.jpg" for i in range(240))
    assert sides[1] == {t for t in sides[0] | sides[1] if position(t, 0) < 0.3}


def test_too_few_titles_to_split_is_an_error() -> None:
    with pytest.raises(TrainingError, match="1 titles cannot be split"):
        split_pairs(pairs(["one", "one"]), 0.5, seed=0)


def test_no_titles_is_an_error() -> None:
    with pytest.raises(TrainingError, match="nothing to train on"):
        read_pairs([[]])
