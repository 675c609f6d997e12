"""Shop pictures made to look as if a customer had photographed the product."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageEnhance, ImageFilter

SIDE = 256  # pixels, of the longer side of what comes out
_MOST = 1.45  # times its size that the scene round the product can have


def phone_photo(picture: Image.Image, behind: Image.Image, rng: random.Random) -> Image.Image:
    """An RGB picture as a phone might take it: the product off centre or partly out of view in
    front of another one, tilted, in another light, a bit blurred and compressed."""
    picture = picture.copy()
    picture.thumbnail((SIDE, SIDE))
    angle = rng.uniform(-15, 15)
    tilted = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    inside = Image.new("L", picture.size, 255).rotate(angle, expand=True)
    seen = [max(8, round(side * rng.uniform(0.65, _MOST))) for side in tilted.size]
    place = [
        rng.randint(*sorted((0, whole - side)))
        for whole, side in zip(seen, tilted.size, strict=True)
    ]
    scene = behind.resize((seen[0], seen[1]), Image.Resampling.BICUBIC)
    scene.paste(tilted, (place[0], place[1]), inside)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        scene = enhance(scene).enhance(rng.uniform(0.6, 1.4))
    scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.008) * max(scene.size)))
    buffer = io.BytesIO()
    scene.save(buffer, "JPEG", quality=rng.randint(35, 85))
    photo: Image.Image = Image.open(buffer).convert("RGB")
    return photo
