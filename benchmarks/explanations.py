"""Whether a heat map shows what makes a match: `python -m benchmarks.explanations --data DATA`.

Deletion and insertion (Petsiuk, Das and Saenko, "RISE", BMVC 2018): the cells of a product's
picture are blurred, hottest first, while the cosine to the query is watched, or a blurred picture
gets its cells back. The area under the cosine is low for a good map in deletion, high in
insertion. Each map is compared with the same cells in random order, and from the middle outward,
which is where shops put products.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import ImageFilter
from torch import Tensor
from torch.nn import functional

from benchmarks.datasets import fashion, grocery
from benchmarks.retrieval.task import Side, Task
from benchmarks.statistics import Interval, summaries
from indexing.cli import show_progress
from indexing.embed import Progress
from indexing.errors import BenchmarkError
from indexing.framing import Frame
from indexing.images import read_image
from indexing.models import Encoder, load_encoder
from indexing.saliency import picture_frame, saliency

GRID = 7  # cells of a side, over what the tower sees
STEPS = 10  # how many times cells are changed from one end to the other
SEED = 0
BLUR = 16  # the blur's radius is this part of the picture's longer side
ORDERS = ("heat", "heat of another query", "random", "centre")
_EDGE = 1e-6  # of what the tower sees: rounding

Vector = NDArray[np.float32]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """A query's unit vector [dim] and a picture of the product that it asks for."""

    query: Vector
    picture: Path
    product: int


def pairs_of(task: Task, encoder: Encoder, number: int) -> list[Pair]:
    """Up to `number` queries, drawn by SEED, each with a picture that is a right answer."""
    links = zip(task.judged.query, task.judged.row, task.right(), strict=True)
    answers: dict[int, int] = {}
    for query, row, right in links:
        if right:
            answers.setdefault(int(query), int(row))
    drawn = np.random.default_rng(SEED).permutation(sorted(answers))[:number].tolist()
    asked, offered = task.queries, task.gallery
    if asked.texts is not None:
        vectors = encoder.embed_texts([asked.texts[query] for query in drawn])
    else:
        pictures = [read_image(_path(asked, query)) for query in drawn]
        vectors = encoder.embed_images(pictures)
    return [
        Pair(vector, _path(offered, answers[query]), int(asked.products[query]))
        for query, vector in zip(drawn, vectors, strict=True)
    ]


def areas(encoder: Encoder, pair: Pair, other: Pair, rng: np.random.Generator) -> Floats:
    """Deletion and insertion of each order, float64 [len(ORDERS), 2]; `other` lends a query."""
    picture = read_image(pair.picture)
    frame = picture_frame(encoder, picture.size)
    there = shown_cells(frame)
    orders = [
        hottest_first(saliency(encoder, picture, pair.query).cells, there),
        hottest_first(saliency(encoder, picture, other.query).cells, there),
        rng.permutation(there),
        centre_first(frame, there),
    ]
    blur = picture.filter(ImageFilter.GaussianBlur(max(picture.size) / BLUR))
    sharp, blurred = (torch.from_numpy(encoder.preprocess(one)) for one in (picture, blur))
    return np.array(
        [
            [
                area(cosines(encoder, pair.query, start, end, order))
                for start, end in ((sharp, blurred), (blurred, sharp))
            ]
            for order in orders
        ]
    )


def cosines(encoder: Encoder, query: Vector, start: Tensor, end: Tensor, order: Ints) -> Floats:
    """Cosines to a query while cells of one picture turn into those of another, float64
    [STEPS + 1]; pictures are float32 [3, h, w], `order` numbers of cells, row by row."""
    counts = np.rint(np.linspace(0, len(order), STEPS + 1)).astype(int)
    turned = torch.zeros(len(counts), GRID * GRID)
    for row, count in enumerate(counts):
        turned[row, torch.from_numpy(order[:count])] = 1
    mask = functional.interpolate(
        turned.view(-1, 1, GRID, GRID), size=start.shape[1:], mode="nearest"
    )
    vectors = encoder.embed_pixels(torch.where(mask > 0, end, start).numpy())
    return (vectors @ query).astype(np.float64)


def area(curve: Floats) -> float:
    """Under a curve over 0..1 of evenly spaced values, by trapezoids."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def shown_cells(frame: Frame) -> Ints:
    """The cells that the picture reaches into: padding is left out of all orders, as nothing
    changes there."""
    low, high = np.arange(GRID) / GRID, np.arange(1, GRID + 1) / GRID
    across = (low < frame.x + frame.width - _EDGE) & (high > frame.x + _EDGE)
    down = (low < frame.y + frame.height - _EDGE) & (high > frame.y + _EDGE)
    return np.flatnonzero(down[:, np.newaxis] & across)


def hottest_first(cells: NDArray[np.float32], there: Ints) -> Ints:
    """The cells `there`, those with the most of a map first; equal ones as they come."""
    pooled = functional.adaptive_avg_pool2d(torch.from_numpy(cells)[None], GRID).numpy().ravel()
    return there[np.argsort(-pooled[there], kind="stable")]


def centre_first(frame: Frame, there: Ints) -> Ints:
    """The cells `there`, those nearest to the picture's middle first."""
    down = (there // GRID + 0.5) / GRID - (frame.y + frame.height / 2)
    across = (there % GRID + 0.5) / GRID - (frame.x + frame.width / 2)
    return there[np.argsort(down**2 + across**2, kind="stable")]


def measure(
    task: Task, encoder: Encoder, number: int, progress: Progress | None = None
) -> list[tuple[str, Interval, Interval]]:
    """A row an order with its deletion and insertion, then a row an order with how much better
    the heat is, paired: intervals from resampling products."""
    pairs = pairs_of(task, encoder, number)
    rng = np.random.default_rng(SEED)
    found = []
    for place, pair in enumerate(pairs):
        # Half the list away: neighbours in it may be of one product.
        found.append(areas(encoder, pair, pairs[(place + len(pairs) // 2) % len(pairs)], rng))
        if progress is not None:
            progress(place + 1, len(pairs))
    each = np.stack(found)  # [pairs, orders, 2]
    better = (each[:, 1:] - each[:, :1]) * np.array([1, -1])
    values = np.concatenate([each, better], axis=1)
    summed = summaries(
        values.reshape(len(pairs), -1), np.array([pair.product for pair in pairs], np.int64)
    )
    intervals = [summary.micro for summary in summed]
    names = [*ORDERS, *(f"heat better than {order}" for order in ORDERS[1:])]
    return list(zip(names, intervals[::2], intervals[1::2], strict=True))


def run(
    data: Annotated[Path, typer.Option(help="Folder with grocery/ and fashion/.")],
    model: Annotated[str, typer.Option(help="As for `shoplens index`.")] = "builtin",
    pairs: Annotated[int, typer.Option(min=2, help="Pairs a data set.")] = 100,
) -> None:
    """Deletion and insertion of heat maps, with 95% intervals.

    Example: python -m benchmarks.explanations --data DATA --pairs 100
    """
    encoder = load_encoder(model)
    for task in (grocery(data)[0], fashion(data)[0]):
        with show_progress() as progress:
            rows = measure(task, encoder, pairs, progress)
        typer.echo(f"{task.title}, {model}: deletion (low is good), insertion (high is good)")
        for name, deletion, insertion in rows:
            typer.echo(f"  {name:<26} {deletion}   {insertion}")


def _path(side: Side, row: int) -> Path:
    path = None if side.pictures is None else side.pictures[row].path
    if path is None:
        raise BenchmarkError(f"{side.ids[row]} has no picture file: unpack the data set anew")
    return path


if __name__ == "__main__":
    typer.run(run)
