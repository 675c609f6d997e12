"""One of the processes of test_distributed.py: trains its share, and writes what came of it.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python one_rank.py FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import Pixels, Tiny, TinyAlbef
from torch import Tensor

import training.albef.step
import training.albef.train
import training.setup
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.clip import ClipEncoder
from training.albef.config import AlbefTraining
from training.albef.momentum import Momentum
from training.albef.train import train_albef
from training.clip import train_clip
from training.config import TrainConfig
from training.distributed import Ranks, joined
from training.optimizer import make_optimizer
from training.progress import Step

# Every setting in which what one process does alone must be what several do together.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "pruning": {"preset": "calibrated", "word_dropout": 0.3, "chunk": 2},
    "masks": {"preset": "calibrated", "mask_steps": 6},
    "siglip": {"loss": "siglip", "keep_similarities": 1.0},
    "teacher": {"loss": "cwcl", "views": 2},
    "memory": {"loss": "isogclr"},
    "unreadable": {"preset": "calibrated"},
}
# So it is with ALBEF but for negatives for matching, which each process looks for in its own
# share: all but the last are without them.
ALBEF_CASES: dict[str, dict[str, Any]] = {
    "albef": {"preset": "standard", "masked_share": 0.4, "queue_size": 10},
    "albef pruning": {"preset": "calibrated", "masked_share": 0.4, "chunk": 2},
    "albef unreadable": {"preset": "calibrated"},
    "albef negatives": {"preset": "calibrated", "chunk": 3},
}


class Watched(Pixels):
    """Calls `at` with the number of each batch before it is handed out."""

    at: Callable[[int], None]

    def batches(self, batches: Sequence[Any], epoch: int) -> Iterator[tuple[Any, Tensor]]:
        for number, batch in enumerate(super().batches(batches, epoch)):
            self.at(number)
            yield batch


def smooth_optimizer(*arguments: Any) -> torch.optim.AdamW:
    """Adam makes a whole step out of a gradient that is nothing but rounding; with a large
    epsilon a step is as exact as its gradient."""
    optimizer = make_optimizer(*arguments)
    for group in optimizer.param_groups:
        group["eps"] = 0.01
    return optimizer


def train(
    tiny: Tiny, case: str, out: Path | None, at: Callable[[int], None] | None = None
) -> tuple[list[float], ClipEncoder]:
    """One epoch of 3 steps of 7 pairs: the losses as the first process tells them."""
    encoder, losses = tiny.encoder(), list[float]()
    images: Pixels = tiny.images(encoder)
    if case == "unreadable":  # all of the first process's share of the second batch
        images.unreadable = tuple(range(0, 24, 3)) + tuple(epoch_rows(tiny)[7:11])
    if at is not None:
        images = Watched(encoder, images.pixels, images.unreadable)
        images.at = at
    config = TrainConfig(epochs=1, batch_size=7, learning_rate=1e-3, warm_up=0, **CASES[case])

    def on_step(step: Step) -> None:
        losses.append(step.loss)

    training.setup.make_optimizer = smooth_optimizer
    try:
        train_clip(
            *(encoder, tiny.pairs, images, tiny.pairs, tiny.images(encoder), out, config),
            on_step=on_step,
        )
    finally:
        training.setup.make_optimizer = make_optimizer
    return losses, encoder


def train_albef_case(
    tiny: TinyAlbef, case: str, out: Path | None
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """As `train`: the losses of each step, and the weights with slow copy and queue."""
    encoder, steps, made = tiny.encoder(), list[dict[str, float]](), list[Momentum]()
    images = tiny.images(encoder)
    if case == "albef unreadable":
        images.unreadable = tuple(range(0, 24, 3)) + tuple(epoch_rows(tiny)[7:11])
    config = AlbefTraining(
        epochs=1, batch_size=7, learning_rate=1e-3, warm_up=0, momentum=0.9, **ALBEF_CASES[case]
    )

    def noted(*arguments: Any) -> Momentum:
        made.append(Momentum(*arguments))
        return made[-1]

    def none(scores: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)

    def on_step(step: Step) -> None:
        steps.append({"loss": step.loss, "penalty": step.penalty, **step.parts})

    negatives = training.albef.step.hard_negatives
    training.albef.train.make_optimizer = smooth_optimizer
    training.albef.train.Momentum = noted
    if case != "albef negatives":
        training.albef.step.hard_negatives = none
    try:
        train_albef(
            *(encoder, tiny.pairs, images, tiny.pairs, tiny.images(encoder), out, config),
            on_step=on_step,
        )
    finally:
        training.albef.train.make_optimizer = make_optimizer
        training.albef.train.Momentum = Momentum
        training.albef.step.hard_negatives = negatives
    [momentum] = made
    slow = {f"momentum {name}": value for name, value in momentum.state_dict().items()}
    return steps, {**state(encoder), **slow}


def epoch_rows(tiny: Tiny | TinyAlbef) -> list[int]:
    return np.random.default_rng([0, 0]).permutation(len(tiny.pairs)).tolist()


def state(encoder: ClipEncoder | AlbefEncoder) -> dict[str, Tensor]:
    found = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    if encoder.pruning is not None:
        found["delta"] = encoder.pruning.delta.detach().clone()
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    own = folder / f"rank{rank}"
    own.mkdir()
    tiny = Tiny(own)
    with joined("cpu"):
        for case in CASES:
            losses, encoder = train(tiny, case, folder / case)
            torch.save(state(encoder), own / f"{case}.pt")
            (own / f"{case}.json").write_text(json.dumps(losses))

        for case in ALBEF_CASES:
            steps, found = train_albef_case(TinyAlbef(own), case, folder / case)
            torch.save(found, own / f"{case}.pt")
            (own / f"{case}.json").write_text(json.dumps(steps))

        given = torch.nn.Parameter(torch.arange(3.0) + rank)
        Ranks("cpu").give_out([given])
        (own / "given.json").write_text(json.dumps(given.tolist()))

        def ask(number: int) -> None:  # of one process only, which is not the one that writes
            if number == 1 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        stopped = False
        try:
            train(tiny, "pruning", folder / "stopped", ask)
        except KeyboardInterrupt:
            stopped = True
        losses, encoder = train(tiny, "pruning", folder / "stopped")
        torch.save(state(encoder), own / "stopped.pt")
        (own / "stopped.json").write_text(json.dumps([stopped, losses]))

        def fail(number: int) -> None:
            if number == 1 and rank == 1:
                raise OSError("disk gone")

        train(tiny, "plain", None, fail)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
