"""ALBEF on drawn products: whole arms on a handful of them, and where each starts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.pruning import albef_toy, toy
from benchmarks.pruning.albef_toy import run_arm
from benchmarks.pruning.toy_data import NOISE, VISUAL, draw_products
from indexing.errors import ModelError
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.albef.weights import load_albef
from training.albef.config import AlbefTraining

RECALLS = [f"{task} R@{k}" for task in ("picture", "title", "clean") for k in (1, 5, 10)]
CONFIG = AlbefTraining(
    epochs=2, batch_size=8, learning_rate=2e-3, warm_up=0.1, momentum=0.5, queue_size=16
)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The start after one step."""
    folder = tmp_path_factory.mktemp("albef") / "start"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(albef_toy, "PUBLIC", 8)
        patch.setattr(albef_toy, "START", CONFIG.model_copy(update={"epochs": 1, "batch_size": 16}))
        albef_toy.make_start(folder)
    return folder


@pytest.fixture
def start(first: Path, tmp_path: Path) -> Path:
    """The same in a folder of its own: arms write beside it."""
    (tmp_path / "start").symlink_to(first)
    return tmp_path / "start"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(albef_toy, "TRAIN", 16)
    monkeypatch.setattr(albef_toy, "TEST", 24)
    monkeypatch.setattr(albef_toy, "CONFIG", CONFIG)
    monkeypatch.setattr(albef_toy, "SECOND", CONFIG.model_copy(update={"epochs": 1}))


def weights(encoder: AlbefEncoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.model.state_dict().items()}


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, others[name]) for name, value in some.items())


# --- the start


def test_the_start_reads_every_word_of_every_title(start: Path) -> None:
    tokenizer = load_albef(start).tokenizer
    titles = draw_products(90, 100, views=1).titles
    titles += draw_products(60, 1, views=1, captions=True).titles
    ids = tokenizer(titles)
    words = [title.replace("-", " ").split() for title in titles]
    assert tokenizer.mask(ids).sum(1).tolist() == [len(title) + 2 for title in words]
    assert not ids.eq(tokenizer.vocab_file.read_text().split().index("[UNK]")).any()


# --- whole arms


@pytest.mark.parametrize("arm", ["standard", "random drop", "oracle"])
def test_arms_without_masks_give_recalls_alone(arm: str, start: Path) -> None:
    found = run_arm(arm, 1, 0.5, start)
    assert found.keys() == {"arm", "seed", *RECALLS}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("arm", ["cross", "paper all"])
def test_an_arm_gives_plain_values_that_its_seed_repeats(arm: str, start: Path) -> None:
    found = run_arm(arm, 1, 1.0, start)
    assert found == run_arm(arm, 1, 1.0, start)
    assert json.loads(json.dumps(found)) == found
    assert (found["arm"], found["seed"]) == (arm, 1)
    for task in ("picture", "title", "clean"):
        one, five, ten = (found[f"{task} R@{k}"] for k in (1, 5, 10))
        assert 0 <= one <= five <= ten <= 1
        assert ten > 0
    assert found.keys() == {"arm", "seed", *RECALLS, "kept", "share"}
    assert found["kept"].keys() == {"all", "visual", "noise", *VISUAL, *NOISE}
    shares = [found["share"], *found["kept"].values()]
    assert all(math.isfinite(share) and 0 <= share <= 1 for share in shares)
    assert run_arm(arm, 2, 1.0, start) != {**found, "seed": 2}


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What arms begin with; none of them learns anything but `temp`."""
    calls: list[SimpleNamespace] = []

    def note(
        arm: str, encoder: AlbefEncoder, pairs: Any, images: Any, config: Any, **more: Any
    ) -> None:
        [(_, shown)] = images.batches([np.arange(4)], 0)
        calls.append(
            SimpleNamespace(
                **{"arm": arm, "weights": weights(encoder), "titles": pairs.titles},
                **{"pixels": shown, "config": config, **more},
            )
        )
        with torch.no_grad():
            encoder.model.temp.fill_((1 + config.seed) / 8 / len(calls))

    monkeypatch.setattr(albef_toy, "train_albef_arm", note)
    return calls


def test_an_arm_learns_from_the_catalog_of_its_seed(
    start: Path, begun: list[SimpleNamespace]
) -> None:
    before = weights(load_albef(start))
    for seed in (0, 1):
        run_arm("random drop", seed, 0.7, start)
    one, other = begun
    assert one.titles != other.titles
    assert not torch.equal(one.pixels, other.pixels)
    assert same(one.weights, before)
    assert same(other.weights, before)
    assert [call.config for call in begun] == [
        CONFIG.model_copy(update={"seed": seed}) for seed in (0, 1)
    ]
    assert one.share == 0.7
    assert one.visual is toy.visible


def test_second_stages_go_on_from_the_standard_model_of_their_seed(
    start: Path, begun: list[SimpleNamespace]
) -> None:
    for seed in (0, 1):
        run_arm("standard", seed, 1.0, start)
    for arm in ("second standard", "second all"):
        run_arm(arm, 1, 0.25, start)
    (_, standard, *seconds) = begun
    assert [call.arm for call in seconds] == ["standard", "all"]
    for call in seconds:
        assert (
            call.weights["temp"] == 1 / 8
        )  # as the first stage of seed 1, the second run, left it
        assert same({**call.weights, "temp": standard.weights["temp"]}, standard.weights)
        assert call.titles == standard.titles  # the same catalog
        assert call.config == albef_toy.SECOND.model_copy(update={"seed": 1})
    # A second stage leaves the first as it was.
    saved = load_albef(start.parent / "standard-1")
    assert float(saved.model.temp.detach()) == 1 / 8
    assert {path.name for path in start.parent.iterdir()} == {"start", "standard-0", "standard-1"}


def test_without_a_first_stage_there_is_no_second(start: Path) -> None:
    with pytest.raises(ModelError, match="standard-3 does not exist"):
        run_arm("second cross", 3, 1.0, start)
