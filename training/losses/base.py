"""What a loss between pictures and titles is: all are called alike."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from training.losses.batch import Scored, refuse, scored


class PairLoss(nn.Module):
    """What every loss of `LOSSES` is called with and gives.

    Losses are modules, so that those with a state keep it in buffers and checkpoints save it.
    They know nothing of ranks: the caller gathers embeddings over ranks, with gradients.

    Attributes:
        initial_scale: the logit scale that training from scratch starts with.
        initial_bias: the logit bias likewise; None where the loss has none.
        fixed_scale: the logit scale is a setting and not trained: the loss takes no gradient on
            it, and every training starts from `initial_scale`.
        needs_teacher: asks for `teacher_image`.
        uses: which of `logit_bias`, `weight`, `teacher_image`, `teacher_text` and `queue` change
            the loss; the others are refused.
    """

    initial_scale: float = 1 / 0.07
    initial_bias: float | None = None
    fixed_scale: bool = False
    needs_teacher: bool = False
    uses: ClassVar[frozenset[str]] = frozenset()

    def forward(
        self,
        image_emb: Tensor,
        text_emb: Tensor,
        logit_scale: Tensor,
        *,
        logit_bias: Tensor | None = None,
        image_pid: Tensor | None = None,
        text_pid: Tensor | None = None,
        sample_idx: Tensor | None = None,
        weight: Tensor | None = None,
        ignore: Tensor | None = None,
        teacher_image: Tensor | None = None,
        teacher_text: Tensor | None = None,
        queue: Tensor | None = None,
        step: int | None = None,
        **others: Tensor | None,
    ) -> dict[str, Tensor]:
        """The loss of a batch; what changes a loss is refused by those that have no use for it.

        bfloat16 and float16 are computed in float32, also under autocast; float64 stays.

        Args:
            image_emb: unit vectors [N_i, d].
            text_emb: unit vectors [N_t, d].
            logit_scale: the factor k itself, not its logarithm; scalar.
            logit_bias: scalar, for the losses that have an `initial_bias`.
            image_pid: int64 [N_i]; pictures and titles of equal numbers are positives of each
                other. Without both, picture i and title i are (N_i = N_t).
            text_pid: int64 [N_t].
            sample_idx: int64 [N_i], rows in the data set. Like `step` it asks for nothing:
                each loss takes it, and those that keep a state use it.
            weight: float [N_i], not negative: how good a positive a picture is. Only the
                ratios count for InfoNCE; SigLIP multiplies the terms of positives by it.
            ignore: bool [N_i, N_t], pairs that are neither positives nor negatives.
            teacher_image: unit vectors [N_i, e] of a model that is not trained.
            teacher_text: unit vectors [N_t, e].
            queue: unit vectors [q, d] of earlier batches.
            step: how many steps were taken before.

        Returns:
            `loss`, a scalar with gradient; other keys are detached scalars for the log.

        Raises:
            TrainingError: An argument that this loss has no use for, that it needs and does not
                get, or that does not fit; or no picture of the batch has its title in it.
        """
        optional = {
            "logit_bias": logit_bias,
            "weight": weight,
            "teacher_image": teacher_image,
            "teacher_text": teacher_text,
            "queue": queue,
        }
        refuse(self, {**others, **{k: v for k, v in optional.items() if k not in self.uses}})
        batch = scored(
            image_emb,
            text_emb,
            logit_scale.detach() if self.fixed_scale else logit_scale,
            image_pid=image_pid,
            text_pid=text_pid,
            weight=weight,
            ignore=ignore,
            sample_idx=sample_idx,
            teacher_image=teacher_image,
            queue=queue,
            step=step,
        )
        # At k = 100 a bfloat16 cosine would be off by a logit of .4.
        with torch.autocast(image_emb.device.type, enabled=False):
            return {"loss": self.of(batch)}

    def of(self, batch: Scored) -> Tensor:
        """The loss of a batch that has been checked, a scalar with gradient."""
        raise NotImplementedError
