"""The toy: what is measured, by hand; and whole arms on a handful of products."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.pruning import toy
from benchmarks.pruning.arms import train_arm
from benchmarks.pruning.toy import (
    DrawnImages,
    _augmented,
    _kept,
    as_pairs,
    kept_by_kind,
    measure,
    run_arm,
)
from benchmarks.pruning.toy_data import KIND_OF, NOISE, SIZE, VISUAL, ToyProducts
from indexing.models.clip import ClipEncoder, load_folder
from training.config import TrainConfig

# --- measures


def test_kept_by_kind_counts_words(keeping: Any) -> None:
    encoder = keeping(["red", "mug", "brand1", "vegan"], ["gold", "brand2", "striped", "series0"])
    titles = ["brand1 red mug vegan", "brand2 gold mug striped series0", "red"]
    found = kept_by_kind(_kept(encoder, titles))
    assert found == {
        "all": 6 / 10,
        "brand": 1 / 2,
        "claim": 1.0,
        "colour": 1.0,
        "material": 0.0,
        "name": 1.0,
        "noise": 2 / 4,
        "pattern": 0.0,
        "series": 0.0,
        "visual": 4 / 6,
    }


COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def plain(colour: Sequence[int]) -> NDArray[np.uint8]:
    return np.broadcast_to(np.array(colour, np.uint8), (SIZE, SIZE, 3))


class Hand:
    """Sees a picture as its mean colour, and reads titles out of a table."""

    pruning = None

    def __init__(self, table: Mapping[str, Sequence[float]]) -> None:
        self.table = {text: np.array(vector, np.float32) for text, vector in table.items()}
        self.model = SimpleNamespace(encode_image=lambda pixels: pixels.mean((2, 3)))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self.table[text] for text in texts])


RED, GREEN, BLUE = (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0)


@pytest.mark.parametrize(("oracle", "title"), [(False, 1 / 3), (True, 1.0)])
def test_measure_is_what_one_counts_by_hand(oracle: bool, title: float) -> None:
    shown = [[0, 1, 0], [1, 1, 1], [2, 0, 2]]  # the colours of each product's three views
    pictures = np.stack([np.stack([plain(COLOURS[c]) for c in views]) for views in shown])
    titles = ["brand1 red mug", "vegan green mug", "brand2 blue mug"]
    test = ToyProducts(pictures, titles, ["red", "green", "blue"])
    # With their noise all titles are read as red, without it as what they say.
    table = dict.fromkeys(titles, RED)
    table |= {"red mug": RED, "green mug": GREEN, "blue mug": BLUE}
    table |= {"red": RED, "green": BLUE, "blue": BLUE}
    found = measure(cast(ClipEncoder, Hand(table)), test, oracle=oracle)
    assert found.pop("picture R@1") == pytest.approx(4 / 6)
    assert found.pop("title R@1") == pytest.approx(title)
    assert found.pop("clean R@1") == pytest.approx(2 / 3)
    names = [f"{task} R@{k}" for task in ("picture", "title", "clean") for k in (5, 10)]
    assert found == dict.fromkeys(names, 1.0)


# --- pictures


class Mean(nn.Module):
    def encode_image(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))


def drawn_images(pictures: NDArray[np.uint8], seed: int) -> DrawnImages:
    return DrawnImages(cast(ClipEncoder, SimpleNamespace(model=Mean())), pictures, seed)


def test_augmented_pictures_are_mirrored_moved_and_lit() -> None:
    pixels = torch.full((400, 3, SIZE, SIZE), -0.5)
    pixels[:, :, 10, 4] = 0.5
    found = _augmented(pixels, np.random.default_rng(0))
    light = -found[:, 0, 0, 16] / 0.5  # no spot is moved there
    assert found.abs().max() <= 1
    # Each in a light of its own, the same all over the picture.
    lit = torch.where(found > 0, found / 0.5, -found / 0.5)
    torch.testing.assert_close(lit, light[:, None, None, None].expand_as(lit))
    assert abs(float(light.mean()) - 1) < 4 * 0.15 / 400**0.5
    assert abs(float(light.std()) - 0.15) < 0.03
    spots = [divmod(int(one), SIZE) for one in found[:, 0].flatten(1).argmax(1)]
    (row,) = {row for row, _ in spots}
    left, right = sorted({column for _, column in spots})
    shift = row - 10, left - 4
    assert max(map(abs, shift)) <= 2
    assert right == SIZE - 1 - 4 + shift[1]  # mirrored, and moved the same way
    assert 0.4 < sum(column == right for _, column in spots) / 400 < 0.6


def test_light_never_goes_beyond_white_and_black() -> None:
    pixels = torch.tensor([1.0, -1.0])[:, None, None, None].repeat(20, 3, SIZE, SIZE)
    found = _augmented(pixels, np.random.default_rng(0))
    assert (found.max(), found.min()) == (1, -1)


def test_pictures_come_by_row_and_change_with_the_epoch() -> None:
    pictures = np.stack([plain([20 * n, 100, 200]) for n in range(6)])
    batches = [np.array([4, 1]), np.array([0, 5, 2])]

    def seen(seed: int, epoch: int) -> Tensor:
        parts = list(drawn_images(pictures, seed).batches(batches, epoch))
        assert [rows.tolist() for rows, _ in parts] == [[4, 1], [0, 5, 2]]
        return torch.cat([pixels for _, pixels in parts])

    once = seen(0, 0)
    assert torch.equal(once, seen(0, 0))
    assert not torch.equal(once, seen(0, 1))
    assert not torch.equal(once, seen(1, 0))
    # Light stretches a colour and leaves its hue: red to green is as it was drawn.
    ratio = once[:, 0, 5, 5] / once[:, 1, 5, 5]
    drawn = [(20 * n / 127.5 - 1) / (100 / 127.5 - 1) for n in (4, 1, 0, 5, 2)]
    unclipped = once[:, 0, 5, 5].abs() < 1
    torch.testing.assert_close(ratio[unclipped], torch.tensor(drawn)[unclipped])
    assert unclipped.sum() >= 3


def test_pictures_of_one_title_are_no_negatives_of_each_other() -> None:
    pairs = as_pairs(["red mug", "blue mug", "red mug"])
    assert pairs.keys.tolist() == [0, 1, 0]
    assert len(set(pairs.products)) == 3
    assert len({picture.location for picture in pairs.pictures}) == 3


# --- whole arms


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "TRAIN", 32)
    monkeypatch.setattr(toy, "TEST", 24)
    config = TrainConfig(epochs=2, batch_size=16, learning_rate=2e-3)
    monkeypatch.setattr(toy, "CONFIG", config)
    monkeypatch.setattr(toy, "MASK_STEPS", 6)


RECALLS = [f"{task} R@{k}" for task in ("picture", "title", "clean") for k in (1, 5, 10)]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("arm", ["standard", "calibrated"])
def test_an_arm_gives_plain_values_that_its_seed_repeats(arm: str, start: Path) -> None:
    found = run_arm(arm, 1, 1.0, start)
    assert found == run_arm(arm, 1, 1.0, start)
    assert json.loads(json.dumps(found)) == found
    assert (found["arm"], found["seed"]) == (arm, 1)
    for task in ("picture", "title", "clean"):
        one, five, ten = (found[f"{task} R@{k}"] for k in (1, 5, 10))
        assert 0 <= one <= five <= ten <= 1
        assert ten > 0
    if arm == "standard":
        assert found.keys() == {"arm", "seed", *RECALLS}
        return
    assert found.keys() == {"arm", "seed", *RECALLS, "kept", "share"}
    assert found["kept"].keys() == {"all", "visual", "noise", *VISUAL, *NOISE}
    shares = [found["share"], *found["kept"].values()]
    assert all(math.isfinite(share) and 0 <= share <= 1 for share in shares)
    assert run_arm(arm, 2, 1.0, start) != {**found, "seed": 2}


@pytest.mark.usefixtures("small")
def test_an_arm_learns_from_the_pictures_of_its_seed(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_folder(start).model.visual.state_dict()
    calls: list[tuple[str, list[str], TrainConfig, float, int]] = []

    def note(
        arm: str, encoder: ClipEncoder, pairs: Any, images: Any, config: Any, **more: Any
    ) -> None:
        calls.append((arm, pairs.titles, config, more["share"], more["mask_steps"]))
        train_arm(arm, encoder, pairs, images, config, **more)
        after = encoder.model.visual.state_dict()
        assert all(value.isfinite().all() for value in after.values())
        assert any(not torch.equal(before[name], value) for name, value in after.items())
        assert more["visual"]("red")
        assert not more["visual"]("brand1")
        assert not more["visual"]("unheard")

    monkeypatch.setattr(toy, "train_arm", note)
    for seed in (0, 1):
        run_arm("fixed types", seed, 0.7, start)
    first, second = calls
    assert first[0] == second[0] == "fixed types"
    assert first[1] != second[1]  # another catalog
    assert {word for title in first[1] for word in title.split()} <= KIND_OF.keys()
    assert (first[2].seed, second[2].seed) == (0, 1)
    assert first[3:] == (0.7, 6)
