"""ConVIRT's loss: a title and the picture of its product belong together."""

from __future__ import annotations

from torch import Tensor, nn

from indexing.errors import TrainingError
from training.losses.batch import check_ignore, logits, product_ids, refuse
from training.losses.simcse import contrast

ALPHA = 0.75  # of title -> picture, as Zhang et al. and Chen & Chou have it


class ConVIRT(nn.Module):
    """Contrast between titles t and pictures v (Zhang et al., MLHC 2022; Chen & Chou, eq. 6-8).

        L = mean_i [alpha L_i^{t->v} + (1 - alpha) L_i^{v->t}]
        L_i^{t->v} = -k s(t_i, v_i) + log(sum_{j != i} e^{k s(t_i, v_j)} + e^{k s(t_i, v_i)})

    and likewise for v->t. Chen & Chou print the denominator without the positive
    (`include_positive` False), see `SimCSE`. With alpha 1/2 and the positive it is CLIP's loss.
    """

    initial_scale: float = 10.0  # 1 / tau
    initial_bias: float | None = None

    def __init__(self, *, alpha: float = ALPHA, include_positive: bool = True) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise TrainingError(f"alpha {alpha}: must be between 0 and 1")
        self.alpha = alpha
        self.include_positive = include_positive

    def forward(
        self,
        image_emb: Tensor,
        text_emb: Tensor,
        logit_scale: Tensor,
        *,
        image_pid: Tensor | None = None,
        text_pid: Tensor | None = None,
        ignore: Tensor | None = None,
        sample_idx: Tensor | None = None,
        step: int | None = None,
        **others: Tensor | None,
    ) -> dict[str, Tensor]:
        """See `training.losses.PairLoss`, but that picture i and title i are always each other's
        only positive: other pairs of equal numbers are neither positives nor negatives."""
        refuse(self, others)
        if image_emb.shape != text_emb.shape:
            raise TrainingError(
                f"pictures {list(image_emb.shape)} and titles {list(text_emb.shape)} are not one "
                "to one"
            )
        image_pid, text_pid = product_ids(image_emb, text_emb, image_pid, text_pid)
        scores = logits(image_emb, text_emb, logit_scale)
        negative = image_pid[:, None] != text_pid[None, :]
        negative.fill_diagonal_(False)
        if ignore is not None:
            check_ignore(ignore, image_emb, text_emb)
            negative &= ~ignore
        positive = scores.diagonal()
        to_titles = contrast(positive, scores, negative, include_positive=self.include_positive)
        to_pictures = contrast(
            positive, scores.T, negative.T, include_positive=self.include_positive
        )
        return {"loss": (self.alpha * to_pictures + (1 - self.alpha) * to_titles).mean()}
