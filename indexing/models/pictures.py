"""Pictures of any shape made fit for a tower: resized, cut, normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indexing.images import extent_of

MAX_ASPECT = 16

Size = tuple[int, int]  # width and height


def bounded(picture: Image.Image, image_size: int) -> Image.Image:
    """The picture, on white where one side is over MAX_ASPECT times the other.

    Resizing could squeeze the short side of such a picture to nothing, or blow the long one
    up to gigabytes.
    """
    shown, size = placed(picture.size, image_size)
    if size == picture.size:
        return picture
    if shown != picture.size:
        picture = picture.resize(shown, Image.Resampling.BOX)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(
        picture, ((canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2)
    )
    return canvas


def placed(size: Size, image_size: int) -> tuple[Size, Size]:
    """The size that `bounded` gives a picture, and that of the canvas in whose middle it lies;
    both are the picture's own where it is no sliver."""
    if min(size) * MAX_ASPECT >= max(size):
        return size, size
    longest = MAX_ASPECT * image_size
    if max(size) > longest:
        scale = longest / max(size)
        size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    shortest = -(-max(size) // MAX_ASPECT)
    return size, (max(size[0], shortest), max(size[1], shortest))


def resized(
    picture: Image.Image,
    size_of: Callable[[Size], Size],
    filter_: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """The picture in the size that `size_of` makes of its own.

    One that `indexing.images` has decoded at a fraction of its size comes out as the whole
    one would, but for what the fraction has lost.
    """
    extent = extent_of(picture)
    return picture.resize(size_of(extent.whole), filter_, box=extent.shown)


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture itself where it is RGB."""
    return picture if picture.mode == "RGB" else picture.convert("RGB")


class Shortest:
    """Sizes whose shorter side is `side`, the longer one rounded down."""

    def __init__(self, side: int) -> None:
        self._side = side

    def __call__(self, size: Size) -> Size:
        width, height = size
        if width <= height:
            return self._side, int(self._side * height / width)
        return int(self._side * width / height), self._side


class KeepingRatio:
    """Sizes of the picture's own shape whose longer side fits into a box, or whose shorter one
    fills it, rounded."""

    def __init__(self, width: int, height: int, *, longest: bool) -> None:
        self._width, self._height, self._which = width, height, max if longest else min

    def __call__(self, size: Size) -> Size:
        ratio = self._which(size[1] / self._height, size[0] / self._width)
        return round(size[0] / ratio), round(size[1] / ratio)


class Squashed:
    """One size for all."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height

    def __call__(self, size: Size) -> Size:
        return self._size


class Normalised:
    """RGB pictures to float32 [3, h, w]: (value / 255 - mean) / std, looked up."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        shares = np.arange(256, dtype=np.float32) / np.float32(255)
        self._values = [
            (shares - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)
        ]

    def __call__(self, picture: Image.Image) -> NDArray[np.float32]:
        found = np.empty((3, picture.height, picture.width), np.float32)
        for values, band, out in zip(self._values, picture.split(), found, strict=True):
            # No value of eight bits is out of bounds; not to look is faster.
            np.take(values, np.asarray(band), out=out, mode="clip")
        return found


def centred(picture: Image.Image, width: int, height: int, fill: int) -> Image.Image:
    """The middle of a picture, on a ground of this grey where it is smaller."""
    wide, high = max(picture.width, width), max(picture.height, height)
    if (wide, high) != picture.size:
        ground = Image.new("RGB", (wide, high), (fill,) * 3)
        ground.paste(picture, ((wide - picture.width) // 2, (high - picture.height) // 2))
        picture = ground
    left, top = round((wide - width) / 2), round((high - height) / 2)
    return picture.crop((left, top, left + width, top + height))
