"""The training loop: reads top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from indexing.errors import TrainingError
from indexing.messages import printable
from indexing.models.clip import ClipEncoder
from training.config import TrainConfig
from training.data import Pairs
from training.distributed import Ranks
from training.gradients import BatchGradients, Outcome
from training.images import ImageSide
from training.interrupts import Interrupts
from training.optimizer import set_rates
from training.progress import Epoch, Progress, Step
from training.setup import set_up
from training.texts import TextSide
from training.validation import validate
from training.worth import MaskStep, learn_masks

MAX_LOGIT_SCALE = math.log(100)  # CLIP's clamp
_NAMED = 3  # pairs of a bad batch that a message names


def train_clip(
    encoder: ClipEncoder,
    pairs: Pairs,
    images: ImageSide,
    validation: Pairs | None,
    validation_images: ImageSide | None,
    out: Path | None,
    config: TrainConfig,
    *,
    texts: TextSide | None = None,
    on_mask_step: Callable[[MaskStep], None] = lambda step: None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Fine-tunes the towers of `encoder` on pictures and titles.

    `out` gets the best epoch by mean validation Recall@1/5/10 as a model folder (the last one
    without validation), and `last/` the last epoch with what is needed to go on after a stop:
    started again with the same settings and data, the run continues after the last step that
    was saved, with the same losses. It is saved after each epoch, every
    `config.checkpoint_minutes`, and on Ctrl-C or SIGTERM; not while masks are learned before
    the first epoch (`config.mask_steps`), which a run that was stopped then does again.

    Where torch.distributed is set up, each process takes its share of every batch, and the
    first writes, validates and reports. All of them must see `out`.

    Args:
        validation, validation_images: what epochs are compared on; None for no validation.
            Of several processes only the first needs the pictures.
        out: None writes nothing.
        texts: how titles are embedded; None: with the encoder's token pruning where it has
            one (see `config.preset`), else plainly.

    Raises:
        TrainingError: A loss is not finite; the catalog is smaller than a batch; or `out`
            holds a run of other settings.
        KeyboardInterrupt: The run was asked to stop, and has been saved.
    """
    per_epoch = len(pairs) // config.batch_size
    if per_epoch == 0:
        raise TrainingError(
            f"{len(pairs)} pairs do not fill a batch of {config.batch_size}: use a smaller batch"
        )
    total = per_epoch * config.epochs
    ranks = Ranks(encoder.device)
    with ranks.first_alone():  # it may still be writing what the others are to read
        setup = set_up(encoder, pairs, validation, out, config, total, texts)
    progress, optimizer = setup.progress, setup.optimizer
    if len(set(ranks.agree(-1 if setup.fresh else progress.done, stop=False)[0])) > 1:
        raise TrainingError(f"the processes do not see the same {out}: choose a shared folder")
    if setup.fresh and config.mask_steps:
        learn_masks(encoder, pairs, images, config, on_step=on_mask_step)
        # Each process has learned the same, but for what its device rounds.
        ranks.give_out(setup.parameters)
    gradients = BatchGradients(
        encoder, pairs, images, setup.texts, setup.loss, optimizer, config, ranks
    )
    saved_at = time.monotonic()

    with Interrupts() as interrupts:
        for number in range(len(progress.history), config.epochs):
            batches = epoch_batches(len(pairs), config, number)
            behind = progress.done - number * per_epoch  # where the run was stopped
            shares = [ranks.share(batch) for batch in batches[behind:]]
            _train_mode(encoder.model)
            for rows, pictures in images.batches(shares, number):
                counts, stop = ranks.agree(len(rows), interrupts.wanted)
                if stop:
                    if ranks.first:
                        setup.save()
                    raise KeyboardInterrupt
                if sum(counts):
                    outcome = gradients(rows, pictures, counts, epoch=number, step=progress.done)
                    require_finite(outcome, pairs, number, progress.done - number * per_epoch)
                    set_rates(optimizer, config, progress.done, total)
                    optimizer.step()
                    _clamp(encoder)
                    progress.running.append((outcome.loss, outcome.penalty, outcome.kept))
                progress.done += 1
                if not ranks.first:
                    continue
                if sum(counts):
                    on_step(_step(progress.done, total, sum(counts), outcome, encoder, optimizer))
                if time.monotonic() - saved_at >= 60 * config.checkpoint_minutes:
                    setup.save()
                    saved_at = time.monotonic()
            if not progress.running:
                raise TrainingError("none of the pictures can be read: check the images folder")
            encoder.model.eval()
            recalls = _validated(encoder, validation, validation_images, ranks)
            progress.history.append(_epoch(number, recalls, progress, encoder))
            progress.running = []
            if ranks.first:
                on_epoch(progress.history[-1])
                if setup.run is not None:
                    setup.run.save_models(progress)
                setup.save()
                saved_at = time.monotonic()
    return progress.history


def epoch_batches(count: int, config: TrainConfig, epoch: int) -> list[NDArray[np.int64]]:
    """The rows of each batch of an epoch: all pairs in a new order, but for a remainder."""
    order = np.random.default_rng([config.seed, epoch]).permutation(count)
    steps = count // config.batch_size
    return np.split(order[: steps * config.batch_size], steps)


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


def _train_mode(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # A catalog's batches are far narrower than what the statistics were taken from.
            module.eval()


def _clamp(encoder: ClipEncoder) -> None:
    with torch.no_grad():
        encoder.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
    if encoder.pruning is not None:
        encoder.pruning.clamp_()


def _validated(
    encoder: ClipEncoder, validation: Pairs | None, images: ImageSide | None, ranks: Ranks
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
    encoder: ClipEncoder,
    optimizer: torch.optim.Optimizer,
) -> Step:
    return Step(
        number=done,
        total=total,
        loss=outcome.loss,
        penalty=outcome.penalty,
        kept=outcome.kept,
        pairs=count,
        logit_scale=float(encoder.model.logit_scale.detach().exp()),
        gradient_norm=outcome.gradient_norm,
        rates={group["name"]: group["lr"] for group in optimizer.param_groups},
    )


def _epoch(
    number: int,
    recalls: tuple[float | None, float | None, float | None],
    progress: Progress,
    encoder: ClipEncoder,
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
        logit_scale=float(encoder.model.logit_scale.detach().exp()),
        penalty=float(np.mean(penalties)),
        kept=float(np.mean(kept)) if kept else None,
        thresholds=thresholds,
    )
