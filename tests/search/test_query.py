"""Query vectors, by hand: with TinyEncoder a plain colour is (r x 16, g x 16, b x 16, .5)."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from indexing.errors import ImageError, QueryError
from indexing.query_text import MAX_TEXT_LENGTH
from search.query import MAX_MINUS, load_picture, query_vector

RED = Image.new("RGB", (8, 8), "red")
QUARTERS = {(0, 0): "red", (1, 0): "blue", (0, 1): "yellow", (1, 1): "cyan"}


def plain(r: float, g: float, b: float) -> NDArray[np.float64]:
    """The vector of a plain colour given in [-1, 1]."""
    vector = np.repeat([r, g, b, 0.5], [16, 16, 16, 1])
    return vector / math.sqrt(vector @ vector)


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / np.linalg.norm(vector)


def in_quarters() -> Image.Image:
    picture = Image.new("RGB", (40, 20))
    for (x, y), colour in QUARTERS.items():
        picture.paste(colour, (20 * x, 10 * y, 20 * x + 20, 10 * y + 10))
    return picture


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


red, blue, yellow = plain(1, -1, -1), plain(-1, -1, 1), plain(1, 1, -1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"picture": RED, "text": None}, red),
        ({"picture": None, "text": "blue"}, blue),
        ({"picture": RED, "text": "blue"}, unit(red + blue)),
        ({"picture": RED, "text": "blue", "image_weight": 3.0}, unit(3 * red + blue)),
        ({"picture": RED, "text": "blue", "image_weight": 0.0}, blue),
        ({"picture": RED, "text": "blue", "text_weight": 0.0}, red),
        ({"picture": RED, "text": "blue", "image_weight": 1e-200, "text_weight": 2e-200},
         unit(red + 2 * blue)),
        ({"picture": RED, "text": None, "minus": ["blue"]}, unit(red - blue / 2)),
        ({"picture": RED, "text": "yellow", "minus": ["blue", "red"], "minus_weight": 0.25},
         unit(red + yellow - blue / 4 - red / 4)),
        ({"picture": RED, "text": None, "minus": ["blue"], "minus_weight": 0.0}, red),
    ],
)  # fmt: skip
def test_weighted_sum(
    tiny_encoder: Any, arguments: dict[str, Any], expected: NDArray[np.float64]
) -> None:
    vector = query_vector(tiny_encoder, **arguments)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, expected, atol=2e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "the query is empty: give a text, an image or both"),
        ({"minus": ["red"]}, "minus alone is no query: add a text or an image"),
        ({"text": " \n"}, "text is blank"),
        ({"text": "red", "minus": ["blue", ""]}, "minus is blank"),
        ({"text": "x" * (MAX_TEXT_LENGTH + 1)}, "text has 10,001 characters: at most 10,000"),
        ({"text": "caf\udce9"}, r"text 'caf\\udce9' is not UTF-8"),
        ({"text": "red", "minus": ["blue"] * (MAX_MINUS + 1)}, "21 minus texts: at most 20"),
        ({"text": "red", "text_weight": -1.0}, "text weight -1: must be between 0 and 1,000"),
        ({"text": "red", "image_weight": math.nan}, "image weight nan: must be"),
        ({"text": "red", "minus_weight": math.inf}, "minus weight inf: must be"),
        ({"text": "red", "text_weight": 1000.5}, "text weight 1000.5: must be"),
        ({"text": "red", "text_weight": 0.0}, "the weights leave nothing"),
        ({"picture": RED, "text": "red", "image_weight": 0.0, "text_weight": 0.0},
         "the weights leave nothing"),
        ({"picture": RED, "minus": ["red"], "minus_weight": 1.0}, "cancel out"),
    ],
)  # fmt: skip
def test_bad_queries(tiny_encoder: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        query_vector(tiny_encoder, **{"picture": None, "text": None, **arguments})


@pytest.mark.parametrize(("corner", "colour"), QUARTERS.items())
def test_crop_takes_the_quarter(corner: tuple[int, int], colour: str, tmp_path: Path) -> None:
    data = encoded(in_quarters())
    (tmp_path / "photo.png").write_bytes(data)
    box = (corner[0] / 2, corner[1] / 2, 0.5, 0.5)
    for source in (in_quarters(), data, tmp_path / "photo.png", str(tmp_path / "photo.png")):
        cropped = load_picture(source, box)
        assert cropped.size == (20, 10)
        assert cropped.getcolors() == [(200, Image.new("RGB", (1, 1), colour).getpixel((0, 0)))]


def test_crop_is_of_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    data = encoded(in_quarters(), "PNG", exif=exif)
    assert load_picture(data, (0, 0, 0.5, 0.5)).getpixel((0, 0)) == (0, 255, 255)


def test_scaled_decoding_only_without_a_crop() -> None:
    data = encoded(Image.new("RGB", (640, 640), "red"), "JPEG")
    assert load_picture(data, at_least=20).size == (80, 80)
    assert load_picture(data, (0, 0, 0.5, 0.5), at_least=20).size == (320, 320)


def test_a_pil_picture_must_be_upright_rgb() -> None:
    assert load_picture(RED) is RED
    turned = RED.copy()
    turned.getexif()[0x0112] = 6
    for picture in (RED.convert("RGBA"), RED.convert("L"), turned):
        with pytest.raises(ImageError, match="give the file's path or bytes"):
            load_picture(picture)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 1.1, 1), (-0.1, 0, 0.5, 0.5), (0, 0, 0, 1), (0.5, 0.5, 0.6, 0.5), (0, math.nan, 1, 1)],
)
def test_crop_outside_the_picture(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(QueryError, match="crop"):
        load_picture(RED, box)


def test_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"query picture: .*HTML"):
        load_picture(b"<html><body>Not found</body></html>")
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        load_picture(tmp_path / "gone.jpg")
