"""Losses between pictures and titles, all called alike."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from indexing.errors import TrainingError
from training.losses.infonce import InfoNCE
from training.losses.siglip import SigLIP


class PairLoss(Protocol):
    """What every loss of `LOSSES` is called with and gives.

    Losses are modules, so that those with a state keep it in buffers and checkpoints save it.
    They know nothing of ranks: the caller gathers embeddings over ranks, with gradients.

    Attributes:
        initial_scale: the logit scale that training from scratch starts with.
        initial_bias: the logit bias likewise; None where the loss has none.
    """

    initial_scale: float
    initial_bias: float | None

    def __call__(
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
            TrainingError: An argument that this loss has no use for, or that does not fit.
        """


LOSSES: dict[str, type[InfoNCE] | type[SigLIP]] = {"infonce": InfoNCE, "siglip": SigLIP}


def make_loss(name: str) -> InfoNCE | SigLIP:
    """The loss of this name, a fresh module that is a PairLoss.

    Raises:
        TrainingError: No loss has this name.
    """
    if name not in LOSSES:
        raise TrainingError(f"no loss is called {name!r}: choose one of {', '.join(LOSSES)}")
    return LOSSES[name]()
