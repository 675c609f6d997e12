"""Multi-positive InfoNCE: CLIP's loss where several pictures may belong to one title."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from indexing.errors import TrainingError
from training.losses.batch import check_ignore, checked_weight, logits, product_ids, refuse


class InfoNCE(nn.Module):
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
    stays in the denominators; `ignore` takes a pair out of everything.
    """

    initial_scale: float = 1 / 0.07
    initial_bias: float | None = None  # it would cancel out in the softmax

    def __init__(self, positives: Literal["out", "in"] = "out") -> None:
        super().__init__()
        if positives not in ("out", "in"):
            raise TrainingError(f"positives {positives!r}: must be 'out' or 'in'")
        self.positives = positives

    def forward(
        self,
        image_emb: Tensor,
        text_emb: Tensor,
        logit_scale: Tensor,
        *,
        image_pid: Tensor | None = None,
        text_pid: Tensor | None = None,
        weight: Tensor | None = None,
        ignore: Tensor | None = None,
        sample_idx: Tensor | None = None,
        step: int | None = None,
        **others: Tensor | None,
    ) -> dict[str, Tensor]:
        """See `training.losses.PairLoss`; also raises where the batch has no positive pair."""
        refuse(self, others)
        image_pid, text_pid = product_ids(image_emb, text_emb, image_pid, text_pid)
        scores = logits(image_emb, text_emb, logit_scale)
        positive = image_pid[:, None] == text_pid[None, :]
        if ignore is not None:
            check_ignore(ignore, image_emb, text_emb)
            positive = positive & ~ignore
            # Not -inf, which would make NaN of a row in which every pair is ignored.
            scores = scores.masked_fill(ignore, torch.finfo(scores.dtype).min)
        quality = positive.to(scores.dtype)
        if weight is not None:
            quality = quality * checked_weight(weight, image_emb)[:, None]
        if not bool(quality.any()):
            raise TrainingError(
                "no picture of the batch has its title in it: check image_pid, text_pid, "
                "weight and ignore"
            )
        over_titles = self._one_way(scores, quality, positive)
        over_pictures = self._one_way(scores.T, quality.T, positive.T)
        return {"loss": (over_titles + over_pictures) / 2}

    def _one_way(self, scores: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        log_p = scores.log_softmax(1)
        total = quality.sum(1)
        divisor = total.clamp_min(torch.finfo(total.dtype).tiny)
        if self.positives == "out":
            per_row = -(log_p * quality).sum(1) / divisor
        else:
            lowest = torch.finfo(scores.dtype).min
            terms = (log_p + quality.log()).masked_fill(quality == 0, lowest)
            per_row = divisor.log() - terms.logsumexp(1)
        row_weight = total / positive.sum(1).clamp_min(1)
        return (per_row * row_weight).sum() / row_weight.sum()
