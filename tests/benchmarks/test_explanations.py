"""Deletion and insertion: worked out by hand, and on a tower whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.explanations import (
    GRID,
    ORDERS,
    Pair,
    area,
    areas,
    centre_first,
    cosines,
    hottest_first,
    measure,
    shown_cells,
)
from benchmarks.retrieval.task import Links, Side, Task
from indexing.catalog.product import ProductImage
from indexing.framing import Frame
from indexing.models.clip import ClipEncoder

WHOLE = Frame(0, 0, 1, 1)
RED, BLUE = (np.array(vector, np.float32) for vector in ([1, 0, 0], [0, 0, 1]))


class _Means(nn.Module):
    """The embedding is the mean colour, in cells of 8 x 8 pixels."""

    def forward_features(self, pixels: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 8)

    def forward_head(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(pixels))


class _Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = _Means(), nn.Identity()


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = _Visual()

    def encode_image(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.visual.trunk(pixels)
        return found


@pytest.fixture
def encoder() -> ClipEncoder:
    config = {
        "model_cfg": {"embed_dim": 3},
        "preprocess_cfg": {"size": 56, "resize_mode": "squash", "mean": [0] * 3, "std": [1] * 3},
    }
    return ClipEncoder("means", _Model(), None, config)  # type: ignore[arg-type]


def test_the_area_under_a_curve() -> None:
    assert area(np.array([1.0, 1.0, 0.0])) == pytest.approx(0.75)
    assert area(np.linspace(0, 1, 11)) == pytest.approx(0.5)


def test_cells_turn_one_after_another(encoder: ClipEncoder) -> None:
    """Red turns into blue: the cosine to red is that of the shares of both."""
    start, end = torch.zeros(2, 3, 56, 56)
    start[0], end[2] = 1, 1
    order = np.random.default_rng(0).permutation(GRID * GRID)
    found = cosines(encoder, RED, start, end, order)
    left = 1 - np.rint(np.linspace(0, GRID * GRID, 11)) / GRID**2
    np.testing.assert_allclose(found, left / np.hypot(left, 1 - left), atol=1e-6)


def test_orders() -> None:
    every = shown_cells(WHOLE)
    assert every.tolist() == list(range(GRID * GRID))
    cells = np.zeros((GRID, GRID), np.float32)
    cells[2, 3], cells[5, 1] = 2, 1
    assert hottest_first(cells, every)[:3].tolist() == [2 * GRID + 3, 5 * GRID + 1, 0]
    near = centre_first(WHOLE, every)
    assert near[0] == 3 * GRID + 3
    assert set(near[-4:].tolist()) == {0, GRID - 1, GRID * (GRID - 1), GRID * GRID - 1}


def test_padding_is_no_part_of_an_order() -> None:
    letterbox = Frame(2 / 7, 0, 3 / 7, 1)
    there = shown_cells(letterbox)
    assert sorted(set((there % GRID).tolist())) == [2, 3, 4]
    assert len(there) == 3 * GRID
    assert shown_cells(Frame(-1, 0, 3, 1)).tolist() == list(range(GRID * GRID))
    upper = centre_first(Frame(0, 0, 1, 3 / 7), shown_cells(Frame(0, 0, 1, 3 / 7)))
    assert upper[0] == GRID + 3


def test_a_map_that_knows_beats_chance(encoder: ClipEncoder, tmp_path: Path) -> None:
    picture = Image.new("RGB", (560, 560), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 160, 160))
    picture.save(tmp_path / "red.png")
    pair = Pair(RED, tmp_path / "red.png", 0)
    other = Pair(BLUE, tmp_path / "red.png", 1)
    heat, wrong, chance, centre = areas(encoder, pair, other, np.random.default_rng(0))
    assert heat[0] < min(wrong[0], chance[0], centre[0])
    assert heat[1] > max(wrong[1], chance[1], centre[1])


def test_differences_are_paired(encoder: ClipEncoder, tmp_path: Path) -> None:
    images = []
    for number, colour in enumerate([(255, 0, 0), (0, 255, 0), (255, 255, 0), (0, 255, 255)]):
        picture = Image.new("RGB", (112, 112), (0, 0, 90))
        picture.paste(colour, (8 + 16 * number, 16, 40 + 16 * number, 48))
        picture.save(tmp_path / f"{number}.png")
        images.append(ProductImage(location=f"{number}.png", path=tmp_path / f"{number}.png"))
    every = np.arange(4)
    side = Side([str(number) for number in range(4)], every, images)
    task = Task("toy", "toy", side, side, Links(every, every), np.ones(4, np.int64))
    seen: list[tuple[int, int]] = []
    rows = measure(task, encoder, 4, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [name for name, _, _ in rows] == [
        *ORDERS, *(f"heat better than {order}" for order in ORDERS[1:]),
    ]  # fmt: skip
    figures = {name: (deletion.mean, insertion.mean) for name, deletion, insertion in rows}
    for order in ORDERS[1:]:
        better = figures[f"heat better than {order}"]
        assert better[0] == pytest.approx(figures[order][0] - figures["heat"][0])
        assert better[1] == pytest.approx(figures["heat"][1] - figures[order][1])
