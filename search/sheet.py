"""A query and its answers as one picture, to look at or to send to somebody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_TILE = 200  # pixels, of a picture's side
_GAP = 20
_LINE = 20
_TITLE_LINES = 2
_HEAD_LINES = 4
_INK, _SOFT, _PALE, _RULE = "#222222", "#6b6b6b", "#f3f4f6", "#d9dbdf"


@dataclass(frozen=True)
class SheetCell:
    """One answer; `note` is a short line below the title, such as rank and score."""

    picture: Image.Image | None
    title: str
    note: str
    frame: str | None = None  # colour of a thick frame that marks it
    instead: str = "no picture"  # what the tile says without a picture


def contact_sheet(
    query: Image.Image | None, caption: str, answers: Sequence[SheetCell], columns: int = 5
) -> Image.Image:
    """The query (picture, text or both) above a grid of its answers, as an RGB picture.

    Long titles are wrapped and cut; an answer without a picture gets a tile that says so.
    """
    columns = max(1, columns)
    width = _GAP + max(3, min(columns, len(answers))) * (_TILE + _GAP)
    head = _head(query, caption, width)
    if answers:
        return stack_sheets([head, cell_grid(answers, columns)])
    nothing = Image.new("RGB", (width, _GAP + _LINE + _GAP), "white")
    _write(nothing, (_GAP, _GAP), "no answers", 16, _SOFT)
    return stack_sheets([head, nothing])


def cell_grid(cells: Sequence[SheetCell], columns: int, tile: int = _TILE) -> Image.Image:
    """Cells in rows on white, with tiles of `tile` x `tile` pixels, as an RGB picture."""
    rows, step = -(-len(cells) // columns), tile + 8 + (_TITLE_LINES + 1) * _LINE + _GAP
    width = _GAP + min(columns, len(cells)) * (tile + _GAP)
    grid = Image.new("RGB", (width, _GAP + rows * step), "white")
    for index, cell in enumerate(cells):
        x, y = _GAP + index % columns * (tile + _GAP), _GAP + index // columns * step
        _draw_tile(grid, cell, (x, y), tile)
        y += tile + 8
        for line in _wrapped(cell.title, 15, tile, _TITLE_LINES):
            _write(grid, (x, y), line, 15, _INK)
            y += _LINE
        _write(grid, (x, y), _cut(_printable(cell.note), 14, tile), 14, _SOFT)
    return grid


def stack_sheets(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets below one another, left-aligned on white. Raises ValueError for none."""
    if not sheets:
        raise ValueError("no sheets to stack")
    size = (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets))
    stacked = Image.new("RGB", size, "white")
    y = 0
    for sheet in sheets:
        stacked.paste(sheet, (0, y))
        y += sheet.height
    return stacked


def _head(query: Image.Image | None, caption: str, width: int) -> Image.Image:
    """A band with what was asked: the picture on the left, the words beside it."""
    left = _GAP if query is None else 2 * _GAP + _TILE
    lines = _wrapped(caption, 20, width - left - _GAP, _HEAD_LINES)
    text_height = _LINE + 6 + 26 * len(lines)
    height = 2 * _GAP + (text_height if query is None else _TILE)
    head = Image.new("RGB", (width, height), _PALE)
    ImageDraw.Draw(head).line((0, height - 1, width, height - 1), _RULE)
    if query is not None:
        _draw_tile(head, SheetCell(query, "", ""), (_GAP, _GAP), _TILE)
    y = (height - text_height) // 2
    _write(head, (left, y), "QUERY", 13, _SOFT)
    for number, line in enumerate(lines):
        _write(head, (left, y + _LINE + 6 + 26 * number), line, 20, _INK)
    return head


def _draw_tile(sheet: Image.Image, cell: SheetCell, corner: tuple[int, int], tile: int) -> None:
    """A framed square with the whole picture in its middle, or with words in its place."""
    (x, y), picture = corner, cell.picture
    draw = ImageDraw.Draw(sheet)
    if cell.frame is not None:
        draw.rectangle((x - 6, y - 6, x + tile + 5, y + tile + 5), outline=cell.frame, width=5)
    fill = _PALE if picture is None else "white"
    draw.rectangle((x - 1, y - 1, x + tile, y + tile), fill=fill, outline=_RULE)
    if picture is None:
        font = ImageFont.load_default(16)
        lines = _wrapped(cell.instead, 16, tile - _GAP, tile // _LINE - 1)
        for number, line in enumerate(lines):
            middle = y + tile / 2 + (number - (len(lines) - 1) / 2) * _LINE
            draw.text((x + tile / 2, middle), line, _SOFT, font, anchor="mm")
        return
    scale = tile / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (tile - size[0]) // 2, y + (tile - size[1]) // 2))


def _write(sheet: Image.Image, corner: tuple[int, int], text: str, size: int, colour: str) -> None:
    ImageDraw.Draw(sheet).text(corner, text, colour, ImageFont.load_default(size))


def _wrapped(text: str, size: int, width: int, most: int) -> list[str]:
    """The words of `text` in at most `most` lines of `width` pixels; the last may be cut."""
    font = ImageFont.load_default(size)
    rest = _printable(text).split()
    lines: list[str] = []
    while rest and len(lines) < most:
        count = 1
        while count < len(rest) and font.getlength(" ".join(rest[: count + 1])) <= width:
            count += 1
        if len(lines) == most - 1:
            count = len(rest)
        lines.append(_cut(" ".join(rest[:count]), size, width))
        rest = rest[count:]
    return lines


def _cut(line: str, size: int, width: int) -> str:
    """`line`, or as much of it as fits `width` pixels together with an ellipsis."""
    font = ImageFont.load_default(size)
    if font.getlength(line) <= width:
        return line
    # A character takes a pixel at least: the rest of a huge text need not be measured.
    kept = line[:width]
    while kept and font.getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def _printable(text: str) -> str:
    """`text` on one line; half characters (of names that are not UTF-8) cannot be drawn."""
    one_line = "".join(" " if character.isspace() else character for character in text)
    return one_line.encode("utf-8", "replace").decode("utf-8")
