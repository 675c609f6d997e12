"""Pictures of any shape made fit to be resized for a tower."""

from __future__ import annotations

from PIL import Image

MAX_ASPECT = 16


def bounded(picture: Image.Image, image_size: int) -> Image.Image:
    """The picture, on white where one side is over MAX_ASPECT times the other.

    Resizing could squeeze the short side of such a picture to nothing, or blow the long one
    up to gigabytes.
    """
    if min(picture.size) * MAX_ASPECT >= max(picture.size):
        return picture
    longest = MAX_ASPECT * image_size
    if max(picture.size) > longest:
        scale = longest / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BOX)
    shortest = -(-max(picture.size) // MAX_ASPECT)
    canvas = Image.new(
        "RGB", (max(picture.width, shortest), max(picture.height, shortest)), "white"
    )
    canvas.paste(
        picture, ((canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2)
    )
    return canvas
