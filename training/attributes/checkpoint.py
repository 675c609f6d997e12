"""How far a run over several stages has come, in memory and on disk."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import nn

from indexing.durable import write_atomically
from indexing.errors import TrainingError
from indexing.models.clip import ClipEncoder
from training.attributes.config import AttributesConfig, Stage

_FILE = "run.pt"

Weights = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class StageEpoch:
    """What is known at the end of an epoch.

    Attributes:
        number: Of the epoch in its stage, from 0.
        loss: Mean over its steps.
        accuracy: Of each attribute on validation, with picture and title.
    """

    stage: str
    number: int
    loss: float
    accuracy: tuple[float, ...]

    @property
    def score(self) -> float:
        """By which epochs are compared."""
        return float(np.mean(self.accuracy))


@dataclass
class State:
    """How far a run has come: `stage`, `epoch` of it and `step` of that come next."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the epoch so far
    history: list[StageEpoch] = field(default_factory=list)
    best: Weights | None = None  # of the stage so far
    best_score: float = -1.0
    optimizer: torch.optim.Optimizer | None = None
    _waiting: dict[str, Any] | None = None  # an optimizer's state, until there is the optimizer

    def enter(
        self, stage: int, optimizer: torch.optim.Optimizer, encoder: ClipEncoder, network: nn.Module
    ) -> None:
        """Begins a stage, or takes up the one that was stopped."""
        self.stage, self.optimizer = stage, optimizer
        if self._waiting is not None:
            optimizer.load_state_dict(self._waiting)
            self._waiting = None

    def close(
        self, stage: Stage, accuracy: tuple[float, ...], encoder: ClipEncoder, network: nn.Module
    ) -> StageEpoch:
        """Ends an epoch, and keeps its weights where none of the stage was better."""
        finite = [loss for loss in self.losses if np.isfinite(loss)]
        if not finite:
            raise TrainingError("none of the pictures can be read: check the images folder")
        found = StageEpoch(stage.name, self.epoch, float(np.mean(finite)), accuracy)
        self.history.append(found)
        if found.score >= self.best_score:
            self.best, self.best_score = copy.deepcopy(_weights(encoder, network)), found.score
        self.epoch, self.step, self.losses = self.epoch + 1, 0, []
        return found

    def leave(self, encoder: ClipEncoder, network: nn.Module) -> None:
        """Ends a stage: its best weights hold."""
        if self.best is not None:
            _restore(self.best, encoder, network)
        self.stage, self.epoch, self.best, self.best_score = self.stage + 1, 0, None, -1.0


def save_state(
    folder: Path,
    state: State,
    encoder: ClipEncoder,
    network: nn.Module,
    config: AttributesConfig,
    identity: str,
) -> None:
    """Writes what it takes to go on; the file is replaced in one step, and holds tensors and
    plain values only."""
    saved = {
        "weights": _weights(encoder, network),
        "best": state.best,
        "best_score": state.best_score,
        "optimizer": None if state.optimizer is None else state.optimizer.state_dict(),
        "place": [state.stage, state.epoch, state.step],
        "losses": state.losses,
        "history": [asdict(epoch) for epoch in state.history],
        "config": json.dumps(config.decisive()),
        "identity": identity,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _FILE, lambda path: torch.save(saved, path))


def load_state(
    folder: Path, encoder: ClipEncoder, network: nn.Module, config: AttributesConfig, identity: str
) -> State:
    """What a stopped run left, its weights put in place; a new state where there is none.

    Raises:
        TrainingError: The run had other settings, data or start, or cannot be read.
    """
    file = folder / _FILE
    if not file.exists():
        return State()
    way_out = f"choose another --out, or remove {file} to start over"
    try:
        saved = torch.load(file, map_location=encoder.device, weights_only=True)
        settings, begun = json.loads(saved["config"]), saved["identity"]
        history = [
            StageEpoch(**{**epoch, "accuracy": tuple(epoch["accuracy"])})
            for epoch in saved["history"]
        ]
        stage, epoch, step = saved["place"]
        state = State(
            stage, epoch, step, list(saved["losses"]), history, saved["best"],
            saved["best_score"], _waiting=saved["optimizer"],
        )  # fmt: skip
        weights = saved["weights"]
    except (
        OSError, RuntimeError, ValueError, TypeError, EOFError, KeyError, UnpicklingError,
    ) as error:  # fmt: skip
        raise TrainingError(f"{file} cannot be read: {way_out}") from error
    if settings != json.loads(json.dumps(config.decisive())):
        raise TrainingError(f"{folder} holds a run with other settings: {way_out}")
    if begun != identity:
        raise TrainingError(
            f"{folder} holds a run on another catalog or from another model: {way_out}"
        )
    _restore(weights, encoder, network)
    return state


def _weights(encoder: ClipEncoder, network: nn.Module) -> Weights:
    return {"encoder": encoder.model.state_dict(), "network": network.state_dict()}


def _restore(weights: Weights, encoder: ClipEncoder, network: nn.Module) -> None:
    encoder.model.load_state_dict(weights["encoder"])
    network.load_state_dict(weights["network"])
