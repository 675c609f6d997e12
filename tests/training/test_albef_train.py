"""Training of ALBEF: it learns, goes on exactly where it was stopped, and writes what it says."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from indexing.errors import ModelError, TrainingError
from indexing.models import load_encoder
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.albef.reading import Reader
from indexing.models.token_pruning import TokenPruning
from training.albef.config import AlbefTraining
from training.albef.train import train_albef
from training.data import Pairs
from training.progress import Epoch, Step

Train = Callable[..., tuple[list[Epoch], list[Step], AlbefEncoder]]


class KilledError(Exception):
    """As a process is that nobody asked."""


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"preset": "standard", "queue_size": 13, "hardening": 0.5},
    "pruning": {"preset": "calibrated", "chunk": 3},
}


@pytest.fixture
def train(tiny_albef: Any, tmp_path: Path) -> Train:
    """Trains a fresh model for 3 epochs of 3 steps; `at` does something after some steps."""
    tiny_albef.dropout = 0.1

    def train(
        name: str, at: dict[int, Callable[[], None]] | None = None, **settings: Any
    ) -> tuple[list[Epoch], list[Step], AlbefEncoder]:
        encoder, steps = tiny_albef.encoder(), list[Step]()
        images = tiny_albef.images(encoder, (4,))
        settings = {"learning_rate": 3e-3, "checkpoint_minutes": 1e9, "momentum": 0.9, **settings}
        config = AlbefTraining(epochs=3, batch_size=8, **settings)

        def on_step(step: Step) -> None:
            steps.append(step)
            (at or {}).get(step.number, lambda: None)()

        history = train_albef(
            *(encoder, tiny_albef.pairs, images, tiny_albef.pairs, images),
            *(tmp_path / name, config),
            on_step=on_step,
        )
        return history, steps, encoder

    return train


def saved(folder: Path) -> dict[str, Tensor]:
    """All tensors that a run goes on from: weights, slow copy, queue, thresholds, optimizer."""
    state = torch.load(folder / "last" / "run.pt", weights_only=True)
    found = {
        f"{part} {name}": value
        for part in ("model", "loss", "thresholds")
        for name, value in state[part].items()
    }
    for number, moments in state["optimizer"]["state"].items():
        found |= {f"optimizer {number} {name}": value for name, value in moments.items()}
    return found


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_run_that_was_stopped_or_killed_goes_on_exactly(
    train: Train, settings: dict[str, Any], tmp_path: Path
) -> None:
    """At every kind of place: asked within an epoch and at its end, killed with all saved but
    the last step, and killed with an epoch's end as the last that was saved."""
    history, steps, encoder = train("whole", **settings)
    whole = saved(tmp_path / "whole")
    assert any(name.startswith("loss model.") for name in whole)
    assert (whole["loss pairs"] != -1).all()
    seen = 3 * (24 - 1)  # one picture cannot be read
    assert int(whole["loss place"]) == seen % len(whole["loss pairs"])

    def ask() -> None:
        signal.raise_signal(signal.SIGINT)

    def die() -> None:
        raise KilledError

    with pytest.raises(KeyboardInterrupt):
        train("stopped", {2: ask}, **settings)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", {6: ask}, **settings)
    with pytest.raises(KilledError):
        train("stopped", {8: die}, **settings)  # what was saved is the end of the second epoch
    resumed, later, other = train("stopped", **settings)
    assert later == steps[6:]
    assert resumed == history
    assert_equal(saved(tmp_path / "stopped"), whole)
    assert other.fingerprint == encoder.fingerprint

    with pytest.raises(KilledError):
        train("killed", {5: die}, checkpoint_minutes=0, **settings)
    resumed, later, other = train("killed", **settings)
    assert later == steps[4:]  # a step is reported before it is saved
    assert resumed == history
    assert_equal(saved(tmp_path / "killed"), whole)
    again, none, _ = train("killed", **settings)
    assert (again, none) == (history, [])


def test_other_settings_do_not_go_on_with_a_run(train: Train) -> None:
    """The chunk is one of them: hard negatives are looked for within it."""
    with pytest.raises(KeyboardInterrupt):
        train("out", {2: lambda: signal.raise_signal(signal.SIGINT)}, preset="calibrated")
    for name, value in (
        *(("chunk", 4), ("queue_size", 9), ("momentum", 0.5), ("distillation", 0.1)),
        *(("masked_share", 0.2), ("hardening", 0.1), ("prune", "cross"), ("key", "mean")),
        *(("preset", "standard"), ("seed", 1)),
    ):
        with pytest.raises(TrainingError, match="holds a run with other settings"):
            train("out", **{"preset": "calibrated", name: value})
    history, _, _ = train("out", preset="calibrated", checkpoint_activations=True)
    assert len(history) == 3


def test_a_finished_run_has_what_it_says(train: Train, tmp_path: Path) -> None:
    history, steps, encoder = train("out", preset="calibrated")
    assert encoder.pruning is not None
    prunes = [encoder.pruning.prunes(n) for n in range(6)]
    assert prunes == [True, False, False, False, True, False]
    assert (encoder.pruning.delta != 0).tolist() == prunes  # thresholds are trained
    for step in steps:
        assert step.parts.keys() == {"itc", "itm", "mlm"}
        assert step.loss == pytest.approx(sum(step.parts.values()) + step.penalty)
        assert 0 < step.penalty < 0.7
        assert step.kept is not None
        assert 0.1 < step.kept <= 1
    assert history[-1].thresholds is not None
    found = encoder.pruning.thresholds().tolist()
    assert history[-1].thresholds == (found[0], None, None, None, found[4], None)
    assert history[-1].logit_scale == pytest.approx(1 / encoder.model.temp.item())
    last = load_encoder(str(tmp_path / "out" / "last"), device="cpu")
    assert isinstance(last, AlbefEncoder)
    assert last.fingerprint == encoder.fingerprint
    assert last.pruning is not None
    assert torch.equal(last.pruning.delta, encoder.pruning.delta)
    card = (tmp_path / "out" / "last" / "README.md").read_text()
    assert card.startswith("# An ALBEF model fine-tuned by shoplens")
    blocks = [json.loads(part.split("```")[0]) for part in card.split("```json")[1:]]
    assert blocks[1]["queue_size"] == 65_536
    assert blocks[1]["momentum"] == 0.9


def test_it_learns_what_the_pictures_show(tiny_albef: Any) -> None:
    """Titles that name a colour: by contrast, by matching, and as hidden words."""
    colours = ["red", "green", "blue", "yellow", "black", "white", "cyan", "magenta"]
    keys = np.arange(24) % 8
    pairs = Pairs(
        *(tiny_albef.pairs.pictures, [colours[key] for key in keys], keys),
        tiny_albef.pairs.products,
    )
    encoder = tiny_albef.encoder()
    images, steps = tiny_albef.images(encoder), list[Step]()
    config = AlbefTraining(
        epochs=140, batch_size=24, learning_rate=7e-3, momentum=0.9, hardening=1.0,
        masked_share=0.3, preset="standard",
    )  # fmt: skip
    history = train_albef(*(encoder, pairs, images, None, None, None, config), on_step=steps.append)
    assert history[-1].loss < history[0].loss / 3
    # What is left where three pictures of a colour, and each in the queue, are as right.
    assert steps[-1].parts["itc"] == pytest.approx(np.log(6), abs=0.2)
    assert steps[0].parts["itm"] == pytest.approx(-(np.log(1 / 3) + 2 * np.log(2 / 3)) / 3, abs=0.1)
    assert steps[-1].parts["itm"] < 0.2

    model, tokenizer, pixels = encoder.model, encoder.tokenizer, tiny_albef.pixels[:8]
    scores = encoder.embed_texts(colours) @ encoder.embed_pixels(pixels.numpy()).T
    assert scores.argmax(1).tolist() == list(range(8))
    chances = np.stack([encoder.match_text(colour, pixels.numpy()) for colour in colours])
    assert chances.argmax(1).tolist() == list(range(8))
    ids = tokenizer(colours)
    hidden = ids.clone()
    hidden[:, 1] = tokenizer.mask_id
    with torch.no_grad():
        reader = Reader(model, None)
        texts = reader.read(hidden, tokenizer.mask(hidden))
        fused = reader.fuse(texts, model.visual_encoder(pixels))
        guessed = model.text_encoder.words(fused.x[:, 1]).argmax(-1)
    assert guessed.tolist() == ids[:, 1].tolist()


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(
    tiny_albef: Any, tmp_path: Path
) -> None:
    encoder, states = tiny_albef.encoder(), list[dict[str, Tensor]]()
    images = tiny_albef.images(encoder)
    second = np.split(np.random.default_rng([0, 1]).permutation(24), 3)[1]  # epoch 2, batch 2
    bad = sorted(second[:2].tolist())
    real = type(images).batches

    class Spoiling(type(images)):  # type: ignore[misc]
        def batches(self, batches: Any, epoch: int) -> Any:
            for rows, pixels in real(self, batches, epoch):
                wrong = torch.from_numpy(np.isin(rows, bad) & (epoch == 1))
                yield rows, pixels.masked_fill(wrong[:, None, None, None], torch.nan)

    def on_step(step: Step) -> None:
        states.append({k: v.clone() for k, v in encoder.model.state_dict().items()})

    config = AlbefTraining(epochs=3, batch_size=8, learning_rate=1e-3, preset="calibrated")
    with pytest.raises(TrainingError) as caught:
        train_albef(
            *(encoder, tiny_albef.pairs, Spoiling(encoder, tiny_albef.pixels)),
            *(tiny_albef.pairs, images, tmp_path / "out", config),
            on_step=on_step,
        )
    message = str(caught.value)
    assert message.startswith("the loss is nan at epoch 2, batch 2 (products: p")
    for row in bad:
        assert f"p{row} {tiny_albef.pairs.titles[row]!r}" in message
    assert "more" not in message
    assert len(states) == 4
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, states[-1][name])


def test_a_second_stage_goes_on_with_its_masks_or_without(
    train: Train, tiny_albef: Any, tmp_path: Path
) -> None:
    _, _, first = train("first", preset="calibrated", prune="cross")
    assert first.pruning is not None

    def second(name: str, **settings: Any) -> AlbefEncoder:
        encoder = load_encoder(str(tmp_path / "first" / "last"), device="cpu")
        assert isinstance(encoder, AlbefEncoder)
        config = AlbefTraining(epochs=1, batch_size=8, **settings)
        images = tiny_albef.images(encoder)
        train_albef(encoder, tiny_albef.pairs, images, None, None, tmp_path / name, config)
        return encoder

    goes_on = second("goes on", preset="calibrated")
    assert goes_on.pruning is not None
    assert goes_on.pruning.config == first.pruning.config
    assert not torch.equal(goes_on.pruning.delta, first.pruning.delta)
    assert (goes_on.pruning.delta - first.pruning.delta).abs().max() < 0.1
    whole = second("whole", preset="standard")
    assert whole.pruning is None
    opened = load_encoder(str(tmp_path / "whole"), device="cpu")
    assert isinstance(opened, AlbefEncoder)
    assert opened.pruning is None
    assert opened.fingerprint == whole.fingerprint
    with pytest.raises(TrainingError, match="prunes tokens already, and --preset paper"):
        second("paper", preset="paper")
    assert not (tmp_path / "paper").exists()


def test_a_checkpoint_without_a_matching_head_gets_one(tiny_albef: Any, tmp_path: Path) -> None:
    bare = tiny_albef.encoder()
    bare.has_match = False
    bare.save(tmp_path / "bare", card="")
    encoder = load_encoder(str(tmp_path / "bare"), device="cpu")
    assert isinstance(encoder, AlbefEncoder)
    pixels = tiny_albef.pixels[:3]
    with pytest.raises(ModelError, match="no matching head"):
        encoder.match_text("red", pixels.numpy())
    start = encoder.model.itm_head.weight.clone()
    config = AlbefTraining(epochs=2, batch_size=8, learning_rate=1e-3, preset="standard")

    def train(encoder: AlbefEncoder, stop: int) -> None:
        def on_step(step: Step) -> None:
            if step.number == stop:
                signal.raise_signal(signal.SIGINT)

        train_albef(
            *(encoder, tiny_albef.pairs, tiny_albef.images(encoder), None, None),
            *(tmp_path / "out", config),
            on_step=on_step,
        )

    with pytest.raises(KeyboardInterrupt):
        train(encoder, stop=2)
    other = load_encoder(str(tmp_path / "bare"), device="cpu")
    assert isinstance(other, AlbefEncoder)
    train(other, stop=0)  # goes on, though the start has no head still
    assert (other.model.itm_head.weight - start).abs().max() > 1e-4
    opened = load_encoder(str(tmp_path / "out"), device="cpu")
    assert isinstance(opened, AlbefEncoder)
    assert torch.equal(opened.model.itm_head.weight, other.model.itm_head.weight)
    assert opened.match_text("red", pixels.numpy()) == pytest.approx(
        other.match_text("red", pixels.numpy())
    )


def test_the_temperature_is_held_while_training(tiny_albef: Any) -> None:
    encoder = tiny_albef.encoder()
    config = AlbefTraining(epochs=2, batch_size=8, learning_rate=1.0, warm_up=0, preset="standard")
    scales = []
    train_albef(
        *(encoder, tiny_albef.pairs, tiny_albef.images(encoder), None, None, None, config),
        on_step=lambda step: scales.append(step.logit_scale),
    )
    assert all(2 <= scale <= 1000.001 for scale in scales)
    assert any(scale == pytest.approx(2) or scale == pytest.approx(1000) for scale in scales)


def test_a_queue_is_never_longer_than_there_are_pairs(train: Train, tmp_path: Path) -> None:
    train("out", preset="standard")
    assert len(saved(tmp_path / "out")["loss pairs"]) == 24
    train("short", preset="standard", queue_size=5)
    assert len(saved(tmp_path / "short")["loss pairs"]) == 5
    train("none", preset="standard", queue_size=0)
    assert len(saved(tmp_path / "none")["loss pairs"]) == 0


def test_a_batch_without_readable_pictures_is_passed_over(tiny_albef: Any) -> None:
    encoder, steps = tiny_albef.encoder(), list[Step]()
    order = np.random.default_rng([0, 0]).permutation(24)
    images = tiny_albef.images(encoder, tuple(order[8:16]))
    config = AlbefTraining(epochs=1, batch_size=8, preset="calibrated")
    train_albef(
        *(encoder, tiny_albef.pairs, images, None, None, None, config), on_step=steps.append
    )
    assert [step.number for step in steps] == [1, 3]
    images = tiny_albef.images(encoder, tuple(range(24)))
    for preset in ("calibrated", "standard"):
        encoder.pruning = None
        config = AlbefTraining(epochs=1, batch_size=8, preset=preset)
        with pytest.raises(TrainingError, match="none of the pictures can be read"):
            train_albef(encoder, tiny_albef.pairs, images, None, None, None, config)


def test_the_literal_recipe_prices_every_token(tiny_albef: Any) -> None:
    """Its thresholds lie below every probability of these few keys."""
    encoder, steps = tiny_albef.encoder(), list[Step]()
    config = AlbefTraining(epochs=1, batch_size=8, preset="paper", learning_rate=1e-5)
    images = tiny_albef.images(encoder)
    train_albef(
        *(encoder, tiny_albef.pairs, images, None, None, None, config), on_step=steps.append
    )
    assert isinstance(encoder.pruning, TokenPruning)
    assert encoder.pruning.config.temperature == (1e-4,) * 6
    assert steps[0].kept == 1
    assert steps[0].penalty == pytest.approx(0.1 * (3 + 1))  # all but the last of both kinds
