"""A run on disk: the best model, the last one, and what it takes to go on after a stop."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from indexing.durable import write_atomically
from indexing.errors import TrainingError
from indexing.models.token_pruning import Pruning, TokenPruning
from training.card import model_card
from training.config import RunConfig
from training.data import Pairs
from training.encoders import TrainedEncoder
from training.progress import Epoch, Progress


@dataclass(frozen=True)
class Run:
    """A training run and the folder that it is kept in.

    `identity` is a hash of the model and the data that it starts from.
    """

    out: Path
    encoder: TrainedEncoder
    config: RunConfig
    identity: str

    def save_models(self, progress: Progress) -> None:
        """Writes `out`/last, and `out` where the last epoch is the best, as model folders."""
        card = model_card(progress.history, self.config, self.encoder)
        if progress.is_best():
            self.encoder.save(self.out, card=card)
        self.encoder.save(self._file.parent, card=card)

    def save(self, progress: Progress, optimizer: torch.optim.Optimizer, state: nn.Module) -> None:
        """Writes `out`/last/run.pt, from which the run goes on exactly.

        The file holds tensors and plain values only, and is replaced in one step. What is
        random depends on the seed and the step alone, so no state of a generator is needed.
        """
        pruning = self.encoder.pruning
        saved = {
            "model": self.encoder.model.state_dict(),
            "pruning": None if pruning is None else pruning.config.model_dump_json(),
            "thresholds": {} if pruning is None else pruning.state_dict(),
            "loss": state.state_dict(),
            "optimizer": optimizer.state_dict(),
            "done": progress.done,
            "history": [asdict(epoch) for epoch in progress.history],
            "running": progress.running,
            "config": json.dumps(self.config.decisive()),
            "identity": self.identity,
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, lambda path: torch.save(saved, path))

    def load(self) -> Saved | None:
        """What a stopped run in `out` left behind; None where there is none.

        Raises:
            TrainingError: The run had other settings, data or start, or cannot be read.
        """
        if not self._file.exists():
            return None
        way_out = f"choose another --out, or remove {self._file} to start over"
        try:
            state = torch.load(self._file, map_location=self.encoder.device, weights_only=True)
            settings, identity = json.loads(state["config"]), state["identity"]
            history = [Epoch(**epoch) for epoch in state["history"]]
            progress = Progress(state["done"], history, list(state["running"]))
            pruning = state["pruning"]
            saved = Saved(state, progress, pruning and Pruning.model_validate_json(pruning))
        except (
            OSError,
            RuntimeError,
            ValueError,
            TypeError,
            EOFError,
            KeyError,
            UnpicklingError,
        ) as error:
            raise TrainingError(f"{self._file} cannot be read: {way_out}") from error
        if settings != json.loads(json.dumps(self.config.decisive())):
            raise TrainingError(f"{self.out} holds a run with other settings: {way_out}")
        if identity != self.identity:
            raise TrainingError(
                f"{self.out} holds a run on another catalog or from another model: {way_out}"
            )
        return saved

    @property
    def _file(self) -> Path:
        return self.out / "last" / "run.pt"


@dataclass(frozen=True)
class Saved:
    """A run as `Run.save` left it."""

    state: dict[str, Any]
    progress: Progress
    pruning: Pruning | None

    def restore_pruning(self, encoder: TrainedEncoder) -> None:
        """Gives the encoder the pruning of the run; one of the same settings stays in place."""
        if self.pruning is None:
            encoder.pruning = None
            return
        if encoder.pruning is None or encoder.pruning.config != self.pruning:
            encoder.pruning = TokenPruning(self.pruning).to(encoder.device)
        encoder.pruning.load_state_dict(self.state["thresholds"])

    def restore(
        self, encoder: TrainedEncoder, optimizer: torch.optim.Optimizer, state: nn.Module
    ) -> None:
        """Gives model, optimizer and `state` what they had in the run."""
        encoder.model.load_state_dict(self.state["model"])
        optimizer.load_state_dict(self.state["optimizer"])
        state.load_state_dict(self.state["loss"])


def identity_of(encoder: TrainedEncoder, *parts: Pairs) -> str:
    """Hex SHA-256 of what a run starts from: the model, products, titles and picture names."""
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for pairs in parts:
        for picture, title, product in zip(
            pairs.pictures, pairs.titles, pairs.products, strict=True
        ):
            line = f"{picture.location}\0{title}\0{product}\0"
            digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
