"""The training log: TensorBoard where it is installed, JSON lines always."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from indexing.durable import replace_bytes
from training.progress import Epoch, Step


class TrainingLog:
    """`metrics.jsonl` (one line an epoch) and, with the extra `train`, TensorBoard events.

    Steps and epochs that are done once more after a stop replace what was noted of them.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._board: Any = None
        self._then: float | None = None

    def step(self, step: Step) -> None:
        board = self._writer(step.number)
        if board is None:
            return
        values = {
            "loss": step.loss,
            "penalty": step.penalty,
            "logit scale": step.logit_scale,
            "gradient norm": step.gradient_norm,
            **{f"learning rate/{name}": rate for name, rate in step.rates.items()},
            **{f"loss/{name}": value for name, value in step.parts.items()},
        }
        if step.kept is not None:
            values["Title tokens kept"] = step.kept
        now = time.monotonic()
        if self._then is not None and now > self._then:
            values["pairs per second"] = step.pairs / (now - self._then)
        self._then = now
        for name, value in values.items():
            board.add_scalar(name, value, step.number)

    def epoch(self, epoch: Epoch) -> None:
        path = self._folder / "metrics.jsonl"
        known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        lines = [*known[: epoch.number], json.dumps(asdict(epoch))]
        replace_bytes(path, ("\n".join(lines) + "\n").encode())
        if self._board is None:
            return
        values = asdict(epoch)
        thresholds = values.pop("thresholds") or ()
        values |= {f"threshold of layer {layer}": value for layer, value in enumerate(thresholds)}
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(f"epoch/{name}", value, epoch.number)
        self._then = time.monotonic()  # validating is not training

    def _writer(self, step: int) -> Any:
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return None
            # Events of a run that was stopped later than it goes on are left out.
            self._board = SummaryWriter(str(self._folder), purge_step=step)
        return self._board

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()
