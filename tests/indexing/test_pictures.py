"""Pictures made fit for a tower: open_clip's transform to the bit, and fractions of pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from indexing.images import decode_image
from indexing.models.clip import ClipEye
from indexing.models.pictures import Normalised, Shortest, centred, resized
from indexing.models.torchvision_repair import import_torchvision

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noisy(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(37, 90), (224, 224), (301, 200), (640, 479), (33, 500)])
@pytest.mark.parametrize(
    "cfg",
    [
        {"size": 32},
        {"size": (64, 64), "interpolation": "bilinear"},
        {"size": (48, 32), "resize_mode": "squash"},
        {"size": 40, "resize_mode": "longest", "fill_color": 255},
        {"size": (50, 40), "resize_mode": "longest", "interpolation": "bilinear"},
        {"size": (48, 32), "interpolation": "bilinear"},
    ],
)
def test_pictures_are_as_open_clip_takes_them_in(
    size: tuple[int, int], cfg: dict[str, Any]
) -> None:
    import_torchvision()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = {"mean": MEAN, "std": STD, **cfg}
    picture = noisy(*size)
    expected = image_transform_v2(PreprocessCfg(**cfg), is_train=False)(picture)
    found = ClipEye(cfg).preprocess(picture)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.numpy())


def test_normalised_is_the_formula_for_each_of_256_values() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    found = Normalised(MEAN, STD)(ramp)
    values = np.arange(256).reshape(16, 16) / 255
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        np.testing.assert_allclose(found[channel], (values - mean) / std, atol=1e-6)


@pytest.mark.parametrize(("size", "expected"), [((300, 200), (60, 40)), ((199, 401), (40, 80))])
def test_the_shorter_side_is_as_wanted(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert Shortest(40)(size) == expected


def test_the_centre_is_rounded_as_torchvision_rounds_it() -> None:
    ramp = Image.fromarray(np.arange(7 * 9, dtype=np.uint8).reshape(7, 9)).convert("RGB")
    assert np.asarray(centred(ramp, 4, 4, 0))[0, 0, 0] == 2 * 9 + 2  # 2.5 and 1.5, to the even


@pytest.mark.parametrize("size", [(783, 601), (1201, 1035), (640, 480)])
def test_a_fraction_of_a_picture_is_resized_as_the_whole_would_be(size: tuple[int, int]) -> None:
    """A ramp has no detail to lose, so what is left is the geometry."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=98, subsampling=0)
    whole = decode_image(file.getvalue())
    part = decode_image(file.getvalue(), at_least=100)
    assert part.width < whole.width / 1.9
    one, other = (np.asarray(resized(picture, Shortest(100)), float) for picture in (whole, part))
    assert one.shape == other.shape
    assert abs((one - other).mean()) < 0.1  # half a pixel of the fraction would be .6
    # What is cut out of it is a picture of its own.
    cut = part.crop((0, 0, part.width, part.height - 1))
    assert resized(cut, lambda own: own).size == cut.size
