"""The picture of a query, held in bounded memory however many requests there are."""

from __future__ import annotations

import math

from PIL.Image import Image

from indexing.errors import ImageError
from indexing.images import crop_fraction, decoding
from search.query import Crop

# Larger ones are halved, and so on, before they wait for the encoder: no tower sees so much.
MOST = 4_000_000  # pixels


def query_picture(data: bytes, crop: Crop | None, at_least: int) -> Image:
    """The RGB picture of a file's bytes, or a part of it.

    Decoding takes its pixels from the budget of all threads (indexing/images.py), and what is
    kept afterwards has at most MOST. Raises ImageError and, for a bad crop, QueryError.
    """
    try:
        with decoding(data, at_least=at_least if crop is None else None) as picture:
            if crop is not None:
                picture = crop_fraction(picture, crop)
            factor = math.ceil(math.sqrt(picture.width * picture.height / MOST))
            if factor > 1:
                picture = picture.reduce((min(factor, picture.width), min(factor, picture.height)))
            return picture
    except ImageError as error:
        raise ImageError(f"query picture: {error}") from error
