"""The sheet of the worst queries, checked by the frames and pictures in its cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor

from benchmarks.retrieval.scored import SHOWN, WorstQuery
from benchmarks.retrieval.worst import ASKED, RIGHT, WORST, draw_worst
from indexing.errors import BenchmarkError

TILE, GAP, ROW = 165, 20, 165 + 8 + 60 + 20  # pixels: a picture, between pictures, a whole row
COLOURS = {f"g{n}": (20 * n, 5, 200) for n in range(10)}
PALE = ImageColor.getrgb("#f3f4f6")  # of a tile without a picture
FRAMES = {ImageColor.getrgb(ASKED): "asked", ImageColor.getrgb(RIGHT): "right"}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task's folder: queries q0 (red picture), q1 (text), q2 (a picture that is gone), and a
    gallery of ten plain pictures, of which the one of g9 is damaged."""
    Image.new("RGB", (50, 50), "red").save(tmp_path / "q0.png")
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "g9.png").write_bytes(b"no picture at all")
    queries = [("q0", None, "q0.png"), ("q1", "a red mug", None), ("q2", None, "gone.png")]
    write(tmp_path / "queries.parquet", tmp_path, queries)
    write(tmp_path / "gallery.parquet", tmp_path, [(g, f"thing {g}", f"{g}.png") for g in COLOURS])
    return tmp_path


def write(path: Path, folder: Path, rows: list[tuple[str, str | None, str | None]]) -> None:
    table = {
        "id": [name for name, _, _ in rows],
        "product": pa.array(range(len(rows)), pa.int64()),
        "category": pa.array([None for _ in rows], pa.string()),
        "text": pa.array([text for _, text, _ in rows], pa.string()),
        "picture": pa.array([p and str(folder / p) for _, _, p in rows], pa.string()),
    }
    pq.write_table(pa.table(table), path)


def drawn(task: Path, worst: list[WorstQuery]) -> NDArray[np.uint8]:
    draw_worst(worst, task, task / "worst.png")
    return np.asarray(Image.open(task / "worst.png").convert("RGB"))


def frames(sheet: NDArray[np.uint8], row: int = 0) -> list[str | None]:
    """What frame each tile of a row has, by the pixel left of its middle."""
    y = GAP + row * ROW + TILE // 2
    xs = [GAP + column * (TILE + GAP) - 4 for column in range(SHOWN + 2)]
    return [FRAMES.get(tuple(int(v) for v in sheet[y, x])) for x in xs]


def middles(sheet: NDArray[np.uint8], row: int = 0) -> list[tuple[int, ...]]:
    """The colour of each tile of a row, a little inside its upper left corner."""
    y = GAP + row * ROW + 5
    xs = [GAP + column * (TILE + GAP) + 5 for column in range(SHOWN + 2)]
    return [tuple(int(v) for v in sheet[y, x]) for x in xs]


def test_query_answers_and_the_right_one_stand_in_a_row(task: Path) -> None:
    answers = ["g1", "g2", "g3", "g4", "g5"]
    worst = [WorstQuery(query="q0", rank=870, right="g7", answers=answers)]
    sheet = drawn(task, worst)
    assert middles(sheet) == [(255, 0, 0), *(COLOURS[g] for g in [*answers, "g7"])]
    assert frames(sheet) == ["asked", *[None] * 5, "right"]
    assert sheet.shape == (GAP + ROW, GAP + 7 * (TILE + GAP), 3)
    assert sheet.shape[1] <= 1400


@pytest.mark.parametrize("place", range(SHOWN))
def test_a_right_answer_among_the_first_is_framed_there_too(task: Path, place: int) -> None:
    answers = ["g1", "g2", "g3", "g4", "g5"]
    worst = [
        WorstQuery(query="q0", rank=700, right="g8", answers=answers),
        WorstQuery(query="q0", rank=place + 1, right=answers[place], answers=answers),
    ]
    sheet = drawn(task, worst)
    assert "right" not in frames(sheet, 0)[:-1]
    expected: list[str | None] = ["asked", None, None, None, None, None, "right"]
    expected[1 + place] = "right"
    assert frames(sheet, 1) == expected


def test_the_rank_is_written_below_the_right_answer(task: Path) -> None:
    answers = ["g1", "g2", "g3", "g4", "g5"]
    sheets = [
        drawn(task, [WorstQuery(query="q0", rank=rank, right="g7", answers=answers)])
        for rank in (870, 0, 870)
    ]
    last = GAP + 6 * (TILE + GAP)
    assert (sheets[0] == sheets[2]).all()
    rows, columns = (sheets[0] != sheets[1]).any(axis=2).nonzero()
    assert rows.min() >= GAP + TILE + 8
    assert columns.min() >= last
    below = sheets[1][GAP + TILE + 8 :, last:]
    assert below.min() < 128  # "not found" is written


def test_what_has_no_picture_gets_words_and_stops_nothing(task: Path) -> None:
    worst = [
        WorstQuery(query="q1", rank=9, right="g9", answers=["g1", "g9", "nowhere"]),
        WorstQuery(query="q2", rank=0, right="g2", answers=[]),
        WorstQuery(query="unknown", rank=0, right="g2", answers=[]),
    ]
    sheet = drawn(task, worst)
    assert middles(sheet, 0) == [PALE, COLOURS["g1"], PALE, PALE, PALE, PALE, PALE]
    assert frames(sheet, 0) == ["asked", None, "right", None, None, None, "right"]
    assert middles(sheet, 1) == [PALE, *[PALE] * 5, COLOURS["g2"]]
    words = [
        sheet[GAP + row * ROW : GAP + row * ROW + TILE, GAP : GAP + TILE].copy() for row in range(3)
    ]
    assert (words[0] != words[1]).any()  # "a red mug", and "no picture"
    assert (words[1] == words[2]).all()
    assert all(tile.min() < 128 for tile in words)


def test_at_most_so_many_rows_the_first_ones(task: Path) -> None:
    worst = [
        WorstQuery(query="q0", rank=n + 9, right=f"g{n % 9}", answers=["g1"]) for n in range(15)
    ]
    sheet = drawn(task, worst)
    assert sheet.shape[0] == GAP + WORST * ROW
    assert [middles(sheet, row)[-1] for row in range(WORST)] == [
        COLOURS[f"g{n % 9}"] for n in range(WORST)
    ]


def test_the_same_bytes_again(task: Path) -> None:
    worst = [WorstQuery(query="q0", rank=3, right="g3", answers=["g1", "g2", "g3"])]
    draw_worst(worst, task, task / "one.png")
    draw_worst(worst, task, task / "two.png")
    assert (task / "one.png").read_bytes() == (task / "two.png").read_bytes()


@pytest.mark.parametrize("damage", ["gone", "no parquet", "no columns"])
def test_tables_that_cannot_be_read(task: Path, damage: str) -> None:
    path = task / "gallery.parquet"
    path.unlink()
    if damage == "no parquet":
        path.write_bytes(b"PAR2")
    elif damage == "no columns":
        pq.write_table(pa.table({"other": [1]}), path)
    with pytest.raises(BenchmarkError, match=r"gallery\.parquet cannot be read") as caught:
        drawn(task, [WorstQuery(query="q0", rank=3, right="g3", answers=["g1"])])
    assert "\n" not in str(caught.value)
