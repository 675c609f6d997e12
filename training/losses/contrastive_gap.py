"""CUA: CLIP's loss with what closes the gap between the two kinds of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.base import PairLoss
from training.losses.batch import Scored
from training.losses.infonce import InfoNCE


class ContrastiveGap(PairLoss):
    """L = L_CLIP + a mean |x_i - y_i|^2 + u (U(x) + U(y)) / 2 [+ u U(x, y) with `across`].

    U(x) = log mean exp(-2 |x_i - x_j|^2) over pairs of pictures of two products (of titles
    likewise), U(x, y) over pictures and titles of two products. CUA and, with the last term,
    CUAXU of Fahim et al. (arXiv 2405.18570, section 5), after alignment and uniformity of
    Wang and Isola (ICML 2020). U(x) is what spreads the pictures over the sphere, which
    picture-to-picture search lives on. With one product in a batch U is 0.
    """

    uses = frozenset({"weight"})

    def __init__(self, *, across: bool = False, align: float = 1.0, uniform: float = 1.0) -> None:
        super().__init__()
        self._clip = InfoNCE()
        self._across, self._align, self._uniform = across, align, uniform

    def of(self, batch: Scored) -> Tensor:
        cosines = batch.image @ batch.text.T
        apart = (2 - 2 * cosines) * batch.quality
        loss = self._clip.of(batch) + self._align * apart.sum() / batch.quality.sum()
        pictures = uniformity(batch.image @ batch.image.T, batch.among_pictures()[1])
        titles = uniformity(batch.text @ batch.text.T, batch.among_titles()[1])
        loss = loss + self._uniform * (pictures + titles) / 2
        if self._across:
            loss = loss + self._uniform * uniformity(cosines, batch.negative)
        return loss


def uniformity(cosines: Tensor, counted: Tensor) -> Tensor:
    """log mean exp(-2 |x - y|^2) over the pairs that count; 0 where none does.

    Args:
        cosines: of unit vectors, [n, m]; counted: bool [n, m].
    """
    if not bool(counted.any()):
        return cosines.sum() * 0
    terms = (4 * cosines - 4)[counted]
    return terms.logsumexp(0) - torch.tensor(float(len(terms)), dtype=terms.dtype).log()
