"""Fine-tuning of CLIP: both towers, on a contrastive loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from indexing.models.clip import ClipEncoder
from training.config import TrainConfig
from training.data import Pairs
from training.distributed import Ranks
from training.gradients import BatchGradients, Outcome, Rows
from training.images import ImageSide
from training.loop import run_epochs, steps_of_epoch
from training.progress import Epoch, Step
from training.setup import ClipSetup, set_up
from training.texts import TextSide
from training.worth import MaskStep, learn_masks

MAX_LOGIT_SCALE = math.log(100)  # CLIP's clamp


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
    total = steps_of_epoch(pairs, config) * config.epochs
    ranks = Ranks(encoder.device)
    # A loss may set another, at which the same words would be worth something else.
    scale = encoder.model.logit_scale.exp().item()
    with ranks.first_alone():  # it may still be writing what the others are to read
        setup = set_up(encoder, pairs, validation, out, config, total, texts)

    def before_first_step() -> None:
        if config.mask_steps:
            learn_masks(encoder, pairs, images, config, scale=scale, on_step=on_mask_step)

    return run_epochs(
        encoder,
        setup,
        ClipMethod(encoder, pairs, images, setup, config, ranks),
        pairs,
        images,
        validation,
        validation_images,
        out,
        config,
        ranks,
        before_first_step=before_first_step,
        on_step=on_step,
        on_epoch=on_epoch,
    )


class ClipMethod:
    """What a step of CLIP is; a `Method` of the loop."""

    def __init__(
        self,
        encoder: ClipEncoder,
        pairs: Pairs,
        images: ImageSide,
        setup: ClipSetup,
        config: TrainConfig,
        ranks: Ranks,
    ) -> None:
        self._encoder = encoder
        self._gradients = BatchGradients(
            encoder, pairs, images, setup.texts, setup.loss, setup.optimizer, config, ranks
        )

    def __call__(
        self, rows: Rows, pictures: Tensor, counts: Sequence[int], *, epoch: int, step: int
    ) -> Outcome:
        return self._gradients(rows, pictures, counts, epoch=epoch, step=step)

    def train_mode(self) -> None:
        self._encoder.model.train()
        for module in self._encoder.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # A catalog's batches are far narrower than what the statistics were taken from.
                module.eval()

    def clamp(self) -> None:
        with torch.no_grad():
            self._encoder.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def logit_scale(self) -> float:
        return float(self._encoder.model.logit_scale.detach().exp())
