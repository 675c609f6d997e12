"""The worst queries of a task as one picture: what was asked, what came, what was right."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from benchmarks.retrieval.scored import SHOWN, WorstQuery
from indexing.durable import write_atomically
from indexing.errors import BenchmarkError, ImageError
from indexing.images import read_image
from indexing.messages import reason, shown
from indexing.sheet import SheetCell, cell_grid

WORST = 12  # queries on a sheet
ASKED, RIGHT = "#0b57d0", "#1a8f3c"  # frames of the query and of the right answer
_TILE = 165  # pixels; a row of SHOWN + 2 tiles stays below 1,400


@dataclass(frozen=True)
class _Item:
    id: str
    text: str = ""
    category: str = ""
    picture: str = ""


def draw_worst(worst: list[WorstQuery], folder: Path, path: Path) -> None:
    """Writes a PNG with a row a query: the query, its first answers, and its right answer.

    The query has a frame of colour ASKED, the right answer RIGHT, wherever it stands; its
    rank is written below it. At most WORST rows. Texts and pictures are those that
    `queries.parquet` and `gallery.parquet` of `folder` name; a picture that cannot be read
    becomes a tile that says so. Raises BenchmarkError where one of these tables cannot be
    read, and OSError where the PNG cannot be written.
    """
    worst = worst[:WORST]
    queries = _items(folder / "queries.parquet", {entry.query for entry in worst})
    wanted = {answer for entry in worst for answer in (*entry.answers, entry.right)}
    gallery = _items(folder / "gallery.parquet", wanted)
    cells = []
    for entry in worst:
        cells.append(_cell(queries.get(entry.query, _Item(entry.query)), "query", ASKED))
        for number in range(SHOWN):
            if number >= len(entry.answers):
                cells.append(SheetCell(None, "", "", instead="no answer"))
                continue
            answer = entry.answers[number]
            frame = RIGHT if answer == entry.right else None
            cells.append(_cell(gallery.get(answer, _Item(answer)), f"answer {number + 1}", frame))
        rank = f"rank {entry.rank:,}" if entry.rank else "not found"
        cells.append(_cell(gallery.get(entry.right, _Item(entry.right)), f"right: {rank}", RIGHT))
    sheet = cell_grid(cells, SHOWN + 2, _TILE)
    write_atomically(path, lambda file: sheet.save(file, format="PNG"))


def _items(path: Path, ids: set[str]) -> dict[str, _Item]:
    columns = ["id", "text", "category", "picture"]
    try:
        table = pq.read_table(path, columns=columns, filters=[("id", "in", sorted(ids))])
    except (OSError, ValueError) as error:  # ValueError: not Parquet, or without these columns
        raise BenchmarkError(
            f"{shown(path)} cannot be read: {reason(error)}; run the benchmark again"
        ) from error
    return {row["id"]: _Item(**{key: row[key] or "" for key in row}) for row in table.to_pylist()}


def _cell(item: _Item, note: str, frame: str | None) -> SheetCell:
    picture: Image.Image | None = None
    if not item.picture:
        # A text is a thing to look at in itself, in the tile.
        words = item.text or "no picture"
        return SheetCell(None, f"{item.id} {item.category}", note, frame, words)
    with suppress(ImageError):
        picture = read_image(Path(item.picture), at_least=_TILE)
    return SheetCell(picture, f"{item.id} {item.text or item.category}", note, frame)
