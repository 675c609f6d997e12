"""AdamW as the loop uses it: who decays, who has which learning rate, and when."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from indexing.models.token_pruning import Pruning, TokenPruning
from training.config import RunConfig

# What part of the spread of the scores (the temperatures) a threshold may have to cross.
# Adam moves a threshold by about its rate a step, however small the gradient: where it could
# cross all of the scores it would prune everything before the scores have learned anything.
THRESHOLD_RANGE = 0.1


def make_optimizer(
    model: nn.Module, pruning: TokenPruning | None, config: RunConfig, total: int
) -> torch.optim.AdamW:
    """AdamW for all of `model` that is to be trained, and the thresholds of `pruning`.

    Weight decay is for matrices only: gains, biases, the logit scale and the thresholds go
    without. Each group keeps the peak of its learning rate as `peak`.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        _group("matrices", [p for p in trained if p.ndim >= 2], config.learning_rate),
        _group("vectors", [p for p in trained if p.ndim < 2], config.learning_rate),
    ]
    groups[0]["weight_decay"] = config.weight_decay
    if pruning is not None:
        rate = config.threshold_learning_rate
        rate = threshold_rate(pruning.config, total) if rate is None else rate
        groups.append(_group("thresholds", [pruning.delta], rate))
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, config: RunConfig, step: int, total: int) -> None:
    """Gives each group its learning rate for step `step`, from 0, of `total`."""
    factor = rate_factor(step, total, config.warm_up, config.floor)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def rate_factor(step: int, total: int, warm_up: float, floor: float) -> float:
    """What the peak is multiplied by: a line from `floor` up to 1, then a cosine down to it."""
    rising = max(1, round(warm_up * total))
    if step < rising:
        height = (step + 1) / rising
    else:
        height = 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
    return floor + (1 - floor) * height


def threshold_rate(pruning: Pruning, total: int) -> float:
    """A rate at which thresholds cross what they may have to cross in a fifth of the steps."""
    spread = [t for t, trained in zip(pruning.temperature, pruning.trained, strict=True) if trained]
    return THRESHOLD_RANGE * sum(spread) / max(1, len(spread)) / (0.2 * total)


def _group(name: str, parameters: list[nn.Parameter], peak: float) -> dict[str, Any]:
    return {"name": name, "params": parameters, "peak": peak, "weight_decay": 0.0}
