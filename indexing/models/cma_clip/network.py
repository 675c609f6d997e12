"""CMA-CLIP on top of two towers: sequence-wise and modality-wise attention, and a head each.

    patches, tokens -> transformer over both -> I, T -> f = l I + (1 - l) T -> head, per attribute

Liu et al., arXiv 2112.03562, sections 3.2 and 3.3; what they leave open is settled as in the
docstrings here.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

_FAR = -1e9  # a logit that softmax makes 0


class CmaConfig(BaseModel):
    """The parts of the network. Its width is that of the towers' vectors.

    Attributes:
        layers, heads: Of the transformer over patches and tokens (12 and 8 in the paper).
        dropout: In it and in the heads.
        sequence_wise: False leaves the transformer out: the towers' own vectors are weighed.
        modality_wise: False weighs picture and title alike.
        shared_weight: False gives each modality a vector of its own to be scored by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(default=12, ge=1)
    heads: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    sequence_wise: bool = True
    modality_wise: bool = True
    shared_weight: bool = True


class Sizes(BaseModel):
    """What the network is built for: the towers' width, and the classes of each attribute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(ge=1)
    classes: tuple[int, ...]

    @model_validator(mode="after")
    def _some(self) -> Sizes:
        if not self.classes or min(self.classes) < 2:
            raise ValueError("each attribute needs two classes or more, and there must be one")
        return self


class Inputs(NamedTuple):
    """A batch of n products.

    A row without a picture may hold any numbers in `picture`, one without a title the tokens of
    an empty text.
    """

    picture: Tensor  # float [n, 1 + patches, dim], see picture_tokens
    text: Tensor  # float [n, length, dim], see text_tokens
    ends: Tensor  # int64 [n], the place of the token that stands for the text
    has_picture: Tensor  # bool [n]
    has_text: Tensor  # bool [n]


class Outputs(NamedTuple):
    """What comes out, attribute by attribute."""

    logits: list[Tensor]  # float [n, classes] each
    picture_weight: Tensor  # float [n, attributes]: lambda, the weight of the picture


class CmaNetwork(nn.Module):
    """All of CMA-CLIP but the towers."""

    def __init__(self, sizes: Sizes, config: CmaConfig) -> None:
        """Raises ValueError where the heads do not divide the width."""
        super().__init__()
        dim = sizes.dim
        if config.sequence_wise and dim % config.heads:
            raise ValueError(f"{config.heads} heads do not divide a width of {dim}")
        self.config = config
        self.sequence = SequenceWise(dim, config) if config.sequence_wise else None
        self._tasks = nn.ModuleList(
            Task(dim, count, config.dropout, shared=config.shared_weight) for count in sizes.classes
        )

    @property
    def tasks(self) -> list[Task]:
        """One for each attribute."""
        return [cast("Task", task) for task in self._tasks]

    def forward(self, inputs: Inputs) -> Outputs:
        if self.sequence is None:
            picture = inputs.picture[:, 0]
            text = inputs.text[torch.arange(len(inputs.ends), device=picture.device), inputs.ends]
        else:
            picture, text = self.sequence(inputs)
        logits, weights = [], []
        for task in self.tasks:
            found, weight = task(
                picture, text, inputs.has_picture, inputs.has_text, weigh=self.config.modality_wise
            )
            logits.append(found)
            weights.append(weight)
        return Outputs(logits, torch.stack(weights, dim=1))


class SequenceWise(nn.Module):
    """Sequence-wise attention: each patch and each token reads all others.

    A pre-norm transformer with a norm behind it, GELU and four times the width inside. Positions
    are in the towers' states already; a learned vector tells patches from tokens. A missing
    title is its start and end tokens marked by `no_text` in place of that; a missing picture is
    the one vector `no_picture`, without patches.
    """

    def __init__(self, dim: int, config: CmaConfig) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            dim,
            config.heads,
            4 * dim,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.layers, nn.LayerNorm(dim), enable_nested_tensor=False
        )
        for own in self.encoder.layers:
            _initialise(cast("nn.TransformerEncoderLayer", own), dim, config.layers)
        self.kind = nn.Parameter(0.02 * torch.randn(2, dim))  # of patches, of tokens
        self.no_text = nn.Parameter(0.02 * torch.randn(dim))
        self.no_picture = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The picture's and the title's vector, I and T: float [n, dim] each."""
        states, hidden = self.joined(inputs)
        states = self.encoder(states, src_key_padding_mask=hidden)
        ends = inputs.picture.shape[1] + inputs.ends
        return states[:, 0], states[torch.arange(len(ends), device=ends.device), ends]

    def joined(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Patches and tokens in one row, float [n, s, dim], and what nobody may read of it: what
        follows the end of a title, and the patches of a missing picture, bool [n, s]."""
        has_picture = inputs.has_picture[:, None, None]
        patches = torch.where(has_picture, inputs.picture, self.no_picture) + self.kind[0]
        mark = torch.where(inputs.has_text[:, None], self.kind[1], self.no_text)
        tokens = inputs.text + mark[:, None]
        no_patch = ~inputs.has_picture[:, None].expand(-1, patches.shape[1]).clone()
        no_patch[:, 0] = False
        places = torch.arange(tokens.shape[1], device=tokens.device)
        padding = places > inputs.ends[:, None]
        return torch.cat([patches, tokens], dim=1), torch.cat([no_patch, padding], dim=1)

    def attention(self, inputs: Inputs) -> Tensor:
        """How far each place reads each other, mean over heads and layers: float [n, s, s]."""
        states, hidden = self.joined(inputs)
        maps = []
        for layer in self.encoder.layers:
            normed = layer.norm1(states)
            _, weights = layer.self_attn(normed, normed, normed, key_padding_mask=hidden)
            maps.append(weights)
            states = layer(states, src_key_padding_mask=hidden)
        return torch.stack(maps).mean(0)


def _initialise(layer: nn.TransformerEncoderLayer, dim: int, layers: int) -> None:
    """As CLIP starts its text tower: what is added to the states is small at first, so that I and
    T begin near the towers' own vectors."""
    nn.init.normal_(layer.self_attn.in_proj_weight, std=dim**-0.5)
    nn.init.normal_(layer.linear1.weight, std=(2 * dim) ** -0.5)
    for last in (layer.self_attn.out_proj, layer.linear2):
        nn.init.normal_(last.weight, std=(2 * dim * layers) ** -0.5)
        nn.init.zeros_(last.bias)


class Task(nn.Module):
    """One attribute: keyless attention over the two modalities, and a classifier.

    lambda = exp(w.I) / (exp(w.I) + exp(w.T)) with one vector w for both, 0 at first, so that
    both start with the same weight; f = lambda I + (1 - lambda) T (section 3.3). A row that lacks
    one of them rests on the other alone.
    """

    def __init__(self, dim: int, classes: int, dropout: float, *, shared: bool) -> None:
        super().__init__()
        self.classes = classes
        self.weight = nn.Parameter(torch.zeros(1 if shared else 2, dim))
        self.head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, classes)
        )

    def forward(
        self, picture: Tensor, text: Tensor, has_picture: Tensor, has_text: Tensor, *, weigh: bool
    ) -> tuple[Tensor, Tensor]:
        """The logits, float [n, classes], and lambda, float [n].

        Args:
            picture, text: float [n, dim].
            has_picture, has_text: bool [n]; one of them holds.
            weigh: False takes 1/2 for lambda.
        """
        scores = torch.stack([picture @ self.weight[0], text @ self.weight[-1]], dim=1)
        scores = scores if weigh else torch.zeros_like(scores)
        missing = ~torch.stack([has_picture, has_text], dim=1)
        weights = scores.float().masked_fill(missing, _FAR).softmax(dim=1)
        fused = weights[:, :1].to(picture) * picture + weights[:, 1:].to(text) * text
        return self.head(fused), weights[:, 0]


def initial(sizes: Sizes, config: CmaConfig, seed: int) -> CmaNetwork:
    """An untrained network, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CmaNetwork(sizes, config)
