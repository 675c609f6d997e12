"""SigLIP's loss: each pair of picture and title judged for itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from indexing.errors import TrainingError
from training.losses.base import PairLoss
from training.losses.batch import check_ignore, checked_weight, logits, product_ids, refuse

# Pairs scored at a time: 64 MiB of float32 for each of the few matrices that this takes.
PAIRS_AT_ONCE = 1 << 24


class SigLIP(PairLoss):
    """L = -1/N_i sum_ij log sigmoid(z_ij (k s_ij + b)), z = 1 for positives and -1 for others.

    Zhai et al., ICCV 2023, eq. 1, with z from the product ids, so that a picture may have
    several titles and a title several pictures. Memory does not grow with N_i N_t: pictures
    are taken a few at a time, and scored once more for the gradient.
    """

    initial_scale: float = 10.0
    initial_bias: float | None = -10.0
    uses = frozenset({"logit_bias", "weight"})

    def forward(
        self,
        image_emb: Tensor,
        text_emb: Tensor,
        logit_scale: Tensor,
        *,
        logit_bias: Tensor | None = None,
        image_pid: Tensor | None = None,
        text_pid: Tensor | None = None,
        weight: Tensor | None = None,
        ignore: Tensor | None = None,
        sample_idx: Tensor | None = None,
        step: int | None = None,
        **others: Tensor | None,
    ) -> dict[str, Tensor]:
        """See `PairLoss`; also raises where there is no `logit_bias`."""
        refuse(self, others)
        if logit_bias is None:
            raise TrainingError(
                f"SigLIP needs a logit_bias: train one that starts at {self.initial_bias}"
            )
        image_pid, text_pid = product_ids(image_emb, text_emb, image_pid, text_pid)
        if weight is not None:
            weight = checked_weight(weight, image_emb)
        if ignore is not None:
            check_ignore(ignore, image_emb, text_emb)
        sums = []
        height = max(1, PAIRS_AT_ONCE // len(text_emb))
        for start in range(0, len(image_emb), height):
            rows = slice(start, start + height)
            sums.append(
                checkpoint(
                    _sum_of_terms,
                    image_emb[rows],
                    text_emb,
                    logit_scale,
                    logit_bias,
                    image_pid[rows],
                    text_pid,
                    None if weight is None else weight[rows],
                    None if ignore is None else ignore[rows],
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            )
        return {"loss": torch.stack(sums).sum() / len(image_emb)}


def _sum_of_terms(
    image_emb: Tensor,
    text_emb: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    image_pid: Tensor,
    text_pid: Tensor,
    weight: Tensor | None,
    ignore: Tensor | None,
) -> Tensor:
    scores = logits(image_emb, text_emb, logit_scale)
    scores = scores + logit_bias.to(scores.dtype)
    positive = image_pid[:, None] == text_pid[None, :]
    terms = -functional.logsigmoid(torch.where(positive, scores, -scores))
    if weight is not None:
        terms = torch.where(positive, terms * weight[:, None], terms)
    if ignore is not None:
        terms = terms.masked_fill(ignore, 0)
    return terms.sum()
