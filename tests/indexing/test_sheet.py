"""Grids of pictures and words, checked by the pixels that must be in them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFont

from indexing.sheet import SheetCell, cell_grid, cut, stack_sheets, wrapped

RED, GREEN, BLUE = (200, 0, 0), (0, 180, 0), (0, 0, 220)


def places(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """The box of all pixels of one colour."""
    mask = (np.asarray(sheet) == np.array(colour)).all(axis=2)
    return Image.fromarray(mask).getbbox()


def plain(colour: tuple[int, int, int], width: int = 50, height: int = 50) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def length(line: str) -> float:
    return ImageFont.load_default(15).getlength(line)


def test_a_long_title_is_wrapped_and_cut() -> None:
    title = "Acme Velora striped red mug 350 ml pack of 2 dishwasher safe gift boxed with lid"
    lines = wrapped(title, 15, 200, 2)
    assert len(lines) == 2
    assert all(length(line) <= 200 for line in lines)
    assert lines[1].endswith("…")
    assert title.startswith(" ".join(lines)[:-1])
    # One word more would not have fitted on the first line.
    assert length(lines[0] + " " + lines[1].split()[0]) > 200


def test_wrapping_loses_no_word_that_fits() -> None:
    assert wrapped("a red\n mug\t", 15, 200, 2) == ["a red mug"]
    assert " ".join(wrapped("one two three four five six seven", 15, 90, 9)) == (
        "one two three four five six seven"
    )
    assert wrapped("", 15, 200, 2) == []


def test_a_word_longer_than_a_line_is_cut() -> None:
    lines = wrapped("x" * 100_000 + " mug", 15, 200, 2)
    assert lines[0] == "x" * (len(lines[0]) - 1) + "…"
    assert length(lines[0]) <= 200 < length("x" + lines[0])
    assert lines[1] == "mug"


def test_notes_keep_their_spaces() -> None:
    assert cut("1.  0.912  7.22", 14, 200) == "1.  0.912  7.22"


def test_a_frame_goes_round_its_own_tile_only() -> None:
    cells = [SheetCell(plain(BLUE), "", ""), SheetCell(plain(RED), "", "", frame="#00b400")]
    grid = cell_grid(cells, columns=2, tile=100)
    assert places(grid, BLUE) == (20, 20, 120, 120)
    assert places(grid, RED) == (140, 20, 240, 120)
    assert places(grid, GREEN) == (134, 14, 246, 126)
    mask = (np.asarray(grid) == np.array(GREEN)).all(axis=2)
    assert mask.sum() == 112**2 - 102**2  # five pixels wide on each side
    assert grid.size == (20 + 2 * 120, 20 + 100 + 68 + 20)


def test_a_faded_title_is_paler_and_all_else_the_same() -> None:
    cells = [SheetCell(plain(BLUE), "a title", "a note", faded=faded) for faded in (False, True)]
    bold, faded = (cell_grid([cell], 1) for cell in cells)
    box = ImageChops.difference(bold, faded).getbbox()
    assert box is not None
    assert (box[1] >= 228, box[3] <= 248) == (True, True)  # the first line below the tile
    assert np.asarray(bold.crop(box)).min() == 0x22
    assert np.asarray(faded.crop(box)).min() == 0x6B


def test_a_grid_begins_a_new_row_after_its_columns() -> None:
    colours = [(10 * n, 0, 100) for n in range(5)]
    grid = cell_grid([SheetCell(plain(colour), "", "") for colour in colours], 2, tile=50)
    corners = [(places(grid, colour) or ())[:2] for colour in colours]
    assert corners == [(20, 20), (90, 20), (20, 158), (90, 158), (20, 296)]


def test_words_in_place_of_a_picture_stay_in_their_tile() -> None:
    blank = cell_grid([SheetCell(None, "", "", instead="")], 1, tile=150)
    boxes = []
    for words in ("mug", "a red mug for two people with a lid", "word " * 500, "x" * 500):
        grid = cell_grid([SheetCell(None, "", "", instead=words)], 1, tile=150)
        box = ImageChops.difference(grid, blank).getbbox()
        assert box is not None
        assert (box[0] >= 20, box[1] >= 20, box[2] <= 170, box[3] <= 170) == (True,) * 4
        boxes.append(box)
    heights = [bottom - top for _, top, _, bottom in boxes]
    assert heights[0] < 20 < heights[1] < heights[2]  # one line, some lines, a full tile
    assert all(abs((top + bottom) / 2 - 95) <= 4 for _, top, _, bottom in boxes)  # in the middle


def test_stack() -> None:
    stacked = stack_sheets([plain(RED, 30, 10), plain(GREEN, 50, 20), plain(BLUE, 10, 5)])
    assert stacked.size == (50, 35)
    assert places(stacked, RED) == (0, 0, 30, 10)
    assert places(stacked, GREEN) == (0, 10, 50, 30)
    assert places(stacked, BLUE) == (0, 30, 10, 35)
    assert stacked.getpixel((40, 5)) == (255, 255, 255)
    with pytest.raises(ValueError, match="no sheets"):
        stack_sheets([])
