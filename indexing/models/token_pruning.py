"""Online token pruning: the masks, thresholds and penalty of MML-TP (Hu et al. 2024).

While a model is fine-tuned on noisy titles, text layer l scores each token (eq. 1 and 2), and
a learned threshold turns the score into a mask (eq. 3). A penalty on the mean mask (eq. 4)
raises the thresholds, so tokens that do not help fade out. What the paper leaves open is an
option here, and `Pruning` refuses what cannot work.

Everything from the scores to the masks is float32, also under autocast: in bfloat16 one step
of a threshold is rounded away.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator
from torch import Tensor, nn

# How far a pruned key may stand above the kept ones before its gradient stops growing (1e6).
_FURTHEST = math.log(1e6)
_MOST_PROBABILITY = 0.95

Score = Literal["post", "pre", "recv"]
Key = Literal["first", "eot", "eot_query", "mean"]
# A score this far below its threshold still reaches it. Scores of one token differ in their
# last digits with the batch it is in, and words that many titles share are often the very
# ones that a calibrated threshold lies on.
_ROUNDING: dict[Score, float] = {"pre": 1e-4, "post": 1e-5, "recv": 1e-5}


class Pruning(BaseModel):
    """How tokens are scored, masked and priced; what a model folder's config.json holds.

    Attributes:
        score: `pre` is q.k/sqrt(d) as eq. 1 is printed, `post` the attention probability,
            `recv` the attention that a token receives, mean over queries (LTP, Kim et al. 2022).
        key: The key whose score counts: the first token (eq. 2), the end-of-text token,
            the mean over the valid keys; `eot_query` is the attention from end-of-text to the
            token.
        base: Thresholds at the start, one a layer; -inf: the layer does not prune.
        trained: Which thresholds are learned. The others are not penalised either.
        temperature: T of eq. 3, one a layer.
        straight_through: Masks are 0 or 1, with the gradient of the soft ones.
        cumulative: A token that was pruned stays so in all later layers: masks multiply. A
            token that two layers prune gives the later one no gradient, as that one could not
            bring it back alone. The first of them always has one, by its own keys or features,
            so layers open in turn. Gradients for both, as of a minimum, woke such tokens
            sooner and ended with a higher loss in toy towers, so the product stays as it is.
        multiply: Multiply a token's features by its mask after the layer (as printed).
        keys: Take pruned tokens out of the keys, in the layer that scored them and all later
            ones (`same`), or in the later ones (`next`).
        weight: Lambda, the price of a token.
        norm: Whether the penalty is summed over layers (as in LTP's code) or averaged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: Score
    key: Key
    base: tuple[float, ...]
    trained: tuple[bool, ...]
    temperature: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    straight_through: bool
    cumulative: bool
    multiply: bool
    keys: Literal["none", "next", "same"]
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    norm: Literal["sum_layers", "mean_layers"] = "sum_layers"

    @model_validator(mode="after")
    def _possible(self) -> Pruning:
        if not len(self.base) == len(self.trained) == len(self.temperature):
            raise ValueError("base, trained and temperature need one value a layer each")
        if any(math.isnan(value) or value == math.inf for value in self.base):
            raise ValueError(f"thresholds {self.base}: must be numbers or -inf")
        check_pair(self.score, self.key)
        if not self.multiply and self.keys == "none":
            raise ValueError("neither multiply nor keys: the masks would have no effect")
        if self.keys != "none" and not self.cumulative:
            raise ValueError(
                "keys without cumulative: a token out of the keys would come back in the next layer"
            )
        return self

    @field_serializer("base", when_used="json")
    def _base(self, base: tuple[float, ...]) -> list[float | str]:
        return [value if math.isfinite(value) else str(value) for value in base]


def check_pair(score: Score, key: Key) -> None:
    """Raises ValueError where the score is not defined on the key, or is the same for all."""
    if score == "post" and key == "mean":
        raise ValueError(
            "score post with key mean: attention probabilities sum to 1, so every token "
            "scores the same; use score pre, or recv"
        )
    if score == "post" and key == "eot":
        raise ValueError(
            "score post with key eot: in a causal tower no token attends to the "
            "end-of-text token, so every score is 0; use score pre, or key eot_query"
        )
    if score == "recv" and key != "mean":
        raise ValueError(f"score recv with key {key}: recv is a mean over all; use mean")


def paper_pruning(layers: int) -> Pruning:
    """The printed recipe, literally: probabilities on the first token, T = 1e-4, thresholds
    rising to 0.01, lambda = 0.1, features multiplied by the layer's own mask.

    The last threshold is fixed, as is printed; its mask has no effect in a tower that pools
    end-of-text, and is not penalised.
    """
    return Pruning(
        score="post",
        key="first",
        base=tuple(0.01 * (layer + 1) / layers for layer in range(layers)),
        trained=(True,) * (layers - 1) + (False,),
        temperature=(1e-4,) * layers,
        straight_through=False,
        cumulative=False,
        multiply=True,
        keys="none",
        weight=0.1,
    )


class TokenPruning(nn.Module):
    """The learned thresholds, and what they make of scores.

    A threshold is base + delta, so that weight decay of delta would pull it to its start and
    not to 0; give `delta` a learning rate of its own and no decay, and call `clamp_` after
    each step. It must stay float32.
    """

    _base: Tensor
    _trained: Tensor

    def __init__(self, config: Pruning) -> None:
        super().__init__()
        self.config = config
        self.delta = nn.Parameter(torch.zeros(len(config.base)))
        self.register_buffer("_base", torch.tensor(config.base), persistent=False)
        self.register_buffer("_trained", torch.tensor(config.trained), persistent=False)

    def thresholds(self) -> Tensor:
        """One a layer, float32 [layers]; probabilities are kept within [0, 0.95], with the
        gradient of unbounded ones: a threshold that left its bounds can come back."""
        free = self._base + self.delta * self._trained
        return free + self._way_back()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Puts `delta` back where a step took base + delta out of the bounds."""
        self.delta.add_(self._way_back() * self._trained)

    @torch.no_grad()
    def _way_back(self) -> Tensor:
        """What takes each threshold into its bounds: 0 within, and for layers without one."""
        free = self._base + self.delta * self._trained
        if self.config.score == "pre":
            return torch.zeros_like(free)
        bounded = torch.where(free.isneginf(), free, free.clamp(0.0, _MOST_PROBABILITY))
        return (bounded - free).nan_to_num(0)

    def prunes(self, layer: int) -> bool:
        """Whether the layer makes a mask."""
        return self.config.base[layer] != -math.inf

    def mask(self, layer: int, scores: Tensor, prunable: Tensor, *, hard: bool = False) -> Tensor:
        """Eq. 3: how far each token is kept, float32 [b, n]; 1 where it is not prunable.

        A score on its threshold is kept, and so is one below it by no more than rounding.

        Args:
            scores: float32 [b, n].
            prunable: bool [b, n].
            hard: 0 or 1 without a gradient, as at inference.
        """
        with torch.autocast(scores.device.type, enabled=False):
            above = scores.float() - self.thresholds()[layer]
            kept = (above >= -_ROUNDING[self.config.score]).float()
            if not hard:
                soft = torch.sigmoid(above / self.config.temperature[layer])
                # The brackets make the difference exactly 0, and the mask exactly 0 or 1.
                kept = kept + (soft - soft.detach()) if self.config.straight_through else soft
            return torch.where(prunable, kept, torch.ones_like(kept))

    def penalty(self, masks: list[tuple[int, Tensor]], prunable: Tensor) -> Tensor:
        """Lambda times eq. 4: the mean mask of a title's prunable tokens, averaged over titles.

        Args:
            masks: layers and their masks [b, n]. Cumulative ones count in every layer from the
                first on, so that an early drop is rewarded in all later ones.
            prunable: bool [b, n].
        """
        counts = prunable.sum(1).clamp_min(1)
        means = [
            ((mask * prunable).sum(1) / counts).sum() / max(len(counts), 1)
            for layer, mask in masks
            if self.config.trained[layer] or not self.prunes(layer)
        ]
        if not means:
            return self.delta.sum() * 0
        total = torch.stack(means).sum()
        if self.config.norm == "mean_layers":
            total = total / len(means)
        return self.config.weight * total


def token_scores(
    query: Tensor,
    key: Tensor,
    score: Score,
    which: Key,
    present: Tensor,
    eot: Tensor,
    causal: bool,
) -> Tensor:
    """Eq. 1 and 2: the score of each token, float32 [b, n], mean over heads.

    Args:
        query, key: [b, heads, n, d] of the layer's attention, not yet scaled.
        score, which: As `Pruning.score` and `Pruning.key`.
        present: float32 [b, n], how far each token takes part: 0 for padding, and the mask
            so far where pruned tokens are out of the keys. Means and probabilities are over
            what is present, as if the rest were not there.
        eot: int64 [b], place of the end-of-text token.
        causal: Whether a token sees only itself and those before it.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.float(), key.float()
        places = torch.arange(eot.shape[0], device=eot.device)
        if score == "pre":
            scale = 1 / math.sqrt(query.shape[-1])
            return scale * _raw_scores(query, key, which, present, eot)
        bias = None
        if causal:
            size = (query.shape[2], query.shape[2])
            bias = torch.full(size, -math.inf, device=query.device).triu(1)
        attention = attention_weights(query, key, present, bias)
        if score == "recv":
            received = (attention * present[:, None, :, None]).sum(2)
            return (received / present.sum(1)[:, None, None]).mean(1)
        if which == "eot_query":
            return attention[places, :, eot].mean(1)
        return attention[..., 0].mean(1)


def _raw_scores(query: Tensor, key: Tensor, which: Key, present: Tensor, eot: Tensor) -> Tensor:
    """Only the column that is asked for: fused attention need not give up its scores."""
    places = torch.arange(eot.shape[0], device=eot.device)
    if which == "eot_query":
        return (query[places, :, eot][:, :, None] * key).sum(-1).mean(1)
    if which == "first":
        one = key[:, :, 0]
    elif which == "eot":
        one = key[places, :, eot]
    else:
        weights = present[:, None, :, None]
        one = (key * weights).sum(2) / weights.sum(2)
    return (query * one[:, :, None]).sum(-1).mean(1)


def attention_weights(query: Tensor, key: Tensor, gate: Tensor, bias: Tensor | None) -> Tensor:
    """Attention that leaves keys out by degrees and shares their weight among the rest.

    A'_ij = A_ij G_ij / sum_k A_ik G_ik with G_ij = gate_j, and G_ii = 1 (DynamicViT, Rao et
    al. 2021, eq. 11). Unlike a bias of log G it passes a gradient to gates that are 0.

    Args:
        query, key: float32 [b, heads, n, d], not yet scaled.
        gate: float32 [b, n].
        bias: Added to the scores, [n, n], such as the causal mask; None for none.

    Returns:
        float32 [b, heads, n, n].
    """
    raw = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    raw = raw if bias is None else raw + bias.float()
    own = torch.eye(gate.shape[1], device=gate.device)
    gates = gate[:, None, None, :] * (1 - own) + own
    # Set against the best key that counts: beside a pruned one far above, the rest underflow.
    best = raw.detach().masked_fill(gates == 0, -math.inf).amax(-1, keepdim=True)
    kept = gates * (raw - best).clamp(max=_FURTHEST).exp()
    return kept / kept.sum(-1, keepdim=True)


def gated_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor | None
) -> Tensor:
    """The values under `attention_weights`, [b, heads, n, d] of the dtype of `value`."""
    with torch.autocast(query.device.type, enabled=False):
        weights = attention_weights(query.float(), key.float(), gate, bias)
        return (weights @ value.float()).to(value.dtype)
