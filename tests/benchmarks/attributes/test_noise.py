"""Spoilt test sets: who stands in for whom, which words go and come, and what tells sides apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.attributes.noise import (
    NO_PICTURE,
    conditions,
    other_rows,
    separation,
    with_words,
    without_words,
)
from indexing.attributes.words import Words
from indexing.errors import BenchmarkError

WORDS = Words(
    {
        "color": [("Red", "Red"), ("Navy Blue", "Navy Blue"), ("other", "other")],
        "type": [("Shirts", "Shirts"), ("Tee", "Shirts"), ("Jeans", "Jeans")],
    }
)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(0, 5))
def test_where_no_value_has_more_than_half_it_is_a_derangement(
    values: list[int], seed: int
) -> None:
    gold = np.array(values)
    if 2 * np.bincount(gold).max() > len(gold):
        return
    others = other_rows(gold[np.newaxis], seed=seed)
    assert sorted(others.tolist()) == list(range(len(gold)))
    assert (gold[others] != gold).all()


@given(st.lists(st.integers(-1, 3), min_size=2, max_size=40), st.integers(0, 5))
def test_with_a_majority_and_unknown_values_others_still_differ(
    values: list[int], seed: int
) -> None:
    gold = np.array(values)
    known = gold[gold >= 0]
    if (known == known[0]).all() if len(known) else False:
        with pytest.raises(BenchmarkError, match="no sample differs"):
            other_rows(gold[np.newaxis], seed=seed)
        return
    others = other_rows(gold[np.newaxis], seed=seed)
    assert (others != np.arange(len(gold))).all()
    for own, other in zip(gold, gold[others], strict=True):
        assert own < 0 or (other >= 0 and other != own)


def test_others_differ_in_every_attribute() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, (3, 500))
    gold[2] = rng.random(500) < 0.2  # a value of four in five
    others = other_rows(gold)
    assert (gold[:, others] != gold).all()
    # The hundred of the rare value stand in for all others, and a hundred others for them.
    assert len(np.unique(others)) >= 195


def test_the_seed_decides_who_stands_in_and_all_can() -> None:
    gold = np.array([[0, 1, 2, 0, 1, 2]])
    assert other_rows(gold, seed=3).tolist() == other_rows(gold, seed=3).tolist()
    partners = [set(column) for column in zip(*(other_rows(gold, seed=s).tolist()
                                                for s in range(100)), strict=True)]  # fmt: skip
    for row, found in enumerate(partners):
        assert found == set(range(6)) - {row, (row + 3) % 6}


def test_a_sample_that_nothing_differs_from_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="no sample differs from sample"):
        other_rows(np.array([[0, 0, 1], [0, 1, 0]]))


def test_words_are_taken_out_and_put_in() -> None:
    titles = ["Acme navy blue Tees, slim", "Acme red", "Red jeans", "Plain"]
    assert without_words(titles, WORDS) == ("Acme , slim", "Acme", "", "Plain")
    gold = {
        "color": ["Navy Blue", "Red", None, "other"],
        "type": ["Shirts", "Jeans", "Shirts", None],
    }
    assert with_words(titles, gold, WORDS) == (
        "Acme navy blue Tees, slim",
        "Acme red Jeans",
        "Red jeans Shirts",
        "Plain",
    )
    for title, color, kind in zip(with_words(titles, gold, WORDS), *gold.values(), strict=True):
        named = {mention.value for mention in WORDS.mentions(title)}
        assert {color, kind} - {None, "other"} <= named


def test_each_condition_spoils_one_side() -> None:
    titles = ["Acme red", "Navy blue shirt", "Jeans", "Red tee"]
    gold: dict[str, list[str | None]] = {"color": ["Red", "Navy Blue", "Navy Blue", "Red"]}
    found = conditions(titles, gold, WORDS, seed=1)
    clean = found["clean"]
    assert clean.titles == tuple(titles)
    assert clean.pictures.tolist() == [0, 1, 2, 3]
    others = other_rows(np.array([[0, 1, 1, 0]]), seed=1)
    assert found["other title"].titles == tuple(titles[row] for row in others)
    assert found["other picture"].pictures.tolist() == others.tolist()
    assert found["no picture"].pictures.tolist() == [NO_PICTURE] * 4
    assert found["words deleted"].titles == ("Acme", "", "", "")
    assert found["words inserted"].titles == (
        "Acme red", "Navy blue shirt", "Jeans Navy Blue", "Red tee",
    )  # fmt: skip
    for name, inputs in found.items():
        same_titles = inputs.titles == clean.titles
        same_pictures = inputs.pictures.tolist() == clean.pictures.tolist()
        assert (same_titles + same_pictures == 1) == (name != "clean")


def test_an_unknown_value_is_no_value() -> None:
    gold: dict[str, list[str | None]] = {"color": ["Red", None, "Navy Blue", None]}
    others = conditions(["a", "b", "c", "d"], gold, WORDS)["other picture"].pictures
    assert others[[0, 2]].tolist() == [2, 0]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
)
def test_separation_is_the_share_of_pairs_in_order(higher: list[int], lower: list[int]) -> None:
    wins = sum((a > b) + (a == b) / 2 for a in higher for b in lower)
    found = separation(np.array(higher, float), np.array(lower, float))
    assert found == pytest.approx(wins / (len(higher) * len(lower)))
