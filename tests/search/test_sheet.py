"""Contact sheets, checked by the pixels that must be in them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageChops

from indexing.sheet import SheetCell, wrapped
from search.sheet import contact_sheet

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


def test_text_that_cannot_be_encoded() -> None:
    cells = [SheetCell(None, "caf\udce9 mug", "1\n2")]
    assert contact_sheet(None, "\udce9", cells).mode == "RGB"
    assert wrapped("caf\udce9", 15, 200, 1) == ["caf?"]
