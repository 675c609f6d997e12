"""Pairs from catalogs, and a split that tears nothing apart and depends on content alone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.catalog.product import Product, ProductImage
from indexing.errors import TrainingError
from indexing.titles import normalise_title, position
from training.data import Pairs, read_pairs, split_pairs, units


def product(number: str, title: str, *pictures: str, folder: str = "") -> Product:
    images = tuple(
        ProductImage(location=name, path=Path(folder, name) if folder else None)
        for name in pictures or (f"{number}.jpg",)
    )
    return Product(id=number, title=title, images=images)


def unit_names(*catalogs: list[Product]) -> list[str]:
    numbers, names = units(read_pairs(catalogs))
    return [names[number] for number in numbers]


def names(pairs: Pairs) -> list[tuple[str, str]]:
    return sorted(
        (product, picture.location)
        for product, picture in zip(pairs.products, pairs.pictures, strict=True)
    )


def test_every_picture_of_a_titled_product_is_a_pair() -> None:
    pairs = read_pairs(
        [
            [product("1", "Red mug", "a.jpg", "b.jpg"), product("2", " - ")],
            [product("3", "Vase"), product("4", "RED  mug!")],
        ]
    )
    assert pairs.products == ["1", "1", "3", "4"]
    assert pairs.titles == ["Red mug", "Red mug", "Vase", "RED  mug!"]
    assert [picture.location for picture in pairs.pictures] == ["a.jpg", "b.jpg", "3.jpg", "4.jpg"]
    assert pairs.keys.tolist() == [0, 0, 1, 0]
    assert pairs.keys.dtype == np.int64
    taken = pairs.take([3, 0])
    assert (taken.products, taken.titles) == (["4", "1"], ["RED  mug!", "Red mug"])
    assert taken.keys.tolist() == [0, 0]
    assert [picture.location for picture in taken.pictures] == ["4.jpg", "a.jpg"]


def test_no_titles_is_an_error() -> None:
    with pytest.raises(TrainingError, match="nothing to train on"):
        read_pairs([[product("1", "")]])


def test_a_title_an_id_and_a_picture_each_link_and_links_chain() -> None:
    first = [product("1", "Mug, red"), product("2", "MUG red"), product("3", "vase")]
    assert unit_names(first) == ["mug red", "mug red", "vase"]
    second = [product("3", "Amphora", "x.jpg"), product("9", "Jug", "y.jpg", "2.jpg")]
    # 3 is the vase and the amphora; the jug has a picture of the second mug.
    assert unit_names(first, second) == ["jug", "jug", "amphora", "amphora", "jug", "jug"]


def test_pictures_are_one_where_they_are_one_file_or_url() -> None:
    def of(folder_1: str, folder_2: str) -> list[str]:
        return unit_names(
            [product("1", "mug", "1.jpg", folder=folder_1)],
            [product("2", "vase", "1.jpg", folder=folder_2)],
        )

    assert of("/shop", "/shop") == ["mug", "mug"]
    assert of("/shop", "/other") == ["mug", "vase"]
    assert of("", "") == ["mug", "mug"]


def test_linked_products_with_other_titles_are_not_positives() -> None:
    """A placeholder picture would make a positive of everything."""
    shoe, kettle = product("1", "shoe", "none.jpg"), product("2", "kettle", "2.jpg", "none.jpg")
    pairs = read_pairs([[shoe, kettle]])
    assert pairs.keys.tolist() == [0, 1, 1]
    assert units(pairs)[0].tolist() == [0, 0, 0]


PRODUCTS = st.builds(
    product,
    st.sampled_from([str(number) for number in range(40)]),
    st.sampled_from([f"Title {number}{end}" for number in range(40) for end in ("", "!")]),
    st.sampled_from([f"{number}.jpg" for number in range(60)]),
)


@given(st.lists(PRODUCTS, min_size=2, max_size=40), st.integers(0, 3), st.randoms())
def test_what_is_linked_is_on_one_side_in_any_order(
    catalog: list[Product], seed: int, shuffler: random.Random
) -> None:
    pairs = read_pairs([catalog])
    shuffled = list(catalog)
    shuffler.shuffle(shuffled)
    try:
        train, held_out = split_pairs(pairs, 0.4, seed)
    except TrainingError:
        with pytest.raises(TrainingError):
            split_pairs(read_pairs([shuffled]), 0.4, seed)
        return
    assert sorted(names(train) + names(held_out)) == names(pairs)
    for values in (
        lambda side: {normalise_title(title) for title in side.titles},
        lambda side: set(side.products),
        lambda side: {picture.location for picture in side.pictures},
    ):
        assert not values(train) & values(held_out)
    again = split_pairs(read_pairs([shuffled[:3], shuffled[3:]]), 0.4, seed)
    assert (names(again[0]), names(again[1])) == (names(train), names(held_out))


def test_a_unit_of_one_title_falls_where_the_title_does() -> None:
    catalog = [product(str(i), f"Title {i % 60}" + "!" * (i % 2)) for i in range(240)]
    train, held_out = split_pairs(read_pairs([catalog]), 0.3, seed=0)
    sides = [{normalise_title(title) for title in side.titles} for side in (train, held_out)]
    assert sides[1] == {title for title in sides[0] | sides[1] if position(title, 0) < 0.3}


@pytest.mark.parametrize("seed", range(4))
def test_the_share_is_kept_and_the_seed_moves_the_sides(seed: int) -> None:
    # Units of 3 to 5 pairs: every two products have a picture in common.
    catalog = [
        product(str(i), f"title {i}", *[f"{i}-{k}.jpg" for k in range(i % 3)], f"{i // 2}.jpg")
        for i in range(4000)
    ]
    pairs = read_pairs([catalog])
    numbers, _ = units(pairs)
    sizes = np.bincount(numbers)
    assert len(sizes) == 2000
    _, held_out = split_pairs(pairs, 0.2, seed)
    deviation = np.sqrt(0.2 * 0.8 * (sizes**2).sum()) / len(pairs)
    assert abs(len(held_out) / len(pairs) - 0.2) < 4 * deviation < 0.04
    other = split_pairs(pairs, 0.2, seed + 4)[1]
    both = set(other.products) & set(held_out.products)
    assert len(both) < 0.3 * len(set(held_out.products))


def test_more_products_leave_the_others_where_they_are() -> None:
    catalog = [product(str(i), f"title {i}") for i in range(300)]
    held_out = split_pairs(read_pairs([catalog[:200]]), 0.3, seed=0)[1]
    with_more = split_pairs(read_pairs([catalog]), 0.3, seed=0)[1]
    assert set(held_out.products) == set(with_more.products) & {p.id for p in catalog[:200]}


def test_too_little_to_split_is_an_error_that_counts_the_units() -> None:
    catalog = [product("1", "one", "a.jpg"), product("2", "two", "a.jpg")]
    with pytest.raises(TrainingError, match=r"^1 groups of products .* share of 0.5: give more"):
        split_pairs(read_pairs([catalog]), 0.5, seed=0)
