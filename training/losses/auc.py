"""The Mann-Whitney statistic of a batch: positives above negatives, whichever query they are of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.losses.base import PairLoss
from training.losses.batch import Scored
from training.losses.infonce import InfoNCE

MOST_PAIRS = 1_000_000


class AUC(PairLoss):
    """L = L_CLIP + c mean_{p, n} softplus((s_n - s_p) / t)

    over all positive cosines s_p and all negative ones s_n of the batch, pooled over queries: a
    smooth bound on 1 - AUC (arXiv 2510.00137). A softmax compares within a query; this makes
    scores of different queries comparable, which thresholds ("no good match") and fusion with
    other features live on. Of more than a million pairs as many are drawn, by `step` alone.
    """

    uses = frozenset({"weight"})

    def __init__(self, share: float = 0.1, temperature: float = 0.1) -> None:
        super().__init__()
        self._clip, self._share, self._temperature = InfoNCE(), share, temperature

    def of(self, batch: Scored) -> Tensor:
        cosines = batch.image @ batch.text.T
        right, wrong = cosines[batch.positive], cosines[batch.negative]
        quality = batch.quality[batch.positive]
        loss = self._clip.of(batch)
        if not len(wrong):
            return loss
        if len(right) * len(wrong) > MOST_PAIRS:
            generator = torch.Generator().manual_seed(batch.step or 0)

            def drawn(count: int) -> Tensor:
                places = torch.randint(count, (MOST_PAIRS,), generator=generator)
                return places.to(cosines.device)

            p, n = drawn(len(right)), drawn(len(wrong))
            gaps, quality = wrong[n] - right[p], quality[p]
        else:
            gaps = wrong[None, :] - right[:, None]
            quality = quality[:, None].expand_as(gaps)
        terms = functional.softplus(gaps / self._temperature)
        return loss + self._share * (terms * quality).sum() / quality.sum()
