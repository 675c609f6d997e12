"""What is known of a run: after each step, after each epoch, and so far."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """What is known after a step; `number` counts all steps of the run from 1."""

    number: int
    total: int
    loss: float  # with the penalty
    penalty: float
    kept: float | None  # share of title tokens kept, where tokens are pruned
    pairs: int
    logit_scale: float
    gradient_norm: float
    rates: dict[str, float]  # learning rates of the parameter groups
    parts: dict[str, float] = field(default_factory=dict)  # losses that `loss` sums up


@dataclass(frozen=True)
class Epoch:
    """What is known at the end of an epoch; recalls are title -> picture on validation.

    Losses, penalty and kept share are means over its steps. Recalls are None where nothing
    is held out, `kept` and `thresholds` are so without token pruning. A threshold is None for
    a layer that does not prune.
    """

    number: int
    loss: float
    recall_1: float | None
    recall_5: float | None
    recall_10: float | None
    logit_scale: float
    penalty: float = 0.0
    kept: float | None = None
    thresholds: tuple[float | None, ...] | None = None

    @property
    def recall(self) -> float | None:
        """Mean of the three, by which epochs are compared: one alone is noisier."""
        if self.recall_1 is None or self.recall_5 is None or self.recall_10 is None:
            return None
        return (self.recall_1 + self.recall_5 + self.recall_10) / 3


@dataclass
class Progress:
    """How far a run has come. `running` is (loss, penalty, kept) of the epoch's steps so far."""

    done: int = 0  # steps, also of epochs behind it
    history: list[Epoch] = field(default_factory=list)
    running: list[tuple[float, float, float | None]] = field(default_factory=list)

    def is_best(self) -> bool:
        """Whether no epoch was better than the last; without validation each is."""
        last = self.history[-1].recall
        return last is None or last >= max(epoch.recall or 0.0 for epoch in self.history)
