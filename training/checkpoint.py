"""A run on disk: the best model, and what it takes to go on after a stop."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from indexing.durable import write_atomically
from indexing.errors import TrainingError
from indexing.models.clip import ClipEncoder
from training.config import TrainConfig

if TYPE_CHECKING:
    from training.loop import Epoch


@dataclass(frozen=True)
class Run:
    """A training run and the folder that it is kept in.

    `identity` is a hash of the model and the data that it starts from.
    """

    out: Path
    encoder: ClipEncoder
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    config: TrainConfig
    identity: str

    def save_best(self, history: list[Epoch]) -> None:
        """Writes `out` as a model folder, with a card that says how it came about."""
        self.encoder.save(self.out, card=_card(history, self.config))

    def save(self, history: list[Epoch]) -> None:
        """Writes `out`/last: the model of the last epoch, and run.pt to go on from.

        run.pt holds tensors and plain values only, and is replaced in one step.
        """
        state = {
            "model": self.encoder.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [asdict(epoch) for epoch in history],
            "config": self.config.model_dump_json(),
            "identity": self.identity,
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, lambda path: torch.save(state, path))
        self.encoder.save(self._file.parent, card=_card(history, self.config))

    def load(self) -> list[dict[str, Any]]:
        """Takes up a stopped run; the epochs that it has behind it, none where there is none.

        Raises:
            TrainingError: The run in `out` had other settings, data or start, or cannot be
                read.
        """
        if not self._file.exists():
            return []
        way_out = f"choose another --out, or remove {self._file} to start over"
        try:
            state = torch.load(self._file, map_location=self.encoder.device, weights_only=True)
            settings, identity = json.loads(state["config"]), state["identity"]
            history: list[dict[str, Any]] = list(state["history"])
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, UnpicklingError) as error:
            raise TrainingError(f"{self._file} cannot be read: {way_out}") from error
        if settings != json.loads(self.config.model_dump_json()):
            raise TrainingError(f"{self.out} holds a run with other settings: {way_out}")
        if identity != self.identity:
            raise TrainingError(
                f"{self.out} holds a run on another catalog or from another model: {way_out}"
            )
        self.encoder.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return history

    @property
    def _file(self) -> Path:
        return self.out / "last" / "run.pt"


def _card(history: list[Epoch], config: TrainConfig) -> str:
    rows = "\n".join(
        f"| {epoch.number + 1} | {epoch.loss:.4f} | {epoch.recall_1:.4f} "
        f"| {epoch.recall_5:.4f} | {epoch.recall_10:.4f} |"
        for epoch in history
    )
    settings = json.dumps(config.model_dump(), indent=2)
    return f"""# A CLIP model fine-tuned by shoplens

Title -> picture recall on held-out titles of the training catalog (their mean chose the epoch):

| epoch | loss | R@1 | R@5 | R@10 |
|---|---|---|---|---|
{rows}

Settings:

```json
{settings}
```

Epochs behind it: {len(history)}. Open it with `shoplens index CATALOG --out DIR --model FOLDER`.
"""
