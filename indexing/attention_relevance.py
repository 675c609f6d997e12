"""Which tokens of a transformer made a score what it is: relevance through its attentions.

Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers" (ICCV 2021), equations 5 and 6: a layer's attention times its
gradient where that is positive, mean over heads, and R <- R + A R from layer to layer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from indexing.errors import ModelError

_MULTIHEAD = inspect.signature(functional.multi_head_attention_forward)
_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True)
class Attention:
    """One attention of a forward pass; h heads, n tokens that read m tokens."""

    weights: Tensor  # [h, n, m]
    values: Tensor  # [h, m, d], what is summed by the weights
    output: Tensor  # of the model's own, with its graph
    per_head: Callable[[Tensor], Tensor]  # gradients for `output` to those for the sums [h, n, d]


class AttentionRecorder(TorchFunctionMode):
    """Notes the attentions of pictures that go through a network while it is entered.

    The network computes what it always does: its fused attention gives no weights, so they
    are computed a second time from the same queries and keys. The mode is of this thread only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Attention] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            given = dict(zip(_SDPA, args, strict=False)) | kwargs
            with torch.no_grad():
                self.found.append(_fused(given, result))
        elif func is functional.multi_head_attention_forward:
            given = _MULTIHEAD.bind(*args, **kwargs).arguments
            with torch.no_grad():
                self.found.append(_multihead(given, result[0]))
        return result


def relevance(score: Tensor, attentions: Sequence[Attention]) -> Tensor:
    """How far each token of the first attention speaks for a score, float64 [tokens], >= 0.

    The tokens that count in the end are those that anything is read from after the last
    attention, as their gradients tell: [CLS], or all that are averaged. Where a pooling
    attention follows the layers, what it reads counts.

    Args:
        score: One number, with a graph to each attention's output.
        attentions: In the order of the pass: layers of self-attention over the same tokens,
            then at most one that pools.

    Raises:
        ModelError: They are no such layers.
    """
    if not attentions:
        raise ModelError("the picture tower has no attention that can be seen")
    outputs = [attention.output for attention in attentions]
    slopes = torch.autograd.grad(score, outputs, allow_unused=True)
    # Some towers pool a second time, for captions: nothing of the score hangs on that.
    used = [pair for pair in zip(attentions, slopes, strict=True) if pair[1] is not None]
    tokens = attentions[0].weights.shape[-1]
    mixed = torch.zeros(tokens, tokens, dtype=torch.float64)  # R less the identity it starts as
    read = torch.ones(tokens, dtype=torch.bool)
    for number, (attention, slope) in enumerate(used):
        heads = attention.per_head(slope)
        gradient = heads @ attention.values.mT
        weighted = (attention.weights * gradient.clamp(min=0)).double().mean(0).cpu()
        if weighted.shape == mixed.shape:
            mixed = mixed + weighted + weighted @ mixed
            read = (heads != 0).any(-1).any(0).cpu()
        elif number == len(used) - 1 and weighted.shape[1] <= tokens:
            seen = torch.eye(tokens, dtype=torch.float64) + mixed
            return (weighted @ seen[tokens - weighted.shape[1] :]).sum(0)
        else:
            raise ModelError(
                f"the picture tower's attention {number + 1} is of {tuple(weighted.shape)} tokens, "
                f"its first one of {tokens}: only layers over the same tokens can be followed"
            )
    return mixed[read].mean(0) if read.any() else mixed[0]


def _fused(given: dict[str, Any], output: Tensor) -> Attention:
    query, key, value = given["query"], given["key"], given["value"]
    if len(query) != 1 or query.dim() != 4 or given.get("is_causal") or given.get("enable_gqa"):
        raise ModelError(
            "the picture tower attends within windows or groups of heads: it cannot be followed"
        )
    return Attention(
        _weights(query[0], key[0], given.get("attn_mask"), given.get("scale")),
        value[0].detach(),
        output,
        lambda slope: slope[0],
    )


def _multihead(given: dict[str, Any], output: Tensor) -> Attention:
    """Of `nn.MultiheadAttention`, whose output [n, 1, width] is behind its last projection."""
    heads = int(given["num_heads"])
    biases: Sequence[Tensor | None] = [None] * 3
    if given["in_proj_bias"] is not None:
        biases = given["in_proj_bias"].chunk(3)
    if given.get("use_separate_proj_weight"):
        projections = [given[f"{name}_proj_weight"] for name in "qkv"]
    else:
        projections = list(given["in_proj_weight"].chunk(3))
    inputs = [given[name] for name in ("query", "key", "value")]
    query, key, value = (
        _heads(functional.linear(x, weight, bias), heads)
        for x, weight, bias in zip(inputs, projections, biases, strict=True)
    )
    last = given["out_proj_weight"].detach()
    weights = _weights(query, key, given.get("attn_mask"), None)
    return Attention(weights, value, output, lambda slope: _heads(slope @ last, heads))


def _heads(x: Tensor, heads: int) -> Tensor:
    """[n, 1, heads * d] to [heads, n, d]."""
    return x.detach()[:, 0].view(len(x), heads, -1).transpose(0, 1)


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    raw = query.detach() @ key.detach().mT * (scale or 1 / math.sqrt(query.shape[-1]))
    if mask is not None:
        raw = raw.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else raw + mask.detach()
    return raw.flatten(0, -3).softmax(-1)
