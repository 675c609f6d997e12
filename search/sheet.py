"""A query and its answers as one picture, to look at or to send to somebody."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from indexing.sheet import (
    GAP,
    INK,
    LINE,
    PALE,
    RULE,
    SOFT,
    TILE,
    SheetCell,
    cell_grid,
    draw_tile,
    stack_sheets,
    wrapped,
    write,
)

_HEAD_LINES = 4


def contact_sheet(
    query: Image.Image | None, caption: str, answers: Sequence[SheetCell], columns: int = 5
) -> Image.Image:
    """The query (picture, text or both) above a grid of its answers, as an RGB picture.

    Long titles are wrapped and cut; an answer without a picture gets a tile that says so.
    """
    columns = max(1, columns)
    width = GAP + max(3, min(columns, len(answers))) * (TILE + GAP)
    head = _head(query, caption, width)
    if answers:
        return stack_sheets([head, cell_grid(answers, columns)])
    nothing = Image.new("RGB", (width, GAP + LINE + GAP), "white")
    write(nothing, (GAP, GAP), "no answers", 16, SOFT)
    return stack_sheets([head, nothing])


def _head(query: Image.Image | None, caption: str, width: int) -> Image.Image:
    """A band with what was asked: the picture on the left, the words beside it."""
    left = GAP if query is None else 2 * GAP + TILE
    lines = wrapped(caption, 20, width - left - GAP, _HEAD_LINES)
    text_height = LINE + 6 + 26 * len(lines)
    height = 2 * GAP + (text_height if query is None else TILE)
    head = Image.new("RGB", (width, height), PALE)
    ImageDraw.Draw(head).line((0, height - 1, width, height - 1), RULE)
    if query is not None:
        draw_tile(head, SheetCell(query, "", ""), (GAP, GAP), TILE)
    y = (height - text_height) // 2
    write(head, (left, y), "QUERY", 13, SOFT)
    for number, line in enumerate(lines):
        write(head, (left, y + LINE + 6 + 26 * number), line, 20, INK)
    return head
