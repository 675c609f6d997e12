"""Losses between pictures and titles, all called alike."""

from __future__ import annotations

from collections.abc import Callable

from indexing.errors import TrainingError
from training.losses.auc import AUC
from training.losses.base import PairLoss
from training.losses.contrastive_gap import ContrastiveGap
from training.losses.cwcl import CWCL
from training.losses.global_contrast import ISogCLR, SogCLR
from training.losses.infonce import InfoNCE
from training.losses.mixing import MoCHi
from training.losses.multi_similarity import MultiSimilarity
from training.losses.multi_view import MVDHEL, MVInfoNCE
from training.losses.siglip import SigLIP

__all__ = ["LOSSES", "PairLoss", "make_loss"]

# Each is made for a number of pairs, of which some keep a state.
LOSSES: dict[str, Callable[[int], PairLoss]] = {
    "infonce": lambda pairs: InfoNCE(),
    "siglip": lambda pairs: SigLIP(),
    "cua": lambda pairs: ContrastiveGap(),
    "cuaxu": lambda pairs: ContrastiveGap(across=True),
    "mv-infonce": lambda pairs: MVInfoNCE(),
    "mv-dhel": lambda pairs: MVDHEL(),
    "sogclr": SogCLR,
    "isogclr": ISogCLR,
    "cwcl": lambda pairs: CWCL(),
    "mochi": lambda pairs: MoCHi(),
    "multi-similarity": lambda pairs: MultiSimilarity(),
    "auc": lambda pairs: AUC(),
}


def make_loss(name: str, pairs: int) -> PairLoss:
    """The loss of this name, a fresh module.

    Args:
        pairs: of the catalog that is trained on.

    Raises:
        TrainingError: No loss has this name.
    """
    if name not in LOSSES:
        raise TrainingError(f"no loss is called {name!r}: choose one of {', '.join(LOSSES)}")
    return LOSSES[name](pairs)
