"""Multi-similarity between the pictures of products, beside InfoNCE."""

from __future__ import annotations

from torch import Tensor

from indexing.errors import MissingDependencyError
from training.losses.base import PairLoss
from training.losses.batch import Scored
from training.losses.infonce import InfoNCE


class MultiSimilarity(PairLoss):
    """L = L_CLIP + c mean_i [ 1/a log(1 + sum_P exp(-a (s - l))) + 1/b log(1 + sum_N exp(b (s - l))) ]

    over pictures i, with P the other pictures of their product and N those of others, of which
    only pairs within .1 of being out of order count: Wang et al. (CVPR 2019), eq. 11 to 15, by
    pytorch-metric-learning, with the paper's a = 2 and b = 40 and l = .5. A batch in which no
    product has two pictures is left to L_CLIP. The terms are small: c is 5.

    Raises:
        MissingDependencyError: pytorch-metric-learning is not installed.
    """  # noqa: E501

    uses = frozenset({"weight"})

    def __init__(self, share: float = 5.0) -> None:
        super().__init__()
        try:
            from pytorch_metric_learning.losses import MultiSimilarityLoss
            from pytorch_metric_learning.miners import MultiSimilarityMiner
        except ImportError as error:
            raise MissingDependencyError(
                "the loss multi-similarity needs pytorch-metric-learning: "
                "run `pip install 'shoplens[train]'`"
            ) from error
        self._clip, self._share = InfoNCE(), share
        self._between = MultiSimilarityLoss(alpha=2, beta=40, base=0.5)
        self._mine = MultiSimilarityMiner(epsilon=0.1)

    def of(self, batch: Scored) -> Tensor:
        loss = self._clip.of(batch)
        same, other = batch.among_pictures()
        if not bool(same.any()):
            return loss
        a1, p, a2, n = self._mine(batch.image, batch.image_pid)
        apart = other[a2, n]  # the miner does not know of pictures that are linked
        chosen = (a1, p, a2[apart], n[apart])
        between: Tensor = self._between(batch.image, batch.image_pid, chosen)
        return loss + self._share * between
