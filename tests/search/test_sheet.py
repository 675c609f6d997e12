"""Contact sheets, checked by the pixels that must be in them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFont

from search.sheet import SheetCell, _cut, _wrapped, cell_grid, contact_sheet, stack_sheets

RED, GREEN, BLUE = (200, 0, 0), (0, 180, 0), (0, 0, 220)


def places(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """The box of all pixels of one colour."""
    mask = (np.asarray(sheet) == np.array(colour)).all(axis=2)
    return Image.fromarray(mask).getbbox()


def plain(colour: tuple[int, int, int], width: int = 50, height: int = 50) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_query_above_answers_in_rows() -> None:
    colours = [(10 * n, 0, 100) for n in range(7)]
    cells = [SheetCell(plain(colour), f"product {n}", "") for n, colour in enumerate(colours)]
    sheet = contact_sheet(plain(RED), "a red thing", cells, columns=5)
    query = places(sheet, RED)
    assert query == (20, 20, 220, 220)
    boxes = [places(sheet, colour) for colour in colours]
    corners = [box[:2] for box in boxes if box is not None]
    top, step = 260, 200 + 68 + 20  # below the band; a tile, its three lines, a gap
    assert corners == [
        *((20 + 220 * column, top) for column in range(5)),
        *((20 + 220 * column, top + step) for column in range(2)),
    ]
    assert all(box is not None and box[2] - box[0] == box[3] - box[1] == 200 for box in boxes)
    assert sheet.size == (20 + 5 * 220, top + 2 * step)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 50), (20, 50, 220, 150)),
        ((10, 40), (95, 0, 145, 200)),
        ((1000, 1000), (20, 0, 220, 200)),
        ((1, 10_000), (119, 0, 120, 200)),
    ],
)
def test_a_picture_keeps_its_proportions(
    size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    sheet = contact_sheet(None, "", [SheetCell(plain(GREEN, *size), "", "")])
    head = contact_sheet(None, "", [SheetCell(plain(GREEN), "", "")])
    top = (places(head, GREEN) or (0, 0))[1]
    left, upper, right, lower = expected
    assert places(sheet, GREEN) == (left, top + upper, right, top + lower)


def test_words_and_a_missing_picture_leave_ink() -> None:
    """Each text changes pixels in its own place and nowhere else."""
    picture = plain(BLUE)
    bare = contact_sheet(picture, "", [SheetCell(picture, "", ""), SheetCell(picture, "", "")])

    def changed(sheet: Image.Image) -> tuple[int, int, int, int]:
        box = ImageChops.difference(sheet, bare).getbbox()
        assert box is not None
        return box

    cells = [SheetCell(picture, "", ""), SheetCell(picture, "a title", "")]
    left, top, right, bottom = changed(contact_sheet(picture, "", cells))
    assert (left >= 240, top >= 460, right <= 440, bottom <= 490) == (True,) * 4
    cells = [SheetCell(picture, "", "1.  0.912"), SheetCell(picture, "", "")]
    left, top, right, bottom = changed(contact_sheet(picture, "", cells))
    assert (left >= 20, top >= 460, right <= 220, bottom <= 490) == (True,) * 4
    cells = [SheetCell(picture, "", ""), SheetCell(None, "", "")]
    sheet = contact_sheet(picture, "", cells)
    assert changed(sheet) == (240, 260, 440, 460)
    tile = np.asarray(sheet.crop((240, 260, 440, 460)).convert("L"))
    assert tile.min() < 150 < 230 < tile[0].min()  # the words in the middle, none at the edge
    left, top, right, bottom = changed(contact_sheet(picture, "words asked for", cells[:1] * 2))
    assert (left >= 240, bottom <= 240) == (True, True)


def test_without_answers_and_without_anything() -> None:
    sheet = contact_sheet(None, "nothing like it", [])
    assert sheet.height < 220
    assert (
        np.asarray(sheet.crop((0, sheet.height - 50, 200, sheet.height)).convert("L")).min() < 150
    )
    assert contact_sheet(None, "", []).mode == "RGB"


def test_a_query_picture_without_words_and_columns_below_one() -> None:
    sheet = contact_sheet(plain(RED), "", [SheetCell(plain(BLUE), "", "")] * 3, columns=0)
    assert places(sheet, BLUE) == (20, 260, 220, 260 + 2 * 288 + 200)


def length(line: str) -> float:
    return ImageFont.load_default(15).getlength(line)


def test_a_long_title_is_wrapped_and_cut() -> None:
    title = "Acme Velora striped red mug 350 ml pack of 2 dishwasher safe gift boxed with lid"
    lines = _wrapped(title, 15, 200, 2)
    assert len(lines) == 2
    assert all(length(line) <= 200 for line in lines)
    assert lines[1].endswith("…")
    assert title.startswith(" ".join(lines)[:-1])
    # One word more would not have fitted on the first line.
    assert length(lines[0] + " " + lines[1].split()[0]) > 200


def test_wrapping_loses_no_word_that_fits() -> None:
    assert _wrapped("a red\n mug\t", 15, 200, 2) == ["a red mug"]
    assert " ".join(_wrapped("one two three four five six seven", 15, 90, 9)) == (
        "one two three four five six seven"
    )
    assert _wrapped("", 15, 200, 2) == []


def test_a_word_longer_than_a_line_is_cut() -> None:
    lines = _wrapped("x" * 100_000 + " mug", 15, 200, 2)
    assert lines[0] == "x" * (len(lines[0]) - 1) + "…"
    assert length(lines[0]) <= 200 < length("x" + lines[0])
    assert lines[1] == "mug"


def test_notes_keep_their_spaces() -> None:
    assert _cut("1.  0.912  7.22", 14, 200) == "1.  0.912  7.22"


def test_text_that_cannot_be_encoded() -> None:
    cells = [SheetCell(None, "caf\udce9 mug", "1\n2")]
    assert contact_sheet(None, "\udce9", cells).mode == "RGB"
    assert _wrapped("caf\udce9", 15, 200, 1) == ["caf?"]


def test_a_frame_goes_round_its_own_tile_only() -> None:
    cells = [SheetCell(plain(BLUE), "", ""), SheetCell(plain(RED), "", "", frame="#00b400")]
    grid = cell_grid(cells, columns=2, tile=100)
    assert places(grid, BLUE) == (20, 20, 120, 120)
    assert places(grid, RED) == (140, 20, 240, 120)
    assert places(grid, GREEN) == (134, 14, 246, 126)
    mask = (np.asarray(grid) == np.array(GREEN)).all(axis=2)
    assert mask.sum() == 112**2 - 102**2  # five pixels wide on each side
    assert grid.size == (20 + 2 * 120, 20 + 100 + 68 + 20)


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
