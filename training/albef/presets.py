"""The recipes of `shoplens train albef`: their settings, and where their thresholds come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from indexing.errors import TrainingError
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.albef.recipes import (
    calibrated_albef_pruning,
    observe,
    paper_albef_pruning,
)
from indexing.models.calibration import TITLES
from indexing.models.token_pruning import Pruning, TokenPruning
from training.albef.config import AlbefTraining
from training.data import Pairs
from training.images import ImageSide
from training.presets import chosen_settings, starts_pruning

# `paper` is the ALBEF column of Hu et al. 2024, section 4.1, with the schedule of ALBEF's own
# pre-training: 1e-5 rises to 1e-4 in 2,000 of 80,000 steps and falls back. Its queue of 65,536
# is no multiple of its batch of 320, which ours need not be.
SETTINGS: dict[str, dict[str, object]] = {
    "standard": {},
    "calibrated": {},
    "paper": {
        "epochs": 30,
        "batch_size": 320,
        "learning_rate": 1e-4,
        "threshold_learning_rate": 1e-4,
        "warm_up": 0.025,
        "floor": 0.1,
        "weight_decay": 0.02,
    },
}
# A model that has learned nothing yet: larger steps, a slow copy that is not far behind in few
# steps, and no hard negatives at first (with them from the start, matching stays at chance).
UNTRAINED: dict[str, object] = {
    "learning_rate": 1e-3,
    "warm_up": 0.1,
    "momentum": 0.95,
    "hardening": 0.5,
}
_BATCH = 64


def make_albef_config(
    preset: str, *, second_stage: bool = False, untrained: bool = False, **given: object
) -> AlbefTraining:
    """The settings of a recipe, with those that are `given` and not None instead.

    Args:
        untrained: whether the model has learned nothing yet.

    Raises:
        pydantic.ValidationError: A setting makes no sense, or no recipe has this name.
    """
    start = UNTRAINED if untrained else {}
    recipes = {name: {**start, **settings} for name, settings in SETTINGS.items()}
    return AlbefTraining.model_validate(
        chosen_settings(recipes, preset, second_stage=second_stage, given=given)
    )


def prepare_albef_pruning(
    encoder: AlbefEncoder,
    config: AlbefTraining,
    pairs: Pairs,
    images: ImageSide,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Gives the encoder the token pruning that a recipe starts with, or takes it away; see
    `prepare_pruning`, which does so for CLIP. `progress` is told how far the pictures are that
    thresholds are taken from.

    Raises:
        TrainingError: `paper` is to start from an encoder that prunes already; or none of the
            pictures that thresholds are taken from can be read.
    """
    if not starts_pruning(encoder, config.preset):
        return
    if config.preset == "paper":
        pruning = paper_albef_pruning(encoder.config, config.prune)
    else:
        pruning = _calibrated(encoder, config, pairs, images, progress)
    encoder.pruning = TokenPruning(pruning).to(encoder.device)


def _calibrated(
    encoder: AlbefEncoder,
    config: AlbefTraining,
    pairs: Pairs,
    images: ImageSide,
    progress: Callable[[int, int], None],
) -> Pruning:
    """Thresholds out of the scores of up to 2,048 titles beside their own pictures."""
    # Catalogs are often sorted.
    rows = np.random.default_rng(0).permutation(len(pairs))[:TITLES]
    batches = np.array_split(rows, max(1, len(rows) // _BATCH))
    found, prunable = [], []
    for number, (part, pictures) in enumerate(images.batches(batches, 0), 1):
        if len(part):
            ids = encoder.tokenizer([pairs.titles[row] for row in part])
            mask = encoder.tokenizer.mask(ids)
            seen = observe(encoder.model, ids, mask, pictures, "pre", config.key)
            found.append(seen[0])
            prunable.append(seen[1])
        progress(number, len(batches))
    if not found:
        raise TrainingError("none of the pictures can be read: check the images folder")
    scores = [torch.cat(parts) for parts in zip(*found, strict=True)]
    return calibrated_albef_pruning(
        encoder.config, scores, torch.cat(prunable), prune=config.prune, key=config.key
    )
