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


def contact_sheet(
    query: Image.Image | None, caption: str, answers: Sequence[SheetCell], columns: int = 5
) -> Image.Image:
    """The query (picture, text or both) above a grid of its answers, as an RGB picture.

    Long titles are wrapped and cut; an answer without a picture gets a tile that says so.
    """
    columns = max(1, columns)
    width = _GAP + max(3, min(columns, len(answers))) * (_TILE + _GAP)
    head = _head(query, caption, width)
    cell_height = _TILE + (_TITLE_LINES + 1) * _LINE + 8
    rows = -(-len(answers) // columns)
    height = head.height + _GAP + (rows * (cell_height + _GAP) if answers else _LINE + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(head, (0, 0))
    if not answers:
        _write(sheet, (_GAP, head.height + _GAP), "no answers", 16, _SOFT)
    for index, answer in enumerate(answers):
        x = _GAP + index % columns * (_TILE + _GAP)
        y = head.height + _GAP + index // columns * (cell_height + _GAP)
        _draw_tile(sheet, answer.picture, (x, y))
        y += _TILE + 8
        for line in _wrapped(answer.title, 15, _TILE, _TITLE_LINES):
            _write(sheet, (x, y), line, 15, _INK)
            y += _LINE
        _write(sheet, (x, y), _cut(_printable(answer.note), 14, _TILE), 14, _SOFT)
    return sheet


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
        _draw_tile(head, query, (_GAP, _GAP))
    y = (height - text_height) // 2
    _write(head, (left, y), "QUERY", 13, _SOFT)
    for number, line in enumerate(lines):
        _write(head, (left, y + _LINE + 6 + 26 * number), line, 20, _INK)
    return head


def _draw_tile(sheet: Image.Image, picture: Image.Image | None, corner: tuple[int, int]) -> None:
    """A framed square with the whole picture in its middle, or a note that there is none."""
    x, y = corner
    frame = (x - 1, y - 1, x + _TILE, y + _TILE)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle(frame, fill=_PALE if picture is None else "white", outline=_RULE)
    if picture is None:
        font = ImageFont.load_default(16)
        draw.text((x + _TILE / 2, y + _TILE / 2), "no picture", _SOFT, font, anchor="mm")
        return
    scale = _TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (_TILE - size[0]) // 2, y + (_TILE - size[1]) // 2))


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
