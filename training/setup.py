"""What a run needs before its first step, started anew or taken up where it was stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from indexing.errors import TrainingError
from indexing.models.clip import ClipEncoder
from training.checkpoint import Run, Saved, identity_of
from training.config import RunConfig, TrainConfig
from training.data import Pairs
from training.encoders import TrainedEncoder
from training.images import last_projection
from training.losses import PairLoss, make_loss
from training.optimizer import make_optimizer
from training.presets import prepare_pruning
from training.progress import Progress
from training.texts import PlainTexts, PruningTexts, TextSide


@dataclass(frozen=True)
class Setup:
    """A run that is ready to go on; `run` is None where nothing is to be written."""

    run: Run | None
    fresh: bool  # not taken up where it was stopped
    state: nn.Module  # what a stopped run needs besides the model
    optimizer: torch.optim.Optimizer
    progress: Progress

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained, the thresholds of token pruning among it."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def save(self) -> None:
        """Writes run.pt, if anything."""
        if self.run is not None:
            self.run.save(self.progress, self.optimizer, self.state)


@dataclass(frozen=True)
class ClipSetup(Setup):
    """What `ClipMethod` needs, too."""

    texts: TextSide
    loss: PairLoss


def stopped_run(
    encoder: TrainedEncoder,
    pairs: Pairs,
    validation: Pairs | None,
    out: Path | None,
    config: RunConfig,
) -> tuple[Run | None, Saved | None]:
    """The run that `out` is to hold, and what a stopped one left there.

    Raises:
        TrainingError: `out` holds another run.
    """
    if out is None:
        return None, None
    parts = [pairs] if validation is None else [pairs, validation]
    run = Run(out, encoder, config, identity_of(encoder, *parts))
    return run, run.load()


def set_up(
    encoder: ClipEncoder,
    pairs: Pairs,
    validation: Pairs | None,
    out: Path | None,
    config: TrainConfig,
    total: int,
    texts: TextSide | None,
) -> ClipSetup:
    """Makes the encoder ready for training, and takes up the run in `out` if there is one.

    Args:
        total: steps of the whole run.

    Raises:
        TrainingError: `out` holds another run; or the model cannot be trained so.
    """
    model = encoder.model
    run, saved = stopped_run(encoder, pairs, validation, out, config)
    if saved is None:
        prepare_pruning(encoder, config.preset, pairs.titles)
        _require_masks_to_hold(encoder, config)
    else:
        saved.restore_pruning(encoder)
    loss = prepare_loss(encoder, config.loss, len(pairs))
    if config.lock_image:
        model.visual.requires_grad_(False)
        last_projection(model.visual).requires_grad_(True)
    if config.checkpoint_activations:
        model.set_grad_checkpointing(True)
    optimizer = make_optimizer(model, encoder.pruning, config, total)
    if saved is not None:
        saved.restore(encoder, optimizer, loss)
    if texts is None and encoder.pruning is not None:
        texts = PruningTexts(model, encoder.pruning, held=config.mask_steps > 0)
    progress = Progress() if saved is None else saved.progress
    texts = texts or PlainTexts(model)
    return ClipSetup(run, saved is None, loss, optimizer, progress, texts, loss)


def _require_masks_to_hold(encoder: ClipEncoder, config: TrainConfig) -> None:
    """Raises TrainingError where masks are to be held that are made to be soft."""
    pruning = encoder.pruning
    if config.mask_steps and pruning is not None and not pruning.config.straight_through:
        raise TrainingError(
            f"{encoder.name} has soft masks, as --preset paper makes them, which cannot be held: "
            "go on learning them with --mask-steps 0, or give another --from"
        )


def prepare_loss(encoder: ClipEncoder, name: str, pairs: int) -> PairLoss:
    """The loss, and for one that needs a bias a model that has one.

    A model without a bias was trained with another loss: its logit scale starts anew, too, as
    it does for a loss that does not train it.
    """
    loss, model = make_loss(name, pairs), encoder.model
    biased = getattr(model, "logit_bias", None) is None and loss.initial_bias is not None
    if loss.initial_bias is not None and biased:
        model.logit_bias = nn.Parameter(torch.full_like(model.logit_scale, loss.initial_bias))
        model_cfg = {**encoder.config["model_cfg"], "init_logit_bias": loss.initial_bias}
        encoder.config = {**encoder.config, "model_cfg": model_cfg}
    if biased or loss.fixed_scale:
        with torch.no_grad():
            model.logit_scale.fill_(math.log(loss.initial_scale))
    return loss.to(encoder.device)
