"""Settings of `shoplens train albef`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from training.config import RunConfig


class AlbefTraining(RunConfig):
    """A run is repeated exactly by the same settings.

    `chunk` belongs to what is computed: hard negatives are looked for within a chunk.
    """

    how: ClassVar[frozenset[str]] = RunConfig.how - {"chunk"}

    batch_size: int = Field(default=64, ge=2)
    # Whether texts are pruned by the cross-attentions alone, or by all attentions.
    prune: Literal["cross", "all"] = "all"
    # Whose key scores a token: [CLS], or the mean over all keys.
    key: Literal["first", "mean"] = "first"
    # Embeddings of earlier batches that are negatives, too. Never more than there are pairs.
    queue_size: int = Field(default=65_536, ge=0)
    # How much of the slow copy stays in a step.
    momentum: float = Field(default=0.995, ge=0, lt=1)
    # Share of the targets that the slow copy gives; it rises from 0 over the first epoch.
    distillation: float = Field(default=0.4, ge=0, lt=1)
    # Share of the steps over which the negatives for matching go from any to hard ones. A
    # fusion encoder that cannot tell apart anything learns nothing from hard ones.
    hardening: float = Field(default=0.0, ge=0, le=1)
    # Put mixtures of the hardest negatives among the keys of the contrastive loss (MoCHi), after
    # the first tenth of the steps.
    hard_mixing: bool = False
    # Share of the tokens that are hidden for the model to guess.
    masked_share: float = Field(default=0.15, ge=0, lt=1)
