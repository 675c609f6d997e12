"""Fine-tuning of ALBEF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from indexing.models.albef.encoder import AlbefEncoder
from training.albef.config import AlbefTraining
from training.albef.momentum import Momentum
from training.albef.presets import prepare_albef_pruning
from training.albef.step import AlbefMethod, Shown
from training.data import Pairs
from training.distributed import Ranks
from training.images import ImageSide
from training.loop import run_epochs, steps_of_epoch
from training.optimizer import make_optimizer
from training.progress import Epoch, Progress, Step
from training.setup import Setup, stopped_run


def train_albef(
    encoder: AlbefEncoder,
    pairs: Pairs,
    images: ImageSide,
    validation: Pairs | None,
    validation_images: ImageSide | None,
    out: Path | None,
    config: AlbefTraining,
    *,
    shown: Shown | None = None,
    on_calibration: Callable[[int, int], None] = lambda done, total: None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Trains all of `encoder` on pictures and titles: contrast, matching and hidden words.

    Files, stops and errors are those of `train_clip`. A matching head or a head for hidden
    words that the checkpoint came without starts untrained.

    Args:
        shown: what is read of titles, for experiments; None: all.
        on_calibration: told how many of how many batches thresholds have been taken from.

    Raises:
        TrainingError, KeyboardInterrupt: as `train_clip`.
    """
    per_epoch, ranks = steps_of_epoch(pairs, config), Ranks(encoder.device)
    with ranks.first_alone():  # it may still be writing what the others are to read
        run, saved = stopped_run(encoder, pairs, validation, out, config)
        if saved is None:
            prepare_albef_pruning(encoder, config, pairs, images, on_calibration)
        else:
            saved.restore_pruning(encoder)
        model = encoder.model
        model.set_grad_checkpointing(config.checkpoint_activations)
        size = min(config.queue_size, len(pairs))
        momentum = Momentum(model, size, config.momentum).to(encoder.device)
        optimizer = make_optimizer(model, encoder.pruning, config, per_epoch * config.epochs)
        if saved is not None:
            saved.restore(encoder, optimizer, momentum)
    progress = Progress() if saved is None else saved.progress
    setup = Setup(run, saved is None, momentum, optimizer, progress)
    method = AlbefMethod(encoder, pairs, momentum, optimizer, config, ranks, per_epoch, shown)
    encoder.has_match = True  # from now on it is trained
    return run_epochs(
        encoder,
        setup,
        method,
        pairs,
        images,
        validation,
        validation_images,
        out,
        config,
        ranks,
        before_first_step=lambda: None,
        on_step=on_step,
        on_epoch=on_epoch,
    )
