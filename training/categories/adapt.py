"""Adaptation without labels: SimCSE on titles, or ConVIRT on titles and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from indexing.models.categorizer.network import TitleEncoder
from training.categories.checkpoint import Round
from training.categories.config import AdaptConfig
from training.categories.stage import Plan, StepDone, batch, run_stage, steps_of_epoch
from training.config import Precision
from training.data import Pairs, units
from training.gradients import wants_bfloat16
from training.images import FrozenVectors
from training.losses.convirt import ConVIRT
from training.losses.simcse import SimCSE
from training.validation import first_hit_ranks, recall_at

_READ = 256  # titles at a time on validation


class Seen(NamedTuple):
    """Titles beside what a frozen encoder makes of their pictures."""

    pairs: Pairs
    vectors: Tensor  # float32 [n, dim]

    @classmethod
    def of(cls, pairs: Pairs, pictures: FrozenVectors) -> Seen:
        """The pairs whose picture can be read."""
        rows = np.flatnonzero(pictures.usable)
        return cls(pairs.take(rows), pictures.of(rows))


def adapt(
    encoder: TitleEncoder,
    train: Pairs | Seen,
    validation: Seen | None,
    config: AdaptConfig,
    *,
    seed: int,
    precision: Precision = "auto",
    folder: Path | None = None,
    identity: str = "",
    on_step: Callable[[StepDone], None] = lambda step: None,
    on_round: Callable[[Round], None] = lambda done: None,
) -> list[Round]:
    """Adapts `encoder` by ConVIRT to titles beside pictures, by SimCSE to titles alone.

    Titles of one key are no negatives of each other, nor are products that share a picture. What
    projects vectors into the space in which they are compared is thrown away. ConVIRT's best
    epoch is that in which titles of validation find their pictures best; of SimCSE it is the last.

    Args:
        validation: For ConVIRT; None: the last epoch is the best there, too.
        folder, identity: See `run_stage`.

    Raises:
        TrainingError, KeyboardInterrupt: As `run_stage`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stage: _Contrast
        if isinstance(train, Seen):
            stage = _ConVIRT(encoder, train, validation, config, seed, precision)
        else:
            stage = _SimCSE(encoder, train, config, seed, precision)
        steps = config.epochs * steps_of_epoch(stage.count, config.batch_size)
        plan = Plan(steps, config.epochs, seed)
        return run_stage(stage, plan, folder, identity, on_step=on_step, on_round=on_round)


class _Contrast:
    """What both have: titles to unit vectors in the common space."""

    name: str

    def __init__(
        self,
        encoder: TitleEncoder,
        pairs: Pairs,
        others: dict[str, nn.Module],
        config: AdaptConfig,
        seed: int,
        precision: Precision,
    ) -> None:
        self.count = len(pairs)
        self._encoder, self._config, self._seed = encoder, config, seed
        self._device = next(encoder.parameters()).device
        self._half = wants_bfloat16(precision, self._device)
        self._tokens = encoder.tokenizer(pairs.titles)
        self._keys = torch.from_numpy(pairs.keys)
        self._head = projection(encoder.width, config.dim)
        self.module: nn.Module = nn.ModuleDict({"encoder": encoder, "titles": self._head, **others})
        self.module.to(self._device)
        self._scale = torch.tensor(1 / config.temperature, device=self._device)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            [{"params": trained, "peak": config.learning_rate}],
            weight_decay=config.weight_decay,
            fused=True,
        )

    def loss(self, step: int) -> Tensor:
        rows = torch.from_numpy(batch(self.count, self._config.batch_size, self._seed, step))
        return self._loss(rows, self._keys[rows].to(self._device))

    def measure(self) -> tuple[float | None, dict[str, float]]:
        return None, {}

    def _loss(self, rows: Tensor, keys: Tensor) -> Tensor:
        raise NotImplementedError

    def _titles(self, rows: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            vectors = self._head(self._encoder(self._tokens.take(rows)))
        return functional.normalize(vectors.float(), dim=1)


class _SimCSE(_Contrast):
    name = "simcse"

    def __init__(
        self,
        encoder: TitleEncoder,
        pairs: Pairs,
        config: AdaptConfig,
        seed: int,
        precision: Precision,
    ) -> None:
        super().__init__(encoder, pairs, {}, config, seed, precision)
        self._contrast = SimCSE(include_positive=config.include_positive, neg_view=config.neg_view)

    def _loss(self, rows: Tensor, keys: Tensor) -> Tensor:
        # Two passes: what is dropped differs.
        first, second = self._titles(rows), self._titles(rows)
        loss: Tensor = self._contrast(first, second, self._scale, title_id=keys)["loss"]
        return loss


class _ConVIRT(_Contrast):
    name = "convirt"

    def __init__(
        self,
        encoder: TitleEncoder,
        train: Seen,
        validation: Seen | None,
        config: AdaptConfig,
        seed: int,
        precision: Precision,
    ) -> None:
        self._picture_head = projection(train.vectors.shape[1], config.dim)
        others: dict[str, nn.Module] = {"pictures": self._picture_head}
        super().__init__(encoder, train.pairs, others, config, seed, precision)
        # Nor are those that share a picture.
        self._keys = torch.from_numpy(units(train.pairs)[0])
        self._vectors, self._validation = train.vectors, validation
        self._contrast = ConVIRT(alpha=config.alpha, include_positive=config.include_positive)

    def _loss(self, rows: Tensor, keys: Tensor) -> Tensor:
        pictures, titles = self._pictures(self._vectors[rows]), self._titles(rows)
        loss: Tensor = self._contrast(pictures, titles, self._scale, image_pid=keys, text_pid=keys)[
            "loss"
        ]
        return loss

    def measure(self) -> tuple[float | None, dict[str, float]]:
        """Recall of title -> picture: each distinct title once, all pictures as gallery."""
        if self._validation is None:
            return None, {}
        pairs, vectors = self._validation
        _, first = np.unique(pairs.keys, return_index=True)
        tokens = self._encoder.tokenizer([pairs.titles[row] for row in first])
        parts = torch.arange(len(first)).split(_READ)  # type: ignore[no-untyped-call]
        titles = torch.cat([self._head(self._encoder(tokens.take(part))) for part in parts])
        ranks = first_hit_ranks(
            functional.normalize(titles.float(), dim=1).cpu().numpy(),
            self._pictures(vectors).cpu().numpy(),
            pairs.keys[first],
            pairs.keys,
        )
        recalls = recall_at(ranks)
        score = float(np.mean(list(recalls.values())))
        return score, {f"title -> picture R@{k}": value for k, value in recalls.items()}

    def _pictures(self, vectors: Tensor) -> Tensor:
        return functional.normalize(self._picture_head(vectors.to(self._device)), dim=1)


def projection(width: int, dim: int) -> nn.Sequential:
    """From an encoder's vectors into the common space: one hidden layer (ConVIRT, section 3)."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
