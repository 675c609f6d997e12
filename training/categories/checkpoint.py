"""A stage on disk: what it takes to go on after a stop, and its outcome once it is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from indexing.durable import write_atomically
from indexing.errors import TrainingError

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Round:
    """What is known at the end of a round of a stage.

    Attributes:
        number: From 0.
        loss: Mean over its steps.
        score: By which rounds are compared; None: the last one is the best.
        measures: What was measured on validation, by name.
    """

    stage: str
    number: int
    loss: float
    score: float | None
    measures: dict[str, float] = field(default_factory=dict)


@dataclass
class StageState:
    """How far a stage has come: its rounds so far, and the weights of the best of them."""

    history: list[Round] = field(default_factory=list)
    best: Weights | None = None

    def note(self, done: Round, module: nn.Module) -> None:
        """Takes up a round, and its weights where none before was better."""
        others = [known.score for known in self.history if known.score is not None]
        if done.score is None or done.score >= max(others, default=done.score):
            self.best = {key: value.clone() for key, value in module.state_dict().items()}
        self.history.append(done)


def save_state(
    file: Path,
    state: StageState,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
) -> None:
    """Writes a stage; the file is replaced in one step, and holds tensors and plain values only."""
    saved = {
        "weights": module.state_dict(),
        "best": state.best,
        "optimizer": optimizer.state_dict(),
        "history": [asdict(done) for done in state.history],
        "identity": identity,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda path: torch.save(saved, path))


def load_state(
    file: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
) -> StageState:
    """What a stopped run left, weights and optimizer put in place; a new state where there is
    none.

    Raises:
        TrainingError: The run had other settings, data or start, or cannot be read.
    """
    if not file.exists():
        return StageState()
    way_out = f"choose another --out, or remove {file} to start over"
    try:
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        history = [Round(**done) for done in saved["history"]]
        if saved["identity"] != identity:
            raise TrainingError(
                f"{file.parent.parent} holds a run with other settings, on another catalog or "
                f"from another model: {way_out}"
            )
        module.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        return StageState(history, saved["best"])
    except (
        OSError, RuntimeError, ValueError, TypeError, EOFError, KeyError, UnpicklingError,
    ) as error:  # fmt: skip
        raise TrainingError(f"{file} cannot be read: {way_out}") from error
