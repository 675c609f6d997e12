"""The model card of an attribute classifier: what it was trained with, and what it can do."""

from __future__ import annotations

import json
from collections.abc import Sequence

from indexing.attributes.vocabulary import Attribute
from indexing.match_record import MODES
from indexing.models.cma_clip.classifier import CmaClassifier
from training.attributes.checkpoint import StageEpoch
from training.attributes.config import AttributesConfig


def classifier_card(
    classifier: CmaClassifier, history: Sequence[StageEpoch], config: AttributesConfig
) -> str:
    """Markdown, for README.md of the folder."""
    settings = json.dumps(config.model_dump(mode="json"), indent=2)
    parts = [
        "# An attribute classifier (CMA-CLIP) trained by shoplens",
        "Accuracy on validation, title and picture given; each stage begins with the best epoch "
        "of the one before:",
        _history(classifier.attributes, history),
        "What it is sure of, by validation: a prediction is used where its probability reaches "
        "its class's threshold, the lowest at which nine in ten are right by Wilson's lower "
        "bound. Classes without one are never used.",
        _calibration(classifier.attributes),
        f"Settings:\n\n```json\n{settings}\n```",
        "`labels.csv` says what each of the merchant's values counts as. Edit it, and train "
        "again with `--labels`. Fill a catalog's gaps with `shoplens index CATALOG --out DIR "
        "--attributes FOLDER`.",
    ]
    return "\n\n".join(parts) + "\n"


def _history(attributes: Sequence[Attribute], history: Sequence[StageEpoch]) -> str:
    names = " | ".join(attribute.name for attribute in attributes)
    rows = [
        f"| {epoch.stage} | {epoch.number + 1} | {epoch.loss:.4f} | "
        + " | ".join(f"{share:.3f}" for share in epoch.accuracy)
        + " |"
        for epoch in history
    ]
    return "\n".join(
        [
            f"| stage | epoch | loss | {names} |",
            "|---" * (3 + len(attributes)) + "|",
            *rows,
        ]
    )


def _calibration(attributes: Sequence[Attribute]) -> str:
    rows = []
    for attribute in attributes:
        for mode in MODES:
            own = attribute.calibration[mode]
            sure = sum(limit is not None for limit in own.classes)
            overall = "none" if own.threshold is None else f"{own.threshold:.2f}"
            rows.append(
                f"| {attribute.name} | {mode} | {own.temperature:.2f} | {overall} "
                f"| {sure} of {len(attribute.values)} |"
            )
    return "\n".join(
        [
            "| attribute | given | temperature | threshold over all classes | classes with one |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
