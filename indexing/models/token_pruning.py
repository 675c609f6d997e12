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
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator
from torch import Tensor, nn

from indexing.errors import TrainingError

_LEAST_TEMPERATURE = 1e-6
# How far a pruned key may stand above the kept ones before its gradient stops growing (1e6).
_FURTHEST = math.log(1e6)
_MOST_PROBABILITY = 0.95

Score = Literal["post", "pre", "recv"]
Key = Literal["first", "eot", "eot_query", "mean"]


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
        cumulative: A token that was pruned stays so in all later layers.
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
        if self.score == "post" and self.key == "mean":
            raise ValueError(
                "score post with key mean: attention probabilities sum to 1, so every token "
                "scores the same; use score pre, or recv"
            )
        if self.score == "post" and self.key == "eot":
            raise ValueError(
                "score post with key eot: in a causal tower no token attends to the "
                "end-of-text token, so every score is 0; use score pre, or key eot_query"
            )
        if self.score == "recv" and self.key != "mean":
            raise ValueError(f"score recv with key {self.key}: recv is a mean over all; use mean")
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


def calibrated_pruning(
    scores: Sequence[Tensor],
    prunable: Sequence[Tensor],
    *,
    score: Score = "pre",
    key: Key = "first",
    first_layer: int = 0,
    pruning_layers: int = 1,
    share: float = 0.05,
    spread: float = 1.4,
    weight: float = 0.5,
) -> Pruning:
    """Thresholds and temperatures out of the scores of the user's own titles.

    The printed constants give no gradient at all where scores are far from 0.01 on the scale
    of 1e-4. Here little is pruned at the start, and the soft step is as wide as the scores:
    the threshold of the first pruning layer is the `share` quantile of its scores, and T is
    `spread` standard deviations. Later layers inherit the mask: once end-of-text has read a
    token, a later layer is free to drop it, whatever it meant.

    Args:
        scores: float32 [b, n] for each layer, of an unpruned tower.
        prunable: bool [b, n] for each of them.
        first_layer, pruning_layers: Which layers make masks.

    Raises:
        TrainingError: The tower has no such layers, or there are fewer than two scores.
    """
    end = first_layer + pruning_layers
    if not 0 <= first_layer < end <= len(scores):
        raise TrainingError(
            f"layers {first_layer} to {end - 1} cannot prune: the text tower has layers 0 to "
            f"{len(scores) - 1}"
        )
    base, temperature, trained = [], [], []
    for layer, (found, mask) in enumerate(zip(scores, prunable, strict=True)):
        prunes = first_layer <= layer < end
        values = found[mask].double()
        if prunes and len(values) < 2:
            raise TrainingError(
                f"token pruning cannot be calibrated on {len(values)} tokens: give more titles"
            )
        base.append(float(values.quantile(share)) if prunes else -math.inf)
        temperature.append(max(spread * float(values.std()), _LEAST_TEMPERATURE) if prunes else 1.0)
        trained.append(prunes)
    return Pruning(
        score=score,
        key=key,
        base=tuple(base),
        trained=tuple(trained),
        temperature=tuple(temperature),
        straight_through=True,
        cumulative=True,
        multiply=False,
        keys="same",
        weight=weight,
    )


class TokenPruning(nn.Module):
    """The learned thresholds, and what they make of scores.

    A threshold is base + delta, so that weight decay of delta would pull it to its start and
    not to 0; give `delta` a learning rate of its own and no decay. It must stay float32.
    """

    def __init__(self, config: Pruning) -> None:
        super().__init__()
        self.config = config
        self.delta = nn.Parameter(torch.zeros(len(config.base)))

    def thresholds(self) -> Tensor:
        """One a layer, float32 [layers]; probabilities are kept within [0, 0.95]."""
        config = self.config
        base = torch.tensor(config.base, device=self.delta.device)
        trained = torch.tensor(config.trained, device=self.delta.device)
        thresholds = base + torch.where(trained, self.delta, torch.zeros_like(self.delta))
        if config.score == "pre":
            return thresholds
        bounded = thresholds.clamp(0, _MOST_PROBABILITY)
        return torch.where(torch.isneginf(base), base, bounded)

    def prunes(self, layer: int) -> bool:
        """Whether the layer makes a mask."""
        return self.config.base[layer] != -math.inf

    def mask(self, layer: int, scores: Tensor, prunable: Tensor, *, hard: bool = False) -> Tensor:
        """Eq. 3: how far each token is kept, float32 [b, n]; 1 where it is not prunable.

        Args:
            scores: float32 [b, n].
            prunable: bool [b, n].
            hard: 0 or 1 without a gradient, as at inference.
        """
        with torch.autocast(scores.device.type, enabled=False):
            above = scores.float() - self.thresholds()[layer]
            kept = (above >= 0).float()
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
            ((mask * prunable).sum(1) / counts).mean()
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
    query: Tensor, key: Tensor, config: Pruning, present: Tensor, eot: Tensor, causal: bool
) -> Tensor:
    """Eq. 1 and 2: the score of each token, float32 [b, n], mean over heads.

    Args:
        query, key: [b, heads, n, d] of the layer's attention, not yet scaled.
        present: float32 [b, n], how far each token takes part: 0 for padding, and the mask
            so far where pruned tokens are out of the keys. Means and probabilities are over
            what is present, as if the rest were not there.
        eot: int64 [b], place of the end-of-text token.
        causal: Whether a token sees only itself and those before it.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.float(), key.float()
        places = torch.arange(len(eot), device=eot.device)
        if config.score == "pre":
            scale = 1 / math.sqrt(query.shape[-1])
            return scale * _raw_scores(query, key, config.key, present, eot)
        bias = None
        if causal:
            size = (query.shape[2], query.shape[2])
            bias = torch.full(size, -math.inf, device=query.device).triu(1)
        attention = attention_weights(query, key, present, bias)
        if config.score == "recv":
            received = (attention * present[:, None, :, None]).sum(2)
            return (received / present.sum(1)[:, None, None]).mean(1)
        if config.key == "eot_query":
            return attention[places, :, eot].mean(1)
        return attention[..., 0].mean(1)


def _raw_scores(query: Tensor, key: Tensor, which: Key, present: Tensor, eot: Tensor) -> Tensor:
    """Only the column that is asked for: fused attention need not give up its scores."""
    places = torch.arange(len(eot), device=eot.device)
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
