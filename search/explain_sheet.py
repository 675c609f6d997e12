"""Why a picture matched, as a picture: the query, and the picture with its regions."""

from __future__ import annotations

from PIL import Image

from indexing.models.pictures import bounded
from indexing.sheet import TILE, SheetCell, cell_grid
from search.explain import MatchExplanation, overlay

_SIDE = 400  # pixels, of a tile's side


def match_sheet(
    query: Image.Image | None,
    text: str | None,
    picture: Image.Image,
    found: MatchExplanation,
) -> Image.Image:
    """What was asked, the RGB picture, and the picture under its heat, in a row as an RGB
    picture, with the words that weigh most."""
    # Slivers lie on white, so that they are to be seen; their heat does, too.
    shown = picture.copy()
    shown.thumbnail((2 * _SIDE, 2 * _SIDE))
    hot = Image.alpha_composite(shown.convert("RGBA"), overlay(shown, found.heat)).convert("RGB")
    weighed = [word for word in found.words if word.weight is not None]
    weighed.sort(key=lambda word: -(word.weight or 0))
    words = ", ".join(f"{word.text} {word.weight:+.2f}" for word in weighed)
    cells = [
        SheetCell(bounded(shown, TILE), text or "the picture", f"cosine {found.score:.3f}"),
        SheetCell(bounded(hot, TILE), words or "what makes it match", ""),
    ]
    if query is not None:
        cells.insert(0, SheetCell(bounded(query, TILE), "the query", ""))
    return cell_grid(cells, len(cells), _SIDE)
