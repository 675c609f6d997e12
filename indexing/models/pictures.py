"""Pictures of any shape made fit to be resized for a tower."""

from __future__ import annotations

from PIL import Image

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
