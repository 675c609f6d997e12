"""Drawn products: a shop's pictures without a shop, for the demo, tests and experiments."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (206, 40, 44),
    "orange": (240, 130, 30),
    "yellow": (246, 206, 50),
    "green": (52, 150, 70),
    "teal": (30, 150, 160),
    "blue": (44, 92, 200),
    "purple": (124, 66, 168),
    "pink": (240, 140, 180),
    "brown": (126, 82, 50),
    "black": (42, 42, 46),
    "gray": (142, 146, 152),
    "white": (244, 243, 240),
}
ACCENTS: dict[str, Colour] = {
    "gold": (206, 164, 66),
    "silver": (186, 192, 200),
    "dark": (58, 52, 52),
    "wooden": (176, 126, 78),
}
PATTERNS = ("plain", "striped", "dotted", "checkered", "diagonal", "zigzag")
_BACKGROUNDS: tuple[Colour, ...] = (
    *((226, 214, 198), (200, 214, 222), (214, 222, 204), (232, 208, 206)),
    *((188, 180, 172), (120, 132, 140), (96, 84, 78), (210, 210, 214)),
)


_ROUND = {"ball", "clock"}


@dataclass(frozen=True)
class Thing:
    """What a product looks like; `second` is the pattern's colour, `colour` where plain."""

    kind: str
    colour: str
    second: str
    pattern: str
    accent: str
    width: float  # of the usual width of its kind
    period: float  # of the pattern, as a part of the picture's side


def draw_thing(rng: random.Random) -> Thing:
    """A random product; every kind, colour, pattern and accent is equally likely."""
    kind = rng.choice(list(KINDS))
    colour = rng.choice(list(COLOURS))
    pattern = rng.choice(PATTERNS)
    second = rng.choice([other for other in COLOURS if other != colour])
    return Thing(
        kind=kind,
        colour=colour,
        second=colour if pattern == "plain" else second,
        pattern=pattern,
        accent=rng.choice(list(ACCENTS)),
        width=1.0 if kind in _ROUND else rng.uniform(0.86, 1.12),
        period=rng.uniform(0.07, 0.12),
    )


def words(thing: Thing) -> tuple[str, ...]:
    """The words of a title that the picture shows, in their usual order."""
    if thing.pattern == "plain":
        return (thing.colour, thing.kind)
    return (thing.pattern, thing.colour, thing.second, thing.kind)


def render(thing: Thing, rng: random.Random, *, main: bool, size: int = 160) -> Image.Image:
    """A view of a product, RGB of size x size pixels.

    The main view is upright on white; any other is turned, moved and scaled on another
    background in other light, as `rng` has it.
    """
    big = 2 * size  # drawn at twice the size for smooth edges
    product = _product(thing, big)
    if main:
        canvas = Image.new("RGB", (big, big), "white")
        angle, scale, shift, light = 0.0, rng.uniform(0.9, 1.0), (0.0, 0.0), 1.0
    else:
        canvas = _background(rng, big)
        angle, scale = rng.uniform(-28, 28), rng.uniform(0.6, 0.92)
        reach = 0.5 * (1 - scale) * big
        shift = (rng.uniform(-reach, reach), rng.uniform(-reach, reach))
        light = rng.uniform(0.72, 1.2)
        if rng.random() < 0.5:
            product = product.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = round(big * scale)
    product = product.resize((side, side), Image.Resampling.BILINEAR)
    product = product.rotate(angle, Image.Resampling.BILINEAR)
    corner = (round((big - side) / 2 + shift[0]), round((big - side) / 2 + shift[1]))
    _cast_shadow(canvas, product, corner)
    canvas.paste(product, corner, product)
    canvas = ImageEnhance.Brightness(canvas).enhance(light)
    return canvas.reduce(2)


def _product(thing: Thing, big: int) -> Image.Image:
    """The product alone, RGBA, shaded as if lit from the upper left."""
    back, body, front = (_Layer(big, thing.width) for _ in range(3))
    KINDS[thing.kind](back, body, front)
    accent = ACCENTS[thing.accent]
    product = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    product.paste(accent, mask=back.mask)
    product.paste(_pattern(thing, big), mask=body.mask)
    product.paste(accent, mask=front.mask)
    shade = _shade(body.mask)
    colour = ImageChops.multiply(product.convert("RGB"), Image.merge("RGB", [shade] * 3))
    # A thin darker rim keeps white things apart from a white background.
    whole = product.getchannel("A")
    rim = ImageChops.subtract(whole, whole.filter(ImageFilter.MinFilter(3)))
    colour.paste(ImageEnhance.Brightness(colour).enhance(0.72), mask=rim)
    colour.putalpha(whole)
    return colour


def _shade(mask: Image.Image) -> Image.Image:
    """Grey levels from bright at the upper left of the mask's box to dark at the right."""
    across = Image.linear_gradient("L").rotate(90)
    down = Image.linear_gradient("L")
    slope = Image.blend(across, down, 0.35).point([255 - level * 92 // 255 for level in range(256)])
    shade = Image.new("L", mask.size, 235)
    box = mask.getbbox() or (0, 0, *mask.size)
    shade.paste(slope.resize((box[2] - box[0], box[3] - box[1])), box)
    return shade


def _pattern(thing: Thing, big: int) -> Image.Image:
    first, second = COLOURS[thing.colour], COLOURS[thing.second]
    cloth = Image.new("RGB", (big, big), first)
    if thing.pattern == "plain":
        return cloth
    draw = ImageDraw.Draw(cloth)
    step = thing.period * big
    lines = range(-1, math.ceil(big / step) + 1)
    if thing.pattern == "striped":
        for row in lines:
            draw.rectangle((0, row * step, big, (row + 0.45) * step), fill=second)
    elif thing.pattern == "diagonal":
        for row in range(-1, 2 * len(lines)):
            start = row * step * 1.2
            draw.line((start, 0, start - big, big), fill=second, width=round(0.42 * step))
    elif thing.pattern == "zigzag":
        for row in lines:
            corners = [
                (column * step / 2, (row + 0.35 * (column % 2)) * step * 1.2)
                for column in range(2 * len(lines))
            ]
            draw.line(corners, fill=second, width=round(0.3 * step), joint="curve")
    else:
        for row in lines:
            for column in lines:
                x, y = column * step, row * step
                if thing.pattern == "checkered" and (row + column) % 2:
                    draw.rectangle((x, y, x + step, y + step), fill=second)
                elif thing.pattern == "dotted":
                    x += (row % 2) * step / 2
                    draw.ellipse((x, y, x + 0.52 * step, y + 0.52 * step), fill=second)
    return cloth


def _background(rng: random.Random, big: int) -> Image.Image:
    """A wall and a table in two colours, softly lit, or one plain ground."""
    wall, table = rng.sample(_BACKGROUNDS, 2)
    canvas = Image.new("RGB", (big, big), wall)
    draw = ImageDraw.Draw(canvas)
    if rng.random() < 0.7:
        edge = rng.uniform(0.5, 0.8) * big
        draw.rectangle((0, edge, big, big), fill=table)
        for board in range(rng.randrange(4)):
            x = (board + rng.random()) * big / 3
            tone = tuple(value - 14 for value in table)
            draw.line((x, edge, x + rng.uniform(-0.2, 0.2) * big, big), fill=tone, width=3)
    light = Image.radial_gradient("L").point([255 - level * 70 // 255 for level in range(256)])
    x, y = rng.randrange(128), rng.randrange(128)
    light = light.resize((big, big), Image.Resampling.BILINEAR, box=(x, y, x + 128, y + 128))
    return ImageChops.multiply(canvas, Image.merge("RGB", [light] * 3))


def _cast_shadow(canvas: Image.Image, product: Image.Image, corner: tuple[int, int]) -> None:
    """Darkens an ellipse under the product, in place."""
    box = product.getchannel("A").getbbox()
    if box is None:
        return
    left, bottom, right = corner[0] + box[0], corner[1] + box[3], corner[0] + box[2]
    height = (right - left) * 0.07
    shadow = Image.new("L", canvas.size, 0)
    ImageDraw.Draw(shadow).ellipse((left, bottom - height, right, bottom + height), fill=96)
    canvas.paste((30, 30, 36), mask=shadow.filter(ImageFilter.BoxBlur(canvas.width / 64)))


class _Layer:
    """A mask to draw shapes on, in coordinates 0..1 that `width` stretches sideways."""

    def __init__(self, big: int, width: float) -> None:
        self.mask = Image.new("L", (big, big), 0)
        self._draw = ImageDraw.Draw(self.mask)
        self._big = big
        self._width = width

    def _at(self, x: float, y: float) -> Point:
        return ((0.5 + (x - 0.5) * self._width) * self._big, y * self._big)

    def shape(self, *points: Point, hole: bool = False) -> None:
        self._draw.polygon([self._at(x, y) for x, y in points], fill=0 if hole else 255)

    def mirrored(self, *points: Point) -> None:
        """A shape given by its left half, from top to bottom."""
        self.shape(*points, *[(1 - x, y) for x, y in reversed(points)])

    def box(self, x: float, y: float, right: float, bottom: float, round_by: float = 0) -> None:
        corners = (*self._at(x, y), *self._at(right, bottom))
        self._draw.rounded_rectangle(corners, round_by * self._big, fill=255)

    def oval(self, x: float, y: float, right: float, bottom: float, *, hole: bool = False) -> None:
        corners = (*self._at(x, y), *self._at(right, bottom))
        self._draw.ellipse(corners, fill=0 if hole else 255)

    def ring(self, x: float, y: float, right: float, bottom: float, thick: float) -> None:
        corners = (*self._at(x, y), *self._at(right, bottom))
        self._draw.ellipse(corners, outline=255, width=round(thick * self._big))

    def line(self, *points: Point, thick: float) -> None:
        width = round(thick * self._big)
        self._draw.line([self._at(x, y) for x, y in points], fill=255, width=width, joint="curve")


def _mug(back: _Layer, body: _Layer, front: _Layer) -> None:
    back.ring(0.58, 0.36, 0.92, 0.72, 0.055)
    body.box(0.18, 0.24, 0.7, 0.84, 0.06)
    front.oval(0.18, 0.2, 0.7, 0.3)


def _bottle(back: _Layer, body: _Layer, front: _Layer) -> None:
    body.mirrored((0.44, 0.16), (0.44, 0.3), (0.34, 0.42), (0.33, 0.5), (0.33, 0.92))
    body.box(0.33, 0.8, 0.67, 0.94, 0.03)
    front.box(0.425, 0.06, 0.575, 0.17, 0.015)


def _shirt(back: _Layer, body: _Layer, front: _Layer) -> None:
    body.mirrored(
        *((0.4, 0.16), (0.3, 0.19), (0.08, 0.36), (0.18, 0.5), (0.28, 0.42), (0.28, 0.88))
    )
    body.oval(0.41, 0.08, 0.59, 0.24, hole=True)
    front.line(
        (0.405, 0.165), (0.43, 0.215), (0.5, 0.245), (0.57, 0.215), (0.595, 0.165), thick=0.02
    )


def _dress(back: _Layer, body: _Layer, front: _Layer) -> None:
    body.mirrored((0.37, 0.08), (0.42, 0.2), (0.36, 0.26), (0.4, 0.46), (0.16, 0.92))
    body.shape((0.4, 0.05), (0.6, 0.05), (0.56, 0.2), (0.44, 0.2), hole=True)
    front.shape((0.395, 0.44), (0.605, 0.44), (0.612, 0.49), (0.388, 0.49))


def _chair(back: _Layer, body: _Layer, front: _Layer) -> None:
    for x, foot in ((0.3, 0.24), (0.7, 0.76), (0.4, 0.38), (0.6, 0.62)):
        back.line((x, 0.6), (foot, 0.94 if abs(x - 0.5) > 0.15 else 0.88), thick=0.035)
    body.box(0.28, 0.06, 0.72, 0.48, 0.06)
    body.shape((0.28, 0.54), (0.72, 0.54), (0.8, 0.66), (0.2, 0.66))
    front.box(0.32, 0.48, 0.36, 0.55)
    front.box(0.64, 0.48, 0.68, 0.55)


def _lamp(back: _Layer, body: _Layer, front: _Layer) -> None:
    back.line((0.5, 0.4), (0.5, 0.88), thick=0.035)
    body.mirrored((0.36, 0.1), (0.2, 0.5))
    front.oval(0.32, 0.85, 0.68, 0.94)


def _shoe(back: _Layer, body: _Layer, front: _Layer) -> None:
    body.shape(
        *((0.1, 0.36), (0.2, 0.4), (0.32, 0.36), (0.44, 0.46), (0.6, 0.56), (0.82, 0.6)),
        *((0.92, 0.68), (0.93, 0.75), (0.08, 0.75)),
    )
    front.box(0.07, 0.73, 0.94, 0.81, 0.03)
    for lace in range(3):
        x, y = 0.4 + 0.08 * lace, 0.425 + 0.055 * lace
        front.line((x, y), (x - 0.05, y + 0.09), thick=0.018)


def _bag(back: _Layer, body: _Layer, front: _Layer) -> None:
    back.ring(0.33, 0.08, 0.67, 0.62, 0.035)
    body.shape((0.2, 0.36), (0.8, 0.36), (0.88, 0.9), (0.12, 0.9))
    front.box(0.45, 0.4, 0.55, 0.48, 0.01)


def _box(back: _Layer, body: _Layer, front: _Layer) -> None:
    body.box(0.14, 0.4, 0.86, 0.9)
    body.box(0.1, 0.28, 0.9, 0.42, 0.01)
    front.box(0.46, 0.28, 0.54, 0.9)
    front.ring(0.34, 0.14, 0.5, 0.29, 0.03)
    front.ring(0.5, 0.14, 0.66, 0.29, 0.03)


def _ball(back: _Layer, body: _Layer, front: _Layer) -> None:
    body.oval(0.14, 0.14, 0.86, 0.86)
    front.line((0.16, 0.42), (0.34, 0.5), (0.66, 0.5), (0.84, 0.42), thick=0.014)
    front.line((0.5, 0.14), (0.46, 0.5), (0.5, 0.86), thick=0.014)


def _hat(back: _Layer, body: _Layer, front: _Layer) -> None:
    body.oval(0.06, 0.6, 0.94, 0.82)
    body.mirrored((0.36, 0.26), (0.3, 0.34), (0.26, 0.7))
    body.oval(0.36, 0.22, 0.64, 0.36)
    front.shape((0.272, 0.58), (0.728, 0.58), (0.74, 0.68), (0.26, 0.68))


def _clock(back: _Layer, body: _Layer, front: _Layer) -> None:
    back.oval(0.1, 0.1, 0.9, 0.9)
    body.oval(0.16, 0.16, 0.84, 0.84)
    for hour in range(12):
        x, y = math.sin(hour * math.pi / 6), math.cos(hour * math.pi / 6)
        ends = ((0.5 + 0.27 * x, 0.5 + 0.27 * y), (0.5 + 0.31 * x, 0.5 + 0.31 * y))
        front.line(*ends, thick=0.02)
    front.line((0.5, 0.5), (0.5, 0.26), thick=0.024)
    front.line((0.5, 0.5), (0.67, 0.58), thick=0.03)


KINDS: dict[str, Callable[[_Layer, _Layer, _Layer], None]] = {
    "mug": _mug,
    "bottle": _bottle,
    "t-shirt": _shirt,
    "dress": _dress,
    "chair": _chair,
    "lamp": _lamp,
    "shoe": _shoe,
    "bag": _bag,
    "box": _box,
    "ball": _ball,
    "hat": _hat,
    "clock": _clock,
}
