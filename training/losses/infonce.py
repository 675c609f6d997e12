"""Multi-positive InfoNCE: CLIP's loss where several pictures may belong to one title."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from indexing.errors import TrainingError
from training.losses.base import PairLoss
from training.losses.batch import Scored


class InfoNCE(PairLoss):
    """Symmetric cross-entropy over pictures and over titles, with any number of positives.

    With p_ij = softmax_j(k s_ij), P(i) the positives of row i, and in the other direction
    likewise,

        out: L_i = -1/|P(i)| sum_{j in P(i)} log p_ij       in: L_i = -log 1/|P(i)| sum p_ij

    are eq. 2 and 3 of SupCon (Khosla et al., NeurIPS 2020), and L is the mean over the rows
    that have a positive and over both directions. `out` is UniCL's, too. With `in`, one easy
    picture of a product satisfies the loss. With one positive a row both are CLIP's loss.

    Weights make 1/|P(i)| shares in proportion to the quality of the pictures, and the mean
    over rows one in proportion to the mean quality of their positives. So pairs one to one
    weigh the same in both directions, and equal weights are none. A positive of weight 0
    stays in the denominators; `ignore` takes a pair out of everything. A bias would cancel out
    in the softmax.
    """

    uses = frozenset({"weight"})

    def __init__(self, positives: Literal["out", "in"] = "out") -> None:
        super().__init__()
        if positives not in ("out", "in"):
            raise TrainingError(f"positives {positives!r}: must be 'out' or 'in'")
        self.positives = positives

    def of(self, batch: Scored) -> Tensor:
        return (self._one_way(batch) + self._one_way(batch.turned())) / 2

    def _one_way(self, batch: Scored) -> Tensor:
        """Of the pictures of a batch among its titles."""
        scores, quality, positive = batch.masked_scores(), batch.quality, batch.positive
        if self.positives == "out":
            return mean_over_rows(cross_entropy(scores, quality), quality, positive)
        log_p, total = scores.log_softmax(1), quality.sum(1)
        lowest = torch.finfo(scores.dtype).min
        terms = (log_p + quality.log()).masked_fill(quality == 0, lowest)
        divisor = total.clamp_min(torch.finfo(total.dtype).tiny)
        return mean_over_rows(divisor.log() - terms.logsumexp(1), quality, positive)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """-sum_j q_ij log softmax_j(scores_ij), [n], with q the rows of `targets` over their sums.

    Args:
        scores, targets: [n, m]; a row without targets gives 0.
    """
    total = targets.sum(1).clamp_min(torch.finfo(targets.dtype).tiny)
    return -(scores.log_softmax(1) * targets).sum(1) / total


def mean_over_rows(per_row: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
    """The mean of [n] over rows that have a positive, by the mean quality of their positives."""
    row_weight = quality.sum(1) / positive.sum(1).clamp_min(1)
    return (per_row * row_weight).sum() / row_weight.sum()
