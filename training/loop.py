"""The training loop, whatever is trained: reads top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from indexing.errors import TrainingError
from indexing.messages import printable
from training.config import RunConfig
from training.data import Pairs
from training.distributed import Ranks
from training.encoders import TrainedEncoder
from training.gradients import Outcome, Rows
from training.images import ImageSide
from training.interrupts import Interrupts
from training.optimizer import set_rates
from training.progress import Epoch, Progress, Step
from training.setup import Setup
from training.validation import validate

_NAMED = 3  # pairs of a bad batch that a message names


class Method(Protocol):
    """How a kind of model learns from a batch."""

    def __call__(
        self, rows: Rows, pictures: Tensor, counts: Sequence[int], *, epoch: int, step: int
    ) -> Outcome:
        """Leaves the gradients of a batch in `.grad`, unless its loss is not finite.

        Args:
            rows, pictures: this process's share, as an ImageSide gives it.
            counts: how many pairs each process has, in rank order; at least one in all.
            epoch, step: from 0; steps count over all epochs.
        """

    def train_mode(self) -> None:
        """Makes the model ready for an epoch."""

    def clamp(self) -> None:
        """Puts what must stay within bounds back there after a step."""

    def logit_scale(self) -> float:
        """What cosines are multiplied by."""


def run_epochs(
    encoder: TrainedEncoder,
    setup: Setup,
    method: Method,
    pairs: Pairs,
    images: ImageSide,
    validation: Pairs | None,
    validation_images: ImageSide | None,
    out: Path | None,
    config: RunConfig,
    ranks: Ranks,
    *,
    before_first_step: Callable[[], None],
    on_step: Callable[[Step], None],
    on_epoch: Callable[[Epoch], None],
) -> list[Epoch]:
    """Trains from where `setup` stands to the end; see `train_clip` for files and errors."""
    per_epoch = steps_of_epoch(pairs, config)
    total = per_epoch * config.epochs
    progress, optimizer = setup.progress, setup.optimizer
    if len(set(ranks.agree(-1 if setup.fresh else progress.done, stop=False)[0])) > 1:
        raise TrainingError(f"the processes do not see the same {out}: choose a shared folder")
    if setup.fresh:
        before_first_step()
        # Each process has learned the same, but for what its device rounds.
        ranks.give_out(setup.parameters)
    saved_at = time.monotonic()

    with Interrupts() as interrupts:
        for number in range(len(progress.history), config.epochs):
            batches = epoch_batches(pairs.keys, config, number)
            behind = progress.done - number * per_epoch  # where the run was stopped
            shares = [ranks.share(batch) for batch in batches[behind:]]
            method.train_mode()
            for rows, pictures in images.batches(shares, number):
                counts, stop = ranks.agree(len(rows), interrupts.wanted)
                if stop:
                    if ranks.first:
                        setup.save()
                    raise KeyboardInterrupt
                if sum(counts):
                    outcome = method(rows, pictures, counts, epoch=number, step=progress.done)
                    require_finite(outcome, pairs, number, progress.done - number * per_epoch)
                    set_rates(optimizer, config, progress.done, total)
                    optimizer.step()
                    method.clamp()
                    if encoder.pruning is not None:
                        encoder.pruning.clamp_()
                    progress.running.append((outcome.loss, outcome.penalty, outcome.kept))
                progress.done += 1
                if not ranks.first:
                    continue
                if sum(counts):
                    on_step(_step(progress.done, total, sum(counts), outcome, method, optimizer))
                if time.monotonic() - saved_at >= 60 * config.checkpoint_minutes:
                    setup.save()
                    saved_at = time.monotonic()
            if not progress.running:
                raise TrainingError("none of the pictures can be read: check the images folder")
            encoder.model.eval()
            recalls = _validated(encoder, validation, validation_images, ranks)
            progress.history.append(_epoch(number, recalls, progress, encoder, method))
            progress.running = []
            if ranks.first:
                on_epoch(progress.history[-1])
                if setup.run is not None:
                    setup.run.save_models(progress)
                setup.save()
                saved_at = time.monotonic()
    return progress.history


def steps_of_epoch(pairs: Pairs, config: RunConfig) -> int:
    """How many batches an epoch has.

    Raises:
        TrainingError: None.
    """
    steps = len(pairs) // config.batch_size
    if steps == 0:
        raise TrainingError(
            f"{len(pairs)} pairs do not fill a batch of {config.batch_size}: use a smaller batch"
        )
    return steps


def epoch_batches(keys: Rows, config: RunConfig, epoch: int) -> list[Rows]:
    """The rows of each batch of an epoch: all pairs in a new order, but for a remainder.

    Args:
        keys: int64 [n], of `Pairs`; up to `config.views` pairs of a key follow one another.
    """
    order = np.random.default_rng([config.seed, epoch]).permutation(len(keys))
    if config.views > 1:
        order = _together(order, keys[order], config.views)
    steps = len(keys) // config.batch_size
    return np.split(order[: steps * config.batch_size], steps)


def _together(order: Rows, keys: Rows, views: int) -> Rows:
    """The same rows, each key's taken up in groups of `views` where the group's first stands."""
    by_key = np.argsort(keys, kind="stable")
    fresh = np.diff(keys[by_key], prepend=keys.min() - 1) != 0
    places = np.arange(len(keys))
    within = places - np.maximum.accumulate(np.where(fresh, places, 0))  # 0, 1, 2, ... of a key
    first = np.empty_like(places)
    first[by_key] = by_key[places - within % views]
    return order[np.argsort(first, kind="stable")]


def require_finite(outcome: Outcome, pairs: Pairs, epoch: int, batch: int) -> None:
    """Stops before a step that would spoil the weights.

    Raises:
        TrainingError: Loss or gradient is not finite; names the epoch, the batch and the
            products that are to blame, or the first of the batch.
    """
    if math.isfinite(outcome.loss) and math.isfinite(outcome.gradient_norm):
        return
    bad = "loss" if not math.isfinite(outcome.loss) else "gradient"
    value = outcome.loss if bad == "loss" else outcome.gradient_norm
    named = ", ".join(
        f"{printable(pairs.products[row])} {printable(pairs.titles[row])!r}"
        for row in outcome.suspects[:_NAMED]
    )
    more = len(outcome.suspects) - _NAMED
    raise TrainingError(
        f"the {bad} is {value} at epoch {epoch + 1}, batch {batch + 1} (products: {named}"
        f"{f' and {more} more' if more > 0 else ''}): look at these, or lower the learning rate"
    )


def _validated(
    encoder: TrainedEncoder, validation: Pairs | None, images: ImageSide | None, ranks: Ranks
) -> tuple[float | None, float | None, float | None]:
    """Recall@1/5/10 in every process; the others wait for the first."""
    if validation is None:
        return None, None, None
    found = {}
    if ranks.first and images is not None:
        found = validate(encoder, validation, images)
    one, five, ten = ranks.from_first([found.get(k, math.nan) for k in (1, 5, 10)])
    return one, five, ten


def _step(
    done: int,
    total: int,
    count: int,
    outcome: Outcome,
    method: Method,
    optimizer: torch.optim.Optimizer,
) -> Step:
    return Step(
        number=done,
        total=total,
        loss=outcome.loss,
        penalty=outcome.penalty,
        kept=outcome.kept,
        pairs=count,
        logit_scale=method.logit_scale(),
        gradient_norm=outcome.gradient_norm,
        rates={group["name"]: group["lr"] for group in optimizer.param_groups},
        parts=outcome.parts,
    )


def _epoch(
    number: int,
    recalls: tuple[float | None, float | None, float | None],
    progress: Progress,
    encoder: TrainedEncoder,
    method: Method,
) -> Epoch:
    losses, penalties, shares = zip(*progress.running, strict=True)
    kept = [share for share in shares if share is not None]
    thresholds = None
    if encoder.pruning is not None:
        found: list[Any] = encoder.pruning.thresholds().tolist()
        thresholds = tuple(
            value if encoder.pruning.prunes(layer) else None for layer, value in enumerate(found)
        )
    return Epoch(
        number,
        float(np.mean(losses)),
        *recalls,
        logit_scale=method.logit_scale(),
        penalty=float(np.mean(penalties)),
        kept=float(np.mean(kept)) if kept else None,
        thresholds=thresholds,
    )
