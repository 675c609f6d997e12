"""The model card of a fine-tuned model: what it was trained with, and how that went."""

from __future__ import annotations

import json

from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.token_pruning import TokenPruning
from training.config import RunConfig
from training.encoders import TrainedEncoder
from training.progress import Epoch


def model_card(history: list[Epoch], config: RunConfig, encoder: TrainedEncoder) -> str:
    """Markdown, for README.md of the model folder."""
    family = "An ALBEF" if isinstance(encoder, AlbefEncoder) else "A CLIP"
    pruning = encoder.pruning
    parts = [f"# {family} model fine-tuned by shoplens", _epochs(history)]
    if pruning is not None:
        parts.append(_pruning(history, pruning))
    recipe = f"Settings (recipe `{config.preset}`):" if config.preset else "Settings:"
    settings = json.dumps(config.model_dump(mode="json"), indent=2)
    parts += [recipe, f"```json\n{settings}\n```"]
    parts.append(
        f"Epochs behind it: {len(history)}. "
        "Open it with `shoplens index CATALOG --out DIR --model FOLDER`."
    )
    return "\n\n".join(parts) + "\n"


def _epochs(history: list[Epoch]) -> str:
    rows = [
        f"| {epoch.number + 1} | {epoch.loss:.4f} | {_share(epoch.recall_1)} "
        f"| {_share(epoch.recall_5)} | {_share(epoch.recall_10)} | {_share(epoch.kept)} |"
        for epoch in history
    ]
    return "\n".join(
        [
            "Title -> picture recall on held-out titles of the training catalog (their mean "
            "chose the epoch), and the share of title tokens kept while training:",
            "",
            "| epoch | loss | R@1 | R@5 | R@10 | title tokens kept |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _pruning(history: list[Epoch], pruning: TokenPruning) -> str:
    settings = json.dumps(pruning.config.model_dump(mode="json"), indent=2)
    rows = [
        f"| {epoch.number + 1} | " + " | ".join(map(_number, epoch.thresholds)) + " |"
        for epoch in history
        if epoch.thresholds is not None
    ]
    layers = range(len(pruning.config.base))
    return "\n".join(
        [
            "Titles are read with token pruning (MML-TP, Hu et al. 2024): a token whose score is "
            "below its layer's threshold is left out. The thresholds after each epoch:",
            "",
            "| epoch | " + " | ".join(f"layer {layer}" for layer in layers) + " |",
            "|---" * (len(layers) + 1) + "|",
            *rows,
            "",
            f"```json\n{settings}\n```",
        ]
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
