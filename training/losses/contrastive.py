"""Multi-positive InfoNCE: CLIP's loss where several pictures may belong to one title."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def multi_positive_info_nce(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor,
    *,
    image_keys: Tensor | None = None,
    text_keys: Tensor | None = None,
) -> Tensor:
    """Symmetric cross-entropy against uniform targets over all positives of a row.

    With Y_ij = 1 where picture i and text j carry the same key and Q the rows of Y made to
    sum to one, L = 1/2 [CE(softmax_j(k s_ij), Q) + CE(softmax_i(k s_ij), Q')]: UniCL's and
    SupCon's "L_out" (the mean stands outside the logarithm). Without keys, CLIP's loss.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        logit_scale: the factor k itself, not its logarithm.
        image_keys: int64 [n], which product or title a picture belongs to.
        text_keys: int64 [m].

    Returns:
        Scalar float32.
    """
    logits = logit_scale.float() * image_embeddings.float() @ text_embeddings.float().T
    if image_keys is None or text_keys is None:
        image_keys = torch.arange(logits.shape[0], device=logits.device)
        text_keys = torch.arange(logits.shape[1], device=logits.device)
    positive = (image_keys[:, None] == text_keys[None, :]).float()
    return (_cross_entropy(logits, positive) + _cross_entropy(logits.T, positive.T)) / 2


def _cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    count = positive.sum(1)
    per_row = -(functional.log_softmax(logits, dim=1) * positive).sum(1) / count.clamp_min(1)
    # A row without any positive in the batch has nothing to be compared with.
    return per_row[count > 0].mean()
