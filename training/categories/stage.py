"""A stage of a run: steps in rounds, the best round kept, and going on after a stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexing.errors import TrainingError
from training.categories.checkpoint import Round, StageState, load_state, save_state
from training.interrupts import Interrupts
from training.optimizer import rate_factor

WARM_UP = 0.1  # of the steps of a stage; after that a cosine falls to 0

Rows = NDArray[np.int64]


class Plan(NamedTuple):
    """How long a stage is: `steps` in all, in `rounds` after each of which validation is looked
    at; and the seed of all that is random in it."""

    steps: int
    rounds: int
    seed: int


class StepDone(NamedTuple):
    """What is known after a step; `number` counts from 1."""

    stage: str
    number: int
    total: int
    loss: float


class Stage(Protocol):
    """What is trained, and how.

    Attributes:
        module: All whose weights count: in the end those of the best round hold.
        optimizer: Each of its groups has the peak of its learning rate as `peak`.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer

    def loss(self, step: int) -> Tensor:
        """The loss of a step, a scalar with gradient; steps count from 0."""

    def measure(self) -> tuple[float | None, dict[str, float]]:
        """On validation the score by which rounds are compared, None where the last is the
        best, and what else was measured."""


def run_stage(
    stage: Stage,
    plan: Plan,
    folder: Path | None,
    identity: str,
    *,
    on_step: Callable[[StepDone], None] = lambda step: None,
    on_round: Callable[[Round], None] = lambda done: None,
) -> list[Round]:
    """Trains a stage to its end.

    Args:
        folder: Where it is saved after each round. A run that was stopped takes up the round it
            was in, with the same losses; a stage that is done is not done again. None keeps
            nothing.
        identity: Tells start, data and settings from others.

    Raises:
        TrainingError: A loss is not finite, or `folder` holds another run.
        KeyboardInterrupt: The run was asked to stop.
    """
    file = None if folder is None else folder / f"{stage.name}.pt"
    state = StageState()
    if file is not None:
        state = load_state(file, stage.module, stage.optimizer, identity)
    with Interrupts() as interrupts:
        for number in range(len(state.history), plan.rounds):
            first, end = (plan.steps * edge // plan.rounds for edge in (number, number + 1))
            losses = []
            stage.module.train()
            for step in range(first, end):
                losses.append(_step(stage, plan, step))
                on_step(StepDone(stage.name, step + 1, plan.steps, losses[-1]))
                if interrupts.wanted:
                    raise KeyboardInterrupt
            stage.module.eval()
            with torch.inference_mode():
                score, measures = stage.measure()
            done = Round(stage.name, number, float(np.mean(losses)), score, measures)
            state.note(done, stage.module)
            if file is not None:
                save_state(file, state, stage.module, stage.optimizer, identity)
            on_round(done)
    if state.best is not None:
        stage.module.load_state_dict(state.best)
    stage.module.eval()
    return state.history


def _step(stage: Stage, plan: Plan, step: int) -> float:
    # Seeded by the step alone, so that a run that was stopped goes on the same.
    torch.manual_seed(int(np.random.SeedSequence([plan.seed, step]).generate_state(1)[0]))
    factor = rate_factor(step, plan.steps, WARM_UP, 0.0)
    for group in stage.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    loss = stage.loss(step)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} at step {step + 1} of {stage.name}: lower the learning rate"
        )
    stage.optimizer.zero_grad()
    torch.autograd.backward(loss)
    stage.optimizer.step()
    return value


def steps_of_epoch(count: int, batch_size: int) -> int:
    """How many whole batches there are; one smaller one where there is none."""
    return max(1, count // batch_size)


def batch(count: int, batch_size: int, seed: int, step: int) -> Rows:
    """The rows of a step's batch: each pass over the data has an order of its own, and leaves
    out a remainder that fills no batch."""
    per_pass = steps_of_epoch(count, batch_size)
    order = np.random.default_rng([seed, step // per_pass]).permutation(count)
    start = step % per_pass * batch_size
    rows: Rows = order[start : start + batch_size]
    return rows
