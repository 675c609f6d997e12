"""The loop learns, locks what is to be locked, stops on NaN, and writes what it says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from indexing.catalog import read_catalog
from indexing.errors import TrainingError
from indexing.models import load_encoder
from indexing.models.clip import ClipEncoder
from indexing.models.token_pruning import TokenPruning, paper_pruning
from training.clip import train_clip
from training.config import TrainConfig
from training.data import Pairs
from training.images import LockedImages, OpenImages
from training.log import TrainingLog
from training.loop import epoch_batches
from training.losses import LOSSES, make_loss
from training.progress import Epoch, Step
from training.run import epoch_line, run_clip
from training.texts import PlainTexts, Texts

TRANSFORMER = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
COLOURS = ["red", "green", "blue", "yellow", "black", "white", "cyan", "magenta"]
Run = Callable[..., list[Epoch]]


@pytest.fixture
def run(encoder: ClipEncoder, pairs: Pairs) -> Run:
    """Trains `encoder` on `pairs` from its first weights."""
    start = {key: value.clone() for key, value in encoder.model.state_dict().items()}

    def train(out: Path | None, **settings: Any) -> list[Epoch]:
        encoder.model.load_state_dict(start)
        encoder.model.requires_grad_(True)
        config = TrainConfig.model_validate(
            {"epochs": 4, "batch_size": 12, "learning_rate": 1e-2, **settings}
        )
        images = (
            LockedImages(encoder, pairs.pictures, pairs.pictures[0].path.parent / "features")
            if config.lock_image and pairs.pictures[0].path
            else OpenImages(encoder, pairs.pictures, augment=config.seed, remember=True)
        )
        return train_clip(encoder, pairs, images, pairs, images, out, config)

    return train


@pytest.mark.parametrize("encoder", [TRANSFORMER], indirect=True)
@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_the_colours_and_writes_a_model_that_opens(
    tmp_path: Path, run: Run, encoder: ClipEncoder, loss: str
) -> None:
    rate = {"siglip": 3e-3, "isogclr": 3e-3, "mv-dhel": 6e-3}.get(loss, 1e-3)
    history = run(tmp_path / "out", epochs=40, learning_rate=rate, loss=loss, views=2)
    assert history[0].recall_1 is not None
    assert history[0].recall_1 < 0.5
    assert max(epoch.recall_1 or 0 for epoch in history) == 1.0
    model = load_encoder(str(tmp_path / "out"), device="cpu")
    shown = model.embed_images([Image.new("RGB", (32, 32), colour) for colour in COLOURS])
    assert (model.embed_texts(COLOURS) @ shown.T).argmax(1).tolist() == list(range(len(COLOURS)))
    assert isinstance(model, ClipEncoder)
    if make_loss(loss, 1).fixed_scale:
        scale = make_loss(loss, 1).initial_scale
        assert model.model.logit_scale.exp().item() == pytest.approx(scale)
    if loss != "siglip":
        assert model.model.logit_bias is None
    else:
        assert -10.5 < model.model.logit_bias.item() < -9.5
        assert model.model.logit_bias.item() != -10


def test_siglip_starts_a_scale_and_a_bias_and_keeps_those_that_are_there(tiny: Any) -> None:
    config = TrainConfig(epochs=1, batch_size=24, learning_rate=1e-9, loss="siglip")
    encoder = tiny.encoder()
    images = tiny.images(encoder)
    train_clip(encoder, tiny.pairs, images, None, None, None, config)
    assert encoder.model.logit_scale.exp().item() == pytest.approx(10)
    assert encoder.model.logit_bias.item() == pytest.approx(-10)
    with torch.no_grad():
        encoder.model.logit_scale.fill_(1.5)
        encoder.model.logit_bias.fill_(-3)
    train_clip(encoder, tiny.pairs, images, None, None, None, config)
    assert encoder.model.logit_scale.item() == pytest.approx(1.5)
    assert encoder.model.logit_bias.item() == pytest.approx(-3)


def test_a_locked_tower_does_not_change_and_an_open_one_does(
    tmp_path: Path, run: Run, encoder: ClipEncoder
) -> None:
    trunk = encoder.model.visual.trunk
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    run(tmp_path / "locked", lock_image=True, epochs=1)
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())
    run(tmp_path / "open", lock_image=False, epochs=1)
    after = trunk.state_dict()
    assert not torch.equal(after["conv_stem.weight"], before["conv_stem.weight"])
    # The statistics of batch normalisation stay those of the pretraining.
    assert torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])


def test_nothing_is_written_and_nothing_validated_where_neither_is_asked_for(
    tmp_path: Path, tiny: Any
) -> None:
    before = sorted(tmp_path.iterdir())
    encoder = tiny.encoder()
    config = TrainConfig(epochs=2, batch_size=8)
    history = train_clip(encoder, tiny.pairs, tiny.images(encoder), None, None, None, config)
    assert [(epoch.recall_1, epoch.recall) for epoch in history] == [(None, None)] * 2
    assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "tokenizer.json"]


def test_steps_say_what_happened(tiny: Any) -> None:
    encoder, steps = tiny.encoder(), list[Step]()
    images = tiny.images(encoder, (4, 5))
    config = TrainConfig(epochs=2, batch_size=8, preset="calibrated", warm_up=0.5, floor=0.25)
    history = train_clip(
        *(encoder, tiny.pairs, images, None, None, None, config), on_step=steps.append
    )
    assert [(step.number, step.total) for step in steps] == [(n + 1, 6) for n in range(6)]
    assert sum(step.pairs for step in steps) == 2 * 22
    peak = steps[2].rates
    assert peak["matrices"] == peak["vectors"] == 1e-4
    shares = [step.rates["thresholds"] / peak["thresholds"] for step in steps]
    assert shares == pytest.approx([0.5, 0.75, 1, 1, 0.25 + 0.75 * 0.75, 0.25 + 0.75 * 0.25])
    for epoch, part in zip(history, (steps[:3], steps[3:]), strict=True):
        assert epoch.loss == pytest.approx(np.mean([step.loss for step in part]))
        assert epoch.penalty == pytest.approx(np.mean([step.penalty for step in part]))
        assert epoch.kept == pytest.approx(np.mean([step.kept for step in part]))
        assert 0 < part[-1].penalty < part[-1].loss
        assert epoch.logit_scale == part[-1].logit_scale
    assert history[-1].thresholds is not None
    first, second = history[-1].thresholds
    assert first == encoder.pruning.thresholds()[0].item()
    assert second is None


def test_thresholds_are_trained_without_decay_at_their_own_rate(tiny: Any) -> None:
    """Adam's first step is the rate itself, whatever the gradient; decay would add to it."""
    encoder = tiny.encoder()
    config = TrainConfig(
        epochs=1,
        batch_size=24,
        preset="calibrated",
        weight_decay=0.5,
        warm_up=0,
        threshold_learning_rate=0.03,
    )
    train_clip(encoder, tiny.pairs, tiny.images(encoder), None, None, None, config)
    # The penalty raises the threshold of the layer that prunes; the other has none.
    assert encoder.pruning.delta.tolist() == pytest.approx([0.03, 0.0], rel=1e-4)


def test_thresholds_are_kept_within_their_bounds(tiny: Any) -> None:
    encoder = tiny.encoder()
    encoder.pruning = TokenPruning(paper_pruning(2).model_copy(update={"temperature": (0.1, 0.1)}))
    config = TrainConfig(epochs=1, batch_size=8, warm_up=0, threshold_learning_rate=2.0)
    train_clip(encoder, tiny.pairs, tiny.images(encoder), None, None, None, config)
    delta = encoder.pruning.delta[0].item()
    assert delta == pytest.approx(0.95 - 0.005) or delta == pytest.approx(-0.005)


def test_a_text_side_of_ones_own_is_what_is_trained(tiny: Any) -> None:
    encoder, seen = tiny.encoder(), list[tuple[int, int]]()

    class Own(PlainTexts):
        def __call__(self, ids: Tensor, rows: NDArray[np.int64], epoch: int) -> Texts:
            seen.extend((epoch, row) for row in rows)
            texts = super().__call__(ids, rows, epoch)
            price = texts.embeddings.square().mean()
            return Texts(texts.embeddings, price, kept=0.25)

    config = TrainConfig(epochs=2, batch_size=8)
    own = Own(encoder.model)
    images = tiny.images(encoder)
    history = train_clip(encoder, tiny.pairs, images, None, None, None, config, texts=own)
    assert sorted(seen) == [(epoch, row) for epoch in range(2) for row in range(24)]
    assert [epoch.kept for epoch in history] == [0.25, 0.25]
    assert history[1].penalty < history[0].penalty


@pytest.mark.parametrize("lock_image", [True, False])
def test_pictures_none_of_which_can_be_read_are_an_error(
    tmp_path: Path, run: Run, pairs: Pairs, lock_image: bool
) -> None:
    for picture in pairs.pictures:
        assert picture.path is not None
        picture.path.unlink()
    with pytest.raises(TrainingError, match="none of the pictures can be read"):
        run(tmp_path / "out", lock_image=lock_image)


def test_a_batch_without_readable_pictures_is_passed_over(tiny: Any) -> None:
    encoder, steps = tiny.encoder(), list[Step]()
    order = np.random.default_rng([0, 0]).permutation(24)
    images = tiny.images(encoder, tuple(order[8:16]))
    config = TrainConfig(epochs=1, batch_size=8)
    train_clip(*(encoder, tiny.pairs, images, None, None, None, config), on_step=steps.append)
    assert [step.number for step in steps] == [1, 3]


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(
    tmp_path: Path, tiny: Any, chunk: int | None
) -> None:
    """The last checkpoint stays, and the message names epoch, batch and products."""
    encoder, states = tiny.encoder(), list[dict[str, Tensor]]()
    images = tiny.images(encoder)
    second = np.split(np.random.default_rng([0, 1]).permutation(24), 3)[1]  # epoch 2, batch 2
    bad = sorted(second[:2])

    class Spoiling(PlainTexts):
        def __call__(self, ids: Tensor, rows: NDArray[np.int64], epoch: int) -> Texts:
            texts = super().__call__(ids, rows, epoch)
            wrong = torch.from_numpy(np.isin(rows, bad) & (epoch == 1))[:, None]
            return Texts(texts.embeddings.masked_fill(wrong, torch.nan), texts.penalty, None)

    def on_step(step: Step) -> None:
        states.append({k: v.clone() for k, v in encoder.model.state_dict().items()})

    config = TrainConfig(epochs=3, batch_size=8, learning_rate=1e-3, chunk=chunk)
    with pytest.raises(TrainingError) as caught:
        train_clip(
            *(encoder, tiny.pairs, images, tiny.pairs, images, tmp_path / "out", config),
            texts=Spoiling(encoder.model),
            on_step=on_step,
        )
    message = str(caught.value)
    assert message.startswith("the loss is nan at epoch 2, batch 2 (products: p")
    for row in bad:
        assert f"p{row} {tiny.pairs.titles[row]!r}" in message
    assert "more" not in message
    assert len(states) == 4
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, states[-1][name])
    last = load_encoder(str(tmp_path / "out" / "last"), device="cpu")
    assert isinstance(last, ClipEncoder)
    for name, value in last.model.state_dict().items():
        assert torch.equal(value, states[2][name])


def test_a_gradient_that_is_not_finite_stops_likewise(tiny: Any) -> None:
    encoder = tiny.encoder()
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}

    class Root(PlainTexts):
        def __call__(self, ids: Tensor, rows: NDArray[np.int64], epoch: int) -> Texts:
            texts = super().__call__(ids, rows, epoch)
            return Texts(texts.embeddings, (texts.embeddings * 0).sum().sqrt(), None)

    config = TrainConfig(epochs=1, batch_size=8)
    message = r"the gradient is nan at epoch 1, batch 1 \(products: p.* and 5 more\)"
    with pytest.raises(TrainingError, match=message):
        train_clip(
            *(encoder, tiny.pairs, tiny.images(encoder), None, None, None, config),
            texts=Root(encoder.model),
        )
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_catalog_smaller_than_a_batch_is_an_error(tmp_path: Path, run: Run) -> None:
    with pytest.raises(TrainingError, match="24 pairs do not fill a batch of 25"):
        run(tmp_path / "out", batch_size=25)


def test_the_best_epoch_is_kept_and_the_last_one_beside_it(tmp_path: Path, tiny: Any) -> None:
    encoder, found = tiny.encoder(), list[str]()
    images, out = tiny.images(encoder), tmp_path / "out"
    config = TrainConfig(epochs=5, batch_size=8, learning_rate=1e-2, preset="calibrated")
    history = train_clip(
        *(encoder, tiny.pairs, images, tiny.pairs, images, out, config),
        on_epoch=lambda epoch: found.append(encoder.fingerprint),
    )
    recalls = [epoch.recall for epoch in history]
    best = max(range(5), key=lambda number: (recalls[number], number))
    assert best < 4  # else the two would be the same
    assert load_encoder(str(out), device="cpu").fingerprint == found[best]
    assert load_encoder(str(out / "last"), device="cpu").fingerprint == found[-1]
    card = (out / "last" / "README.md").read_text()
    for epoch in history:
        assert epoch.kept is not None
        assert f"| {epoch.number + 1} | {epoch.loss:.4f} |" in card
        assert f"| {epoch.kept:.4f} |" in card
        assert epoch.thresholds is not None
        assert f"| {epoch.number + 1} | {epoch.thresholds[0]:.4g} | - |" in card
    assert "recipe `calibrated`" in card
    assert encoder.pruning is not None
    blocks = [json.loads(part.split("```")[0]) for part in card.split("```json")[1:]]
    assert blocks == [encoder.pruning.config.model_dump(mode="json"), config.model_dump()]


def test_a_run_from_a_catalog_file(tmp_path: Path, encoder: ClipEncoder, pairs: Pairs) -> None:
    rows = "".join(
        f"{number},{title} number {number},{picture.location}\n"
        for number, (title, picture) in enumerate(zip(pairs.titles, pairs.pictures, strict=True))
    )
    catalog = tmp_path / "pictures" / "catalog.csv"
    catalog.write_text("id,title,image\n" + rows)
    config = TrainConfig(epochs=2, batch_size=4, validation_share=0.3, lock_image=True)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "README.md").write_text("mine")
    with pytest.raises(TrainingError, match="holds other files"):
        run_clip(encoder, [read_catalog(catalog)], tmp_path / "foreign", config)
    with pytest.raises(TrainingError, match="cannot be written: Not a directory"):
        run_clip(encoder, [read_catalog(catalog)], catalog, config)
    history = run_clip(encoder, [read_catalog(catalog)], tmp_path / "out", config)
    assert [epoch.number for epoch in history] == [0, 1]
    lines = (tmp_path / "out" / "log" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [epoch.loss for epoch in history]


def test_the_log_has_every_figure_and_forgets_what_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files of one second are read in the order of their names, where 10 comes before 9.
    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def step(number: int, loss: float) -> Step:
        return Step(number, 4, loss, 0.5, 0.75, 12, 14.0, 3.0, {"thresholds": 1e-3})

    def epoch(number: int, loss: float) -> Epoch:
        return Epoch(number, loss, 0.1, 0.2, 0.3, 14.0, 0.5, 0.75, (0.25, None))

    with TrainingLog(tmp_path) as log:
        for number in (1, 2, 3):
            log.step(step(number, float(number)))
        log.epoch(epoch(0, 2.0))
        log.epoch(epoch(1, 9.0))
    with TrainingLog(tmp_path) as log:
        log.step(step(3, 30.0))
        log.epoch(epoch(1, 10.0))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [2.0, 10.0]
    assert json.loads(lines[0])["thresholds"] == [0.25, None]
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert shown["loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert shown["learning rate/thresholds"][0] == (1, pytest.approx(1e-3))
    assert shown["Title tokens kept"][0] == (1, 0.75)
    assert shown["penalty"][0] == (1, 0.5)
    assert shown["logit scale"][0] == (1, 14.0)
    assert shown["gradient norm"][0] == (1, 3.0)
    assert shown["epoch/threshold of layer 0"][0] == (0, 0.25)
    assert "epoch/threshold of layer 1" not in shown
    assert shown["epoch/recall_5"][0] == (0, pytest.approx(0.2))
    rate = shown["pairs per second"]
    assert [number for number, _ in rate] == [2]  # of the first of a run nothing is known
    assert rate[0][1] > 0


def test_the_line_of_an_epoch() -> None:
    plain = Epoch(0, 1.25, None, None, None, 14.0)
    assert epoch_line(plain) == "epoch   1  loss 1.2500"
    pruned = Epoch(9, 1.0, 0.5, 0.75, 1.0, 14.0, kept=0.256)
    assert epoch_line(pruned) == (
        "epoch  10  loss 1.0000  title -> picture R@1 0.500  R@5 0.750  R@10 1.000  "
        "Title tokens kept 25.6%"
    )


@pytest.mark.parametrize("views", [1, 2, 3])
def test_pictures_of_a_product_are_drawn_together(views: int) -> None:
    keys = np.random.default_rng(0).integers(0, 9, 40)
    config = TrainConfig(batch_size=40, views=views)
    orders = [epoch_batches(keys, config, epoch)[0] for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(40))
        runs = [len(list(group)) for _, group in itertools.groupby(keys[order].tolist())]
        count = np.bincount(keys)
        if views > 1:  # groups of one product may still meet by chance
            assert sum(-(-length // views) for length in runs) == sum(-(-count // views))
    assert not np.array_equal(orders[0], orders[1])
    again = epoch_batches(keys, config, 0)[0]
    np.testing.assert_array_equal(orders[0], again)
    one_each = epoch_batches(np.arange(40), config, 2)[0]
    np.testing.assert_array_equal(one_each, epoch_batches(keys, TrainConfig(batch_size=40), 2)[0])
