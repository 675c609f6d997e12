"""Perceptual hashes: pictures that look alike have hashes that differ in few bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
_SIDE = 32  # pixels of the grey thumbnail
_KEPT = 8  # lowest frequencies each way

# DCT-II in whole numbers: exact, so that a hash is the same on every machine. In floating
# point the bits of a flat picture would be rounding noise.
_ROWS = np.rint(
    2**14 * np.cos(np.pi / _SIDE * np.outer(np.arange(_KEPT), np.arange(_SIDE) + 0.5))
).astype(np.int64)


def phash(picture: Image.Image) -> int:
    """The 64-bit pHash of an RGB picture.

    The 8 x 8 lowest frequencies (DCT-II) of a 32 x 32 grey thumbnail, each 1 where it is
    above their median; row by row, the first bit being the highest.
    """
    # A large picture is first averaged down, which is four times faster.
    grey = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    low = (_ROWS @ np.asarray(grey, np.int64) @ _ROWS.T).ravel()
    middle = np.sort(low)[BITS // 2 - 1 : BITS // 2 + 1].sum()  # twice the median
    return int.from_bytes(np.packbits(2 * low > middle).tobytes(), "big")


def distance(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bits in which hashes differ, element by element; the arrays broadcast."""
    bits = a ^ b  # and then the usual count in halves: pairs, fours, bytes
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    fours = np.uint64(0x3333333333333333)
    bits = (bits & fours) + ((bits >> np.uint64(2)) & fours)
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    with np.errstate(over="ignore"):  # the sum of the bytes is the highest byte of the product
        counted: NDArray[np.uint64] = (bits * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return counted
