"""ConVIRT's loss: a title and the picture of its product belong together."""

from __future__ import annotations

from torch import Tensor

from indexing.errors import TrainingError
from training.losses.base import PairLoss
from training.losses.batch import Scored
from training.losses.simcse import contrast

ALPHA = 0.75  # of title -> picture, as Zhang et al. and Chen & Chou have it


class ConVIRT(PairLoss):
    """Contrast between titles t and pictures v (Zhang et al., MLHC 2022; Chen & Chou, eq. 6-8).

        L = mean_i [alpha L_i^{t->v} + (1 - alpha) L_i^{v->t}]
        L_i^{t->v} = -k s(t_i, v_i) + log(sum_{j != i} e^{k s(t_i, v_j)} + e^{k s(t_i, v_i)})

    and likewise for v->t. Chen & Chou print the denominator without the positive
    (`include_positive` False), see `SimCSE`. With alpha 1/2 and the positive it is CLIP's loss.
    Picture i and title i are always each other's only positive: other pairs of equal numbers are
    neither positives nor negatives.
    """

    initial_scale: float = 10.0  # 1 / tau

    def __init__(self, *, alpha: float = ALPHA, include_positive: bool = True) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise TrainingError(f"alpha {alpha}: must be between 0 and 1")
        self.alpha = alpha
        self.include_positive = include_positive

    def of(self, batch: Scored) -> Tensor:
        if batch.image.shape != batch.text.shape:
            raise TrainingError(
                f"{len(batch.image)} pictures and {len(batch.text)} titles are not one to one"
            )
        to_titles, to_pictures = (
            contrast(
                own.scores.diagonal(),
                own.scores,
                own.negative,
                include_positive=self.include_positive,
            )
            for own in (batch, batch.turned())
        )
        return (self.alpha * to_pictures + (1 - self.alpha) * to_titles).mean()
