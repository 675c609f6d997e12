"""Made-up phone photos: the same for the same seed, and still of the product."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from indexing.phone import SIDE, phone_photo


@pytest.mark.parametrize("size", [(8, 8), (60, 80), (1000, 300), (3, 900)])
def test_a_photo_of_any_picture(size: tuple[int, int]) -> None:
    picture, behind = Image.new("RGB", size, "red"), Image.new("RGB", (50, 50), "blue")
    one, same, other = (phone_photo(picture, behind, random.Random(seed)) for seed in (1, 1, 2))
    assert one.mode == "RGB"
    assert max(one.size) <= 2 * SIDE * 1.6
    assert one.tobytes() == same.tobytes()
    assert (one.size, one.tobytes()) != (other.size, other.tobytes())
    assert picture.size == size  # untouched


def test_the_product_is_seen_in_front_of_the_other_one() -> None:
    picture, behind = Image.new("RGB", (200, 200), "red"), Image.new("RGB", (50, 50), "blue")
    redness = []
    for seed in range(30):
        pixels = np.asarray(phone_photo(picture, behind, random.Random(seed))).astype(int)
        redness.append((pixels[..., 0] > pixels[..., 2]).mean())
    assert min(redness) > 0.2
    assert min(redness) < 0.9 < max(redness)
