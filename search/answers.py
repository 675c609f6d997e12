"""Answers as people see them: a price, a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from PIL import Image

from indexing.errors import ImageError
from indexing.images import read_image
from indexing.sheet import SheetCell
from search.hits import Hit
from search.sheet import contact_sheet

_PREVIEW = 200  # pixels that a cell shows at most


def answer_sheet(query: Image.Image | None, caption: str, hits: Sequence[Hit]) -> Image.Image:
    """The query and its answers as one RGB picture."""
    return contact_sheet(query, caption, [_cell(hit) for hit in hits])


def price_of(hit: Hit) -> str:
    """The price with its currency, empty where there is none."""
    price = hit.fields.get("price")
    if not isinstance(price, float):
        return ""
    return f"{price:.2f} {hit.fields.get('currency', '')}".rstrip()


def _cell(hit: Hit) -> SheetCell:
    """A cell of the contact sheet; without a picture where that is a URL or is gone."""
    picture = None
    if hit.image_path is not None:
        with suppress(ImageError):
            picture = read_image(hit.image_path, at_least=_PREVIEW)
    title = str(hit.fields.get("title", hit.product_id))
    ranked_by = f"{hit.score:.3f}" if hit.match is None else f"match {hit.match:.3f}"
    return SheetCell(picture, title, f"{hit.rank}.  {ranked_by}  {price_of(hit)}".rstrip())
