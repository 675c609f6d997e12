"""The model card of a categoriser: what it was trained with, and what it can do."""

from __future__ import annotations

import json
from collections.abc import Sequence

from indexing.models.categorizer.categorizer import CategorizerConfig
from training.categories.checkpoint import Round
from training.categories.config import CategoriesConfig


def categorizer_card(
    config: CategorizerConfig, history: Sequence[Round], settings: CategoriesConfig, start: str
) -> str:
    """Markdown, for README.md of the folder."""
    sure = (
        "It is never sure: no confidence has nine in ten right by Wilson's lower bound on "
        "validation."
        if config.threshold is None
        else f"It is sure from a confidence of {config.threshold:.3f} on: nine in ten are right "
        "by Wilson's lower bound on validation."
    )
    parts = [
        "# A categoriser of titles trained by shoplens",
        f"It reads a title and says which of {len(config.categories)} values of `{config.label}` "
        f"it is of. It began with {start}.",
        "On validation, after each epoch; a stage ends with its best one:",
        "\n".join(_rows(history)),
        f"{sure} Logits are divided by a temperature of {config.temperature:.2f}.",
        "Settings:",
        f"```json\n{json.dumps(settings.model_dump(mode='json'), indent=2)}\n```",
        "`labels.csv` says what each of the merchant's values counts as. Edit it, and train again "
        'with `--labels`. Ask with `shoplens categorize FOLDER "title"`.',
    ]
    return "\n\n".join(parts) + "\n"


def _rows(history: Sequence[Round]) -> list[str]:
    names = list(dict.fromkeys(name for done in history for name in done.measures))
    lines = [
        f"| stage | epoch | loss | {' | '.join(names)} |",
        "|---" * (3 + len(names)) + "|",
    ]
    for done in history:
        cells = [f"{done.measures[n]:.3f}" if n in done.measures else "-" for n in names]
        lines.append(
            f"| {done.stage} | {done.number + 1} | {done.loss:.4f} | {' | '.join(cells)} |"
        )
    return lines
