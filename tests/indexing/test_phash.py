"""pHash against a floating-point DCT in plain loops, and distances against counting."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from indexing.phash import distance, phash
from indexing.rendering import draw_thing, render

UINT64 = st.integers(0, 2**64 - 1)


def plain_phash(picture: Image.Image) -> tuple[list[bool], list[bool]]:
    """The bits as the textbook has them, and which are too near to the median to tell."""
    grey = picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    waves = [[math.cos(math.pi * k * (2 * x + 1) / 64) for x in range(32)] for k in range(8)]
    low = [
        sum(grey.getpixel((x, y)) * waves[v][y] * waves[u][x] for y in range(32) for x in range(32))
        for v in range(8)
        for u in range(8)
    ]
    middle = sum(sorted(low)[31:33]) / 2
    return [value > middle for value in low], [abs(value - middle) < 20 for value in low]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("main", [True, False])
def test_bits_are_those_of_a_dct_in_plain_loops(seed: int, main: bool) -> None:
    rng = random.Random(seed)
    picture = render(draw_thing(rng), rng, main=main, size=96)
    bits, unsure = plain_phash(picture)
    found = [bool(phash(picture) >> (63 - i) & 1) for i in range(64)]
    assert sum(unsure) < 16
    assert [f for f, u in zip(found, unsure, strict=True) if not u] == [
        b for b, u in zip(bits, unsure, strict=True) if not u
    ]


@pytest.mark.parametrize("level", [1, 77, 128, 255])
def test_a_flat_picture_has_its_mean_and_no_waves(level: int) -> None:
    assert phash(Image.new("RGB", (50, 40), (level,) * 3)) == 1 << 63


def test_black_has_not_even_a_mean() -> None:
    assert phash(Image.new("RGB", (32, 32))) == 0


def test_a_resaved_picture_is_near_and_another_one_far() -> None:
    rng = random.Random(3)
    one, other = (render(draw_thing(rng), rng, main=False, size=128) for _ in range(2))
    small = np.array([phash(one.resize((90, 90))), phash(other)], np.uint64)
    near, far = distance(np.array([phash(one)], np.uint64), small).tolist()
    assert near <= 4
    assert far > 12


@given(st.lists(st.tuples(UINT64, UINT64), min_size=1))
def test_distance_counts_differing_bits(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(side, np.uint64) for side in zip(*pairs, strict=True))
    assert distance(a, b).tolist() == [(x ^ y).bit_count() for x, y in pairs]
