"""A run that was stopped goes on with the same losses, to the bit, and to the same weights."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from indexing.errors import TrainingError
from indexing.models.clip import ClipEncoder
from training.clip import train_clip
from training.config import TrainConfig
from training.data import Pairs
from training.images import LockedImages, OpenImages
from training.progress import Epoch, Step
from training.worth import learn_masks


class KilledError(Exception):
    """As a process is that nobody asked."""


def weights(encoder: ClipEncoder) -> dict[str, Tensor]:
    state = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    if encoder.pruning is not None:
        state["delta"] = encoder.pruning.delta.detach().clone()
    return state


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pruning": {"preset": "calibrated", "word_dropout": 0.3, "chunk": 3},
    "masks": {"preset": "calibrated", "mask_steps": 5},
    "siglip": {"loss": "siglip", "keep_similarities": 1.0},
    "a memory": {"loss": "isogclr", "views": 2},
}


@pytest.fixture
def train(tiny: Any, tmp_path: Path) -> Callable[..., tuple[list[Epoch], list[Step], ClipEncoder]]:
    """Trains a fresh model for 4 epochs of 3 steps; `at` does something after some steps."""

    def train(
        name: str, at: dict[int, Callable[[], None]] | None = None, **settings: Any
    ) -> tuple[list[Epoch], list[Step], ClipEncoder]:
        encoder, steps = tiny.encoder(), list[Step]()
        images = tiny.images(encoder, (4,))
        settings = {"learning_rate": 3e-3, "checkpoint_minutes": 1e9, **settings}
        config = TrainConfig(epochs=4, batch_size=8, **settings)

        def on_step(step: Step) -> None:
            steps.append(step)
            (at or {}).get(step.number, lambda: None)()

        history = train_clip(
            *(encoder, tiny.pairs, images, tiny.pairs, images, tmp_path / name, config),
            on_step=on_step,
        )
        return history, steps, encoder

    return train


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_itself_and_goes_on_within_the_epoch(
    train: Callable[..., Any], settings: dict[str, Any], number: signal.Signals
) -> None:
    history, steps, encoder = train("whole", **settings)
    handler = signal.getsignal(number)

    def ask() -> None:
        signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        train("stopped", {5: ask}, **settings)
    assert signal.getsignal(number) is handler
    with pytest.raises(KeyboardInterrupt):
        train("stopped", {9: ask}, **settings)  # the last of an epoch
    resumed, later, other = train("stopped", **settings)
    assert later == steps[9:]
    assert resumed == history
    assert_equal(weights(other), weights(encoder))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize(("minutes", "lost"), [(0, 0), (1e9, 1)])
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(
    train: Callable[..., Any], settings: dict[str, Any], minutes: float, lost: int
) -> None:
    """Saved after every step: nothing is lost; at the ends of epochs only: one step is."""
    history, steps, encoder = train("whole", **settings)

    def die() -> None:
        raise KilledError

    with pytest.raises(KilledError):
        train("killed", {8: die}, checkpoint_minutes=minutes, **settings)
    # A step is reported before it is saved, so the eighth is lost in any case.
    resumed, later, other = train("killed", **settings)
    assert later == steps[7 - lost :]
    assert resumed == history
    assert_equal(weights(other), weights(encoder))


def test_masks_are_learned_once(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run that has been saved never again; in one that has not from the start."""
    calls: list[int] = []

    def noting(*arguments: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KilledError
        learn_masks(*arguments, **options)

    history, steps, encoder = train("whole", **SETTINGS["masks"])
    monkeypatch.setattr("training.clip.learn_masks", noting)
    with pytest.raises(KilledError):
        train("killed", **SETTINGS["masks"])
    with pytest.raises(KeyboardInterrupt):
        train("killed", {2: lambda: signal.raise_signal(signal.SIGINT)}, **SETTINGS["masks"])
    assert len(calls) == 2
    resumed, later, other = train("killed", **SETTINGS["masks"])
    assert len(calls) == 2
    assert later == steps[2:]
    assert resumed == history
    assert_equal(weights(other), weights(encoder))
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        train("killed", **{**SETTINGS["masks"], "mask_steps": 6})


def test_a_run_killed_between_the_files_of_an_epoch_goes_on(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    history, _, encoder = train("whole")

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("training.checkpoint.Run.save_models", killed)
        with pytest.raises(KilledError):
            train("killed", checkpoint_minutes=0)
    resumed, _, other = train("killed")
    assert resumed == history
    assert_equal(weights(other), weights(encoder))


def test_a_run_that_is_over_is_not_run_again(train: Callable[..., Any]) -> None:
    history, _, _ = train("out")
    again, steps, _ = train("out")
    assert again == history
    assert steps == []


def test_what_changes_only_how_a_run_is_computed_may_change(train: Callable[..., Any]) -> None:
    history, steps, _ = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", {4: lambda: signal.raise_signal(signal.SIGINT)})
    resumed, later, _ = train("stopped", chunk=3, checkpoint_activations=True)
    assert [step.loss for step in later] == pytest.approx([s.loss for s in steps[4:]], abs=1e-3)
    assert resumed[0] == history[0]


@pytest.mark.parametrize("lock_image", [True, False])
def test_pictures_from_files_are_the_same_after_a_stop(
    tmp_path: Path, encoder: ClipEncoder, pairs: Pairs, lock_image: bool
) -> None:
    start = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    config = TrainConfig(
        epochs=3,
        batch_size=12,
        learning_rate=1e-2,
        lock_image=lock_image,
        word_dropout=0.3,
        keep_similarities=1.0,
    )

    def train(out: Path, stop: int | None = None) -> list[Epoch]:
        encoder.model.load_state_dict(start)
        encoder.model.requires_grad_(True)
        images = (
            LockedImages(encoder, pairs.pictures, out / "features")
            if lock_image
            else OpenImages(encoder, pairs.pictures, augment=0, remember=True)
        )

        def on_step(step: Step) -> None:
            if step.number == stop:
                signal.raise_signal(signal.SIGINT)

        return train_clip(encoder, pairs, images, pairs, images, out, config, on_step=on_step)

    undisturbed = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stop=3)
    assert train(tmp_path / "stopped") == undisturbed
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1]


def test_other_settings_do_not_go_on_with_a_run(train: Callable[..., Any]) -> None:
    train("out")
    for settings in ({"seed": 1}, {"preset": "standard"}, {"loss": "siglip"}, {"floor": 0.1}):
        with pytest.raises(TrainingError, match="holds a run with other settings"):
            train("out", **settings)


def test_another_start_or_catalog_does_not_go_on_with_a_run(
    train: Callable[..., Any], tiny: Any
) -> None:
    train("out")
    for changed, value in ((tiny.pairs.titles, "blue"), (tiny.pairs.products, "other")):
        before, changed[0] = changed[0], value
        with pytest.raises(TrainingError, match="on another catalog or from another model"):
            train("out")
        changed[0] = before
    make = tiny.encoder

    def other() -> ClipEncoder:
        encoder: ClipEncoder = make()
        with torch.no_grad():
            encoder.model.text_projection += 1
        return encoder

    tiny.encoder = other
    with pytest.raises(TrainingError, match="on another catalog or from another model"):
        train("out")


@pytest.mark.parametrize("damage", [b"garbage", b"", None])
def test_a_damaged_run_is_an_error_that_says_what_to_remove(
    train: Callable[..., Any], tmp_path: Path, damage: bytes | None
) -> None:
    train("out")
    file = tmp_path / "out" / "last" / "run.pt"
    file.write_bytes(file.read_bytes()[:-1000] if damage is None else damage)
    with pytest.raises(TrainingError, match=r"remove .*run\.pt to start over"):
        train("out")


def test_a_second_signal_stops_at_once_and_an_echo_of_the_first_does_not(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun passes on a Ctrl-C that the terminal has sent to its processes already."""
    clock = {"now": 100.0}
    monkeypatch.setattr("training.interrupts.time.monotonic", lambda: clock["now"])
    seen = []

    def twice(wait: float) -> Callable[[], None]:
        def ask() -> None:
            signal.raise_signal(signal.SIGINT)
            clock["now"] += wait
            signal.raise_signal(signal.SIGINT)
            seen.append(wait)

        return ask

    for wait in (0.5, 5.0):
        with pytest.raises(KeyboardInterrupt):
            train(f"waited {wait}", {2: twice(wait)})
    assert seen == [0.5]
