"""Fine-tuning on titles of known category: the encoder and a linear classifier on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from indexing.models.categorizer.network import TitleClassifier, TitleEncoder
from training.categories.checkpoint import Round
from training.categories.config import TuneConfig
from training.categories.data import Examples
from training.categories.stage import Plan, StepDone, batch, run_stage, steps_of_epoch
from training.config import Precision
from training.gradients import wants_bfloat16


def finetune(
    encoder: TitleEncoder,
    train: Examples,
    validation: Examples,
    classes: int,
    config: TuneConfig,
    *,
    seed: int,
    precision: Precision = "auto",
    folder: Path | None = None,
    identity: str = "",
    on_step: Callable[[StepDone], None] = lambda step: None,
    on_round: Callable[[Round], None] = lambda done: None,
) -> tuple[TitleClassifier, list[Round]]:
    """Trains `encoder` and a new classifier on it; both hold the best round, by accuracy on
    validation.

    Args:
        train, validation: Each of known category.
        folder, identity: See `run_stage`.

    Raises:
        TrainingError, KeyboardInterrupt: As `run_stage`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TitleClassifier(encoder, classes).to(next(encoder.parameters()).device)
        stage = _Tuning(network, train, validation, config, seed, precision)
        steps = config.steps or config.epochs * steps_of_epoch(len(train), config.batch_size)
        plan = Plan(steps, min(config.epochs, steps), seed)
        history = run_stage(stage, plan, folder, identity, on_step=on_step, on_round=on_round)
    return network, history


class _Tuning:
    name = "fine-tuning"

    def __init__(
        self,
        network: TitleClassifier,
        train: Examples,
        validation: Examples,
        config: TuneConfig,
        seed: int,
        precision: Precision,
    ) -> None:
        self.module: nn.Module = network
        self._network, self._config, self._seed = network, config, seed
        self._device = next(network.parameters()).device
        self._half = wants_bfloat16(precision, self._device)
        self._tokens = network.encoder.tokenizer(train.pairs.titles)
        self._labels = torch.from_numpy(train.labels)
        self._held_out = network.encoder.tokenizer(validation.pairs.titles)
        self._answers = validation.labels
        rate = config.learning_rate
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            [
                {"params": list(network.encoder.parameters()), "peak": rate},
                {"params": list(network.head.parameters()), "peak": rate * config.head_rate},
            ],
            weight_decay=config.weight_decay,
            fused=True,
        )

    def loss(self, step: int) -> Tensor:
        count, size = len(self._labels), self._config.batch_size
        rows = torch.from_numpy(batch(count, size, self._seed, step))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = self._network(self._tokens.take(rows))
        return functional.cross_entropy(logits.float(), self._labels[rows].to(self._device))

    def measure(self) -> tuple[float | None, dict[str, float]]:
        predicted = self._network.read(self._held_out).argmax(1).numpy()
        accuracy = float(np.mean(predicted == self._answers))
        return accuracy, {"accuracy": accuracy}
