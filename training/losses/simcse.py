"""SimCSE's loss: two readings of a title belong together, other titles do not."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from indexing.errors import TrainingError
from training.losses.batch import logits

NegView = Literal["second", "first"]


class SimCSE(nn.Module):
    """Contrast of two dropout passes t, t+ over the same titles (Gao et al., EMNLP 2021).

        L = mean_i [-k s(t_i, t_i+) + log(sum_{j != i} e^{k s(t_i, n_j)} + e^{k s(t_i, t_i+)})]

    with k the logit scale (1 / tau). The official code takes second readings for negatives,
    n = t+. Chen & Chou (eq. 3) print first ones, n = t (`neg_view` "first"), and a denominator
    without the positive (`include_positive` False): then L is no cross-entropy but the decoupled
    loss of Yeh et al. (ECCV 2022), which may be negative.
    """

    def __init__(self, *, include_positive: bool = True, neg_view: NegView = "second") -> None:
        super().__init__()
        if neg_view not in ("second", "first"):
            raise TrainingError(f"neg_view {neg_view!r}: must be 'second' or 'first'")
        self.include_positive = include_positive
        self.neg_view = neg_view

    def forward(
        self, first: Tensor, second: Tensor, logit_scale: Tensor, *, title_id: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss of a batch; computed in float32, also under autocast; float64 stays.

        Args:
            first, second: unit vectors [n, d] of the two readings.
            logit_scale: 1 / tau; scalar.
            title_id: int64 [n]; titles of equal numbers are no negatives of each other. By
                default all differ.

        Returns:
            `loss`, a scalar with gradient.

        Raises:
            TrainingError: The two are not of one shape.
        """
        if first.shape != second.shape:
            raise TrainingError(
                f"first readings {list(first.shape)} and second ones {list(second.shape)}: give "
                "two of each title"
            )
        across = logits(first, second, logit_scale)
        others = across if self.neg_view == "second" else logits(first, first, logit_scale)
        rows = contrast(
            across.diagonal(),
            others,
            different(title_id, len(first), first.device),
            include_positive=self.include_positive,
        )
        return {"loss": rows.mean()}


def contrast(
    positive: Tensor, others: Tensor, negative: Tensor, *, include_positive: bool
) -> Tensor:
    """For each row -p_i + log of the sum of e^{o_ij} over its negatives and, if it is included,
    of e^{p_i}: [n]. A row without negatives teaches nothing and has loss 0.

    Args:
        positive: scaled similarities [n].
        others: those of candidates [n, m].
        negative: bool [n, m], which of the candidates are negatives.
    """
    terms = others.masked_fill(~negative, torch.finfo(others.dtype).min)
    if include_positive:
        terms = torch.cat([terms, positive[:, None]], dim=1)
    return torch.where(negative.any(1), terms.logsumexp(1) - positive, 0.0)


def different(ids: Tensor | None, count: int, device: torch.device) -> Tensor:
    """Which of `count` rows are not of one number: bool [count, count].

    Raises:
        TrainingError: There is another number of ids than rows.
    """
    own = torch.arange(count, device=device) if ids is None else ids
    if own.shape != (count,):
        raise TrainingError(f"ids {list(own.shape)} for {count} rows: give one a row")
    return own[:, None] != own[None, :]
