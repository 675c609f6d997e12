"""Near-duplicates: both the hash and the vector must be near."""

from __future__ import annotations

import numpy as np
import pytest

from indexing.near import NearDuplicates, main_pictures


def test_the_main_picture_or_else_the_first() -> None:
    owners = np.array([2, 0, 0, 2, 2, 3])
    mains = np.array([False, True, False, True, True, False])
    assert main_pictures(owners, mains, 5).tolist() == [1, -1, 3, 5, -1]
    assert main_pictures(np.empty(0, np.int64), np.empty(0, np.bool_), 2).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("bits", "cosine", "near"), [(2, 0.99, True), (2, 0.9, False), (3, 0.99, False), (0, 1, True)]
)
def test_both_must_be_near(bits: int, cosine: float, near: bool) -> None:
    vectors = np.array([[1, 0], [cosine, (1 - cosine**2) ** 0.5], [1, 0]], np.float32)
    hashes = np.array([0, 2**bits - 1 << 60, 2**64 - 1], np.uint64)
    mains = np.array([0, 1, 2, -1])
    found = NearDuplicates(mains, vectors, hashes, max_bits=2, min_cosine=0.95)
    assert found.of(0).tolist() == ([1] if near else [])
    assert found.of(1).tolist() == ([0] if near else [])
    assert found.of(2).tolist() == found.of(3).tolist() == []
