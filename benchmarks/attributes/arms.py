"""What CMA-CLIP is compared with: its ablations, one modality alone, CLIP itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from indexing.attributes.vocabulary import Floats
from indexing.errors import BenchmarkError
from indexing.models.clip import ClipEncoder
from indexing.models.cma_clip.network import (
    CmaConfig,
    CmaNetwork,
    Inputs,
    Outputs,
    Sizes,
    Task,
    initial,
)

ARMS = {
    "full": "CMA-CLIP",
    "no modality-wise": "CMA-CLIP that weighs picture and title alike",
    "no sequence-wise": "CMA-CLIP without the transformer over patches and tokens",
    "neither": "CMA-CLIP without both attentions",
    "linear head": "fine-tuned CLIP: both vectors side by side, and a linear classifier",
    "picture only": "CMA-CLIP that never sees a title",
    "text only": "CMA-CLIP that never sees a picture",
}
ZERO_SHOT = "zero-shot"  # nothing is trained
PROMPT = "a photo of {} product"


class OneModality(CmaNetwork):
    """CMA-CLIP that is shown one modality, whatever there is."""

    def __init__(self, sizes: Sizes, config: CmaConfig, *, picture: bool) -> None:
        super().__init__(sizes, config)
        self._picture = picture

    def forward(self, inputs: Inputs) -> Outputs:
        none = torch.zeros_like(inputs.has_text)
        if self._picture:
            blank = inputs.text.new_zeros(len(none), 1, inputs.text.shape[2])
            first = torch.zeros_like(inputs.ends)
            return super().forward(Inputs(inputs.picture, blank, first, ~none, none))
        blank = inputs.picture.new_zeros(len(none), 1, inputs.picture.shape[2])
        return super().forward(Inputs(blank, inputs.text, inputs.ends, none, ~none))


class LinearHead(CmaNetwork):
    """A linear classifier on both towers' vectors, side by side."""

    def __init__(self, sizes: Sizes, config: CmaConfig) -> None:
        super().__init__(sizes, config)
        self._tasks = nn.ModuleList(_Linear(sizes.dim, count) for count in sizes.classes)


class _Linear(Task):
    """A learned vector stands for what is missing."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes, 0.0, shared=True)
        self.head = nn.Sequential(nn.Linear(2 * dim, classes))
        self.missing = nn.Parameter(torch.zeros(2, dim))

    def forward(
        self, picture: Tensor, text: Tensor, has_picture: Tensor, has_text: Tensor, *, weigh: bool
    ) -> tuple[Tensor, Tensor]:
        picture = torch.where(has_picture[:, None], picture, self.missing[0])
        text = torch.where(has_text[:, None], text, self.missing[1])
        return self.head(torch.cat([picture, text], dim=1)), torch.full_like(picture[:, 0], 0.5)


def make_arm(name: str, sizes: Sizes, config: CmaConfig, seed: int) -> CmaNetwork:
    """The untrained network of an arm.

    Raises:
        BenchmarkError: There is no such arm.
    """
    changes = {
        "no modality-wise": {"modality_wise": False},
        "no sequence-wise": {"sequence_wise": False},
        "neither": {"modality_wise": False, "sequence_wise": False},
        "linear head": {"modality_wise": False, "sequence_wise": False},
    }
    own = config.model_copy(update=changes.get(name, {}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name in ("picture only", "text only"):
            return OneModality(sizes, own, picture=name == "picture only")
        if name == "linear head":
            return LinearHead(sizes, own)
    if name not in ARMS:
        raise BenchmarkError(f"unknown arm {name!r}: the arms are {', '.join(ARMS)}")
    return initial(sizes, own, seed)


def zero_shot(
    encoder: ClipEncoder, pictures: Floats, values: Sequence[Sequence[str]]
) -> list[Floats]:
    """Logits of CLIP as it comes, float32 [n, values] for each attribute: the cosine of picture
    and prompt times the logit scale (Radford et al. 2021, section 3.1).

    Args:
        pictures: float32 [n, dim], the pictures' vectors, of any length.
        values: Of each attribute.
    """
    scale = float(encoder.model.logit_scale.detach().exp())
    unit = functional.normalize(torch.from_numpy(pictures), dim=1).numpy()
    found = []
    for own in values:
        prompts = encoder.embed_texts([PROMPT.format(value.lower()) for value in own])
        found.append((scale * unit @ prompts.T).astype(np.float32))
    return found
