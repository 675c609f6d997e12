"""The training log: TensorBoard where it is installed, JSON lines always."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.loop import Epoch


class TrainingLog:
    """`metrics.jsonl` (one line an epoch) and, with the extra `train`, TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(folder))

    def step(self, number: int, loss: float) -> None:
        if self._board is not None:
            self._board.add_scalar("loss", loss, number)

    def epoch(self, epoch: Epoch) -> None:
        values = asdict(epoch)
        self._lines.write(json.dumps(values) + "\n")
        self._lines.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"epoch/{name}", value, epoch.number)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()
