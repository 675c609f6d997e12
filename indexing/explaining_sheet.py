"""An explanation as a picture: the original, and beside it where each word looks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from indexing.explaining import Explanation, WordMap
from indexing.models.pictures import bounded
from indexing.sheet import TILE, SheetCell, cell_grid

_COLUMNS = 5
_COLD, WARM, HOT = "#23307c", "#f2c230", "#d7191c"
_HEAT = 0.55  # how far the colours cover the picture


def explanation_sheet(picture: Image.Image, text: str, explanation: Explanation) -> Image.Image:
    """The RGB picture that was explained and its words in rows, as an RGB picture.

    Each map is scaled to its own highest value. Words that pruning drops, and those that the
    model does not read, are grey; words without a gradient show the picture alone.
    """
    score = f"match {explanation.score:.3f}"
    return _sheet(SheetCell(picture, text, score), picture, explanation.words)


def attention_sheet(picture: Image.Image, title: str, words: Sequence[WordMap]) -> Image.Image:
    """The RGB picture of a product and where each word of its title looks, in rows, as
    `explanation_sheet` shows it."""
    return _sheet(SheetCell(picture, title, "attention"), picture, words)


def _sheet(first: SheetCell, picture: Image.Image, words: Sequence[WordMap]) -> Image.Image:
    seen = bounded(picture, TILE)  # as the model saw it: slivers lie on white
    cells = [
        SheetCell(_overlay(seen, word), word.text, remark(word), faded=not word.kept)
        for word in words
    ]
    return cell_grid([first, *cells], _COLUMNS)


def heat_levels(heat: NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    """A map, float32 [h, w] from 0 to 1, at this width and height, as a grey picture (L)."""
    spread = Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(np.rint(np.asarray(spread).clip(0, 1) * 255).astype(np.uint8))


def remark(word: WordMap) -> str:
    """What there is to say of a word: its entropy, and what becomes of it."""
    if not word.read:
        return "beyond the longest text"
    found = "no gradient" if math.isnan(word.entropy) else f"entropy {word.entropy:.2f}"
    return found if word.kept else f"dropped, {found}"


def _overlay(picture: Image.Image, word: WordMap) -> Image.Image:
    shown = picture.copy()
    shown.thumbnail((2 * TILE, 2 * TILE))
    highest = float(word.map.max())
    if highest > 0:
        levels = heat_levels(word.map / highest, shown.size)
        shown = Image.blend(shown, ImageOps.colorize(levels, _COLD, HOT, WARM), _HEAT)
    return shown if word.kept else ImageOps.grayscale(shown)
