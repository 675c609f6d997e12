"""Pictures with a title and a note in rows, as one picture to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from indexing.errors import QueryError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of what a sheet can be saved as
TILE = 200  # pixels, of a picture's side
GAP = 20  # pixels between tiles and round them
LINE = 20  # pixels from a line of text to the next
_TITLE_LINES = 2
INK, SOFT, PALE, RULE = "#222222", "#6b6b6b", "#f3f4f6", "#d9dbdf"


@dataclass(frozen=True)
class SheetCell:
    """A picture with its words; `note` is a short line below the title, such as a score."""

    picture: Image.Image | None
    title: str
    note: str
    frame: str | None = None  # colour of a thick frame that marks it
    instead: str = "no picture"  # what the tile says without a picture
    faded: bool = False  # whether the title is grey, too


def cell_grid(cells: Sequence[SheetCell], columns: int, tile: int = TILE) -> Image.Image:
    """Cells in rows on white, with tiles of `tile` x `tile` pixels, as an RGB picture."""
    rows, step = -(-len(cells) // columns), tile + 8 + (_TITLE_LINES + 1) * LINE + GAP
    width = GAP + min(columns, len(cells)) * (tile + GAP)
    grid = Image.new("RGB", (width, GAP + rows * step), "white")
    for index, cell in enumerate(cells):
        x, y = GAP + index % columns * (tile + GAP), GAP + index // columns * step
        draw_tile(grid, cell, (x, y), tile)
        y += tile + 8
        for line in wrapped(cell.title, 15, tile, _TITLE_LINES):
            write(grid, (x, y), line, 15, SOFT if cell.faded else INK)
            y += LINE
        write(grid, (x, y), cut(_printable(cell.note), 14, tile), 14, SOFT)
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


def check_target(path: Path, option: str) -> None:
    """Refuses, by a QueryError that names the option, a file that no sheet could be saved as."""
    if path.suffix.lower() not in SUFFIXES:
        raise QueryError(f"{option} {path}: the name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise QueryError(f"{option} {path}: the folder {path.parent} does not exist; make it first")
    try:
        if path.is_dir():
            raise QueryError(f"{option} {path}: this is a folder; give the name of a file")
    except OSError as error:  # such as a name that is too long
        raise QueryError(f"{option} {path}: {error.strerror}") from error


def save_sheet(sheet: Image.Image, path: Path, option: str) -> None:
    """Saves a picture; raises QueryError, with the option's name, where that fails."""
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:  # ValueError: larger than the format allows
        reason = getattr(error, "strerror", None) or error
        raise QueryError(f"{option} {path} cannot be written: {reason}") from error


def draw_tile(sheet: Image.Image, cell: SheetCell, corner: tuple[int, int], tile: int) -> None:
    """A framed square with the whole picture in its middle, or with words in its place."""
    (x, y), picture = corner, cell.picture
    draw = ImageDraw.Draw(sheet)
    if cell.frame is not None:
        draw.rectangle((x - 6, y - 6, x + tile + 5, y + tile + 5), outline=cell.frame, width=5)
    fill = PALE if picture is None else "white"
    draw.rectangle((x - 1, y - 1, x + tile, y + tile), fill=fill, outline=RULE)
    if picture is None:
        font = ImageFont.load_default(16)
        lines = wrapped(cell.instead, 16, tile - GAP, tile // LINE - 1)
        for number, line in enumerate(lines):
            middle = y + tile / 2 + (number - (len(lines) - 1) / 2) * LINE
            draw.text((x + tile / 2, middle), line, SOFT, font, anchor="mm")
        return
    scale = tile / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (tile - size[0]) // 2, y + (tile - size[1]) // 2))


def write(sheet: Image.Image, corner: tuple[int, int], text: str, size: int, colour: str) -> None:
    """One line of text, `size` pixels high, with its left upper corner there."""
    ImageDraw.Draw(sheet).text(corner, text, colour, ImageFont.load_default(size))


def wrapped(text: str, size: int, width: int, most: int) -> list[str]:
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
        lines.append(cut(" ".join(rest[:count]), size, width))
        rest = rest[count:]
    return lines


def cut(line: str, size: int, width: int) -> str:
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
