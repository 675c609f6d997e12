"""The three stages of CMA-CLIP, top to bottom (Liu et al., arXiv 2112.03562, section 3.4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from indexing.models.clip import ClipEncoder
from indexing.models.cma_clip.network import CmaNetwork
from training.attributes.checkpoint import StageEpoch, load_state, save_state
from training.attributes.config import AttributesConfig
from training.attributes.data import Examples
from training.attributes.stage import Progress, Side, StageRun, class_weights
from training.interrupts import Interrupts


class StepDone(NamedTuple):
    """What is known after a step; `number` counts those of all stages from 1."""

    number: int
    total: int
    loss: float


def train_attributes(
    encoder: ClipEncoder,
    network: CmaNetwork,
    train: Examples,
    validation: Examples,
    folder: Path,
    config: AttributesConfig,
    identity: str,
    *,
    patches: Path | None = None,
    on_pictures: Callable[[str], Progress | None] = lambda name: None,
    on_step: Callable[[StepDone], None] = lambda step: None,
    on_epoch: Callable[[StageEpoch], None] = lambda epoch: None,
) -> list[StageEpoch]:
    """Trains `network` and the towers of `encoder`; both hold the best epoch in the end.

    The best epoch of a stage, by accuracy on validation with picture and title, mean over
    attributes, is where the next one begins. `folder` keeps what it takes to go on after a stop:
    started again with the same settings and data, the run continues where it was saved (after
    each epoch, every `config.checkpoint_minutes`, on Ctrl-C and SIGTERM), with the same losses.

    Args:
        network: Takes `Inputs` and gives `Outputs`; its parts for the last stage are `tasks`.
        identity: Tells the start and the data from others.
        patches: Where those of a frozen picture tower are kept; by default in `folder`.
        on_pictures: Told what pictures go through a frozen tower; gives what shows how far.

    Raises:
        TrainingError: A loss is not finite, no picture can be read, or `folder` holds another
            run.
        KeyboardInterrupt: The run was asked to stop, and has been saved.
    """
    kept = folder / "patches" if patches is None else patches
    stages = config.stages(train.labels.shape[1])
    sides = Side.of(train, encoder), Side.of(validation, encoder)
    weights = class_weights(train.labels, [task.classes for task in network.tasks], config.balance)
    per_epoch = -(-len(train) // config.batch_size)
    total = per_epoch * sum(stage.epochs for stage in stages)
    state = load_state(folder, encoder, network, config, identity)
    saved_at = time.monotonic()
    with Interrupts() as interrupts:
        for number in range(state.stage, len(stages)):
            stage = stages[number]
            run = StageRun(encoder, network, stage, config, sides, weights, kept, on_pictures)
            state.enter(number, run.optimizer, encoder, network)
            done_before = per_epoch * sum(earlier.epochs for earlier in stages[:number])
            for epoch in range(state.epoch, stage.epochs):
                for step, loss in run.steps(number, epoch, state.step, per_epoch):
                    state.step = step + 1
                    state.losses.append(loss)
                    on_step(StepDone(done_before + epoch * per_epoch + state.step, total, loss))
                    due = time.monotonic() - saved_at >= 60 * config.checkpoint_minutes
                    if interrupts.wanted or due:
                        save_state(folder, state, encoder, network, config, identity)
                        saved_at = time.monotonic()
                    if interrupts.wanted:
                        raise KeyboardInterrupt
                on_epoch(state.close(stage, run.accuracy(), encoder, network))
                save_state(folder, state, encoder, network, config, identity)
                saved_at = time.monotonic()
            state.leave(encoder, network)
    return state.history
