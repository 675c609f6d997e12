"""CWCL: negatives count as positives as far as their pictures are alike."""

from __future__ import annotations

import torch
from torch import Tensor

from indexing.errors import TrainingError
from training.losses.base import PairLoss
from training.losses.batch import Scored, upcast
from training.losses.infonce import cross_entropy, mean_over_rows


class CWCL(PairLoss):
    """L = 1/2 [ -mean_i sum_j w_ij log p_ij / sum_j w_ij + CLIP's loss over pictures ]

    with p_ij = softmax_j(k s_ij) and w_ij how alike picture i and the picture of title j are to a
    tower that is not trained. Continuously weighted contrastive loss (Srinivasa et al., NeurIPS
    2023, eq. 3 and 4), where w is (1 + cosine) / 2. Pictures of products are alike all over (.8
    to .9 of 1), which would leave no contrast, so here w = exp((cosine - 1) / sharpness), 1 for
    a picture's own titles. Where a title has several pictures in the batch, their mean counts.
    """

    needs_teacher = True
    uses = frozenset({"weight", "teacher_image"})

    def __init__(self, sharpness: float = 0.1) -> None:
        super().__init__()
        self._sharpness = sharpness

    def of(self, batch: Scored) -> Tensor:
        if batch.teacher_image is None:
            raise TrainingError("CWCL needs teacher_image: vectors of a tower that is not trained")
        soft = self._weights(batch, upcast(batch.teacher_image).to(batch.scores.dtype))
        back = batch.turned()
        return (_one_way(batch, soft) + _one_way(back, back.quality)) / 2

    def _weights(self, batch: Scored, teacher: Tensor) -> Tensor:
        pictures_of = (batch.text_pid[:, None] == batch.image_pid[None, :]).to(teacher.dtype)
        count = pictures_of.sum(1, keepdim=True)
        alike = teacher @ (pictures_of @ teacher / count.clamp_min(1)).T
        near = ((alike - 1) / self._sharpness).exp()
        # A title none of whose pictures is here is a plain negative.
        near = near * (batch.negative & (count.T > 0))
        return torch.where(batch.positive, batch.quality, near)


def _one_way(batch: Scored, targets: Tensor) -> Tensor:
    per_row = cross_entropy(batch.masked_scores(), targets)
    return mean_over_rows(per_row, batch.quality, batch.positive)
