"""A run on disk: the best model, and what it takes to go on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from indexing.errors import TrainingError
from indexing.models.clip import ClipEncoder
from training.config import TrainConfig

if TYPE_CHECKING:
    from training.loop import Epoch


def save_best(out: Path, encoder: ClipEncoder, history: list[Epoch], config: TrainConfig) -> None:
    """Writes `out` as a model folder, with a card that says how it came about."""
    encoder.save(out, card=_card(history, config))


def save_last(
    out: Path,
    encoder: ClipEncoder,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    history: list[dict[str, Any]],
    config: TrainConfig,
) -> None:
    """Writes `out`/last/run.pt: tensors and plain values only, replaced in one step."""
    folder = out / "last"
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "model": encoder.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "history": history,
        "config": config.model_dump_json(),
    }
    torch.save(state, folder / "run.pt.partial")
    (folder / "run.pt.partial").replace(folder / "run.pt")


def load_last(
    out: Path,
    encoder: ClipEncoder,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    config: TrainConfig,
) -> list[dict[str, Any]]:
    """Takes up a stopped run; the epochs that it has behind it, none where there is no run.

    Raises:
        TrainingError: The run in `out` had other settings or cannot be read.
    """
    file = out / "last" / "run.pt"
    if not file.exists():
        return []
    try:
        state = torch.load(file, map_location=encoder.device, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise TrainingError(f"{file} cannot be read; remove it to start over") from error
    if json.loads(state["config"]) != json.loads(config.model_dump_json()):
        raise TrainingError(
            f"{out} holds a run with other settings: choose another --out, or remove {file}"
        )
    encoder.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return list(state["history"])


def _card(history: list[Epoch], config: TrainConfig) -> str:
    rows = "\n".join(
        f"| {epoch.number + 1} | {epoch.loss:.4f} | {epoch.recall_1:.4f} "
        f"| {epoch.recall_5:.4f} | {epoch.recall_10:.4f} |"
        for epoch in history
    )
    settings = json.dumps(config.model_dump(), indent=2)
    return f"""# A CLIP model fine-tuned by shoplens

Title -> picture recall on held-out titles of the training catalog (these chose the epoch):

| epoch | loss | R@1 | R@5 | R@10 |
|---|---|---|---|---|
{rows}

Settings:

```json
{settings}
```

Epochs behind it: {len(history)}. Open it with `shoplens index CATALOG --out DIR --model FOLDER`.
"""
