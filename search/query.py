"""A query: picture, text, unwanted text and crop, made into one unit vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from indexing.errors import ImageError, QueryError
from indexing.images import crop_fraction, decode_image, read_image
from indexing.models.protocol import Encoder
from indexing.query_text import check_text

MAX_MINUS = 20  # texts
MAX_WEIGHT = 1_000.0
MINUS_WEIGHT = 0.5  # of an unwanted text, where nothing else is asked

Picture = str | Path | bytes | Image
Crop = tuple[float, float, float, float]

# Parts that cancel out leave rounding errors; a vector shorter than this is nothing else.
_NOTHING = 1e-6


def load_picture(
    source: Picture, crop: Crop | None = None, *, at_least: int | None = None
) -> Image:
    """The RGB picture of a file, of a file's bytes, or as it is; cropped if asked.

    `crop` is (x, y, width, height) in fractions of the upright picture. `at_least` is
    that of `decode_image`; it counts only without a crop, which needs all pixels.
    A PIL picture must be RGB already: only the decoder knows how the index treats
    transparency, deep colours and EXIF orientation.

    Raises ImageError for what is not such a picture, QueryError for a bad crop.
    """
    if crop is not None:
        at_least = None
    if isinstance(source, Image):
        if source.mode != "RGB" or source.getexif().get(_ORIENTATION, 1) != 1:
            raise ImageError(
                f"query picture: a PIL picture of mode {source.mode} that is not upright RGB: "
                "give the file's path or bytes"
            )
        picture = source
    elif isinstance(source, bytes):
        try:
            picture = decode_image(source, at_least=at_least)
        except ImageError as error:
            raise ImageError(f"query picture: {error}") from error
    else:
        picture = read_image(Path(source), at_least=at_least)
    return picture if crop is None else crop_fraction(picture, crop)


_ORIENTATION = 0x0112  # the EXIF tag


def query_vector(
    encoder: Encoder,
    picture: Image | None,
    text: str | None,
    minus: Sequence[str] = (),
    *,
    image_weight: float = 1.0,
    text_weight: float = 1.0,
    minus_weight: float = MINUS_WEIGHT,
) -> NDArray[np.float32]:
    """The unit vector, float32 [dim], of

        image_weight * f(picture) + text_weight * f(text) - minus_weight * sum of f(minus)

    where f gives unit vectors. Raises QueryError for no picture and no text, a blank or
    overlong text, weights outside 0..MAX_WEIGHT, and parts that leave nothing.
    """
    weights = {"image": image_weight, "text": text_weight, "minus": minus_weight}
    for name, weight in weights.items():
        if not 0 <= weight <= MAX_WEIGHT:  # also catches NaN
            raise QueryError(f"{name} weight {weight:g}: must be between 0 and {MAX_WEIGHT:,.0f}")
    if picture is None and text is None:
        raise QueryError(
            "minus alone is no query: add a text or an image"
            if minus
            else "the query is empty: give a text, an image or both"
        )
    if len(minus) > MAX_MINUS:
        raise QueryError(f"{len(minus)} minus texts: at most {MAX_MINUS} can be given")
    wanted = [] if text is None else [text]
    for name, texts in (("text", wanted), ("minus", minus)):
        for value in texts:
            check_text(name, value)

    terms: list[tuple[float, NDArray[np.float32]]] = []
    if picture is not None:
        terms.append((image_weight, encoder.embed_images([picture])[0]))
    if texts := [*wanted, *minus]:
        signed = [text_weight] * len(wanted) + [-minus_weight] * len(minus)
        terms.extend(zip(signed, encoder.embed_texts(texts), strict=True))
    if all(weight <= 0 for weight, _ in terms):
        raise QueryError("the weights leave nothing of the query: give one above 0")
    return unit_sum(terms)


def unit_sum(terms: Sequence[tuple[float, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """The unit vector of a sum of unit vectors with weights, at least one of them not 0.

    Raises QueryError for parts that leave nothing.
    """
    largest = max(abs(weight) for weight, _ in terms)
    summed = np.sum([weight / largest * vector.astype(float) for weight, vector in terms], axis=0)
    length = math.sqrt(summed @ summed)
    if length < _NOTHING:
        raise QueryError("the parts of the query cancel out: use other words or another weight")
    unit: NDArray[np.float32] = (summed / length).astype(np.float32)
    return unit
