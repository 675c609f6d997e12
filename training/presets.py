"""The recipes of `shoplens train clip`: their settings, and where their thresholds come from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from indexing.errors import ModelError, TrainingError
from indexing.models.calibration import calibrate
from indexing.models.clip import ClipEncoder
from indexing.models.pruned_text import text_tower
from indexing.models.token_pruning import TokenPruning, paper_pruning
from training.config import Preset, TrainConfig
from training.encoders import TrainedEncoder

# What a recipe sets differently from TrainConfig. `paper` is the CLIP column of Hu et al.
# 2024, section 4.1, to the letter: 5e-6 rises to 2e-5 in 10 of 100 epochs and falls back, for
# the thresholds as for the weights. On fewer epochs the curve is the same, squeezed.
SETTINGS: dict[str, dict[str, object]] = {
    "standard": {},
    "calibrated": {"mask_steps": 120},
    "paper": {
        "epochs": 100,
        "batch_size": 1360,
        "learning_rate": 2e-5,
        "threshold_learning_rate": 2e-5,
        "warm_up": 0.1,
        "floor": 0.25,
        "weight_decay": 0.02,
    },
}
# A second stage (section 4.4) goes on from a fine-tuned model for "a few epochs".
SECOND_STAGE: dict[str, object] = {"epochs": 5}


def make_config(preset: str, *, second_stage: bool = False, **given: object) -> TrainConfig:
    """The settings of a recipe, with those that are `given` and not None instead.

    Raises:
        pydantic.ValidationError: A setting makes no sense, or no recipe has this name.
    """
    return TrainConfig.model_validate(
        chosen_settings(SETTINGS, preset, second_stage=second_stage, given=given)
    )


def chosen_settings(
    recipes: Mapping[str, dict[str, object]],
    preset: str,
    *,
    second_stage: bool,
    given: Mapping[str, object],
) -> dict[str, object]:
    """The settings of a recipe, with those that are `given` and not None instead."""
    settings = {**recipes.get(preset, {}), **(SECOND_STAGE if second_stage else {})}
    chosen = {name: value for name, value in given.items() if value is not None}
    return {"preset": preset, **settings, **chosen}


def starts_pruning(encoder: TrainedEncoder, preset: Preset | None) -> bool:
    """Whether a recipe gives the encoder a new token pruning; `standard` takes away what it has.

    Raises:
        TrainingError: `paper` is to start from an encoder that prunes already.
    """
    if preset is None or (preset == "calibrated" and encoder.pruning is not None):
        return False
    if preset == "standard":
        encoder.pruning = None
        return False
    if encoder.pruning is not None:
        raise TrainingError(
            f"{encoder.name} prunes tokens already, and --preset paper starts from printed "
            "thresholds: give another --from, or go on with --preset calibrated"
        )
    return True


def prepare_pruning(encoder: ClipEncoder, preset: Preset | None, titles: Sequence[str]) -> None:
    """Gives the encoder the token pruning that a recipe starts with, or takes it away.

    `standard` reads whole titles, also where the encoder came with pruning. `calibrated`
    takes its thresholds out of the titles; an encoder that prunes already goes on with its
    own, which its weights have been trained for. None leaves the encoder as it is.

    Raises:
        TrainingError: The text tower cannot prune; or `paper` is to start from an encoder
            that prunes already, which the printed thresholds do not fit.
    """
    if not starts_pruning(encoder, preset):
        return
    # Catalogs are often sorted, and calibration looks at the first titles.
    mixed = random.Random(0).sample(titles, len(titles))
    try:
        layers = len(text_tower(encoder.model).transformer.resblocks)
        config = paper_pruning(layers) if preset == "paper" else calibrate(encoder, mixed)
    except ModelError as error:
        raise TrainingError(f"{error}: use --preset standard") from error
    encoder.pruning = TokenPruning(config).to(encoder.device)
