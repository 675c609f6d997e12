"""Texts through the text and the fusion encoder, with or without token pruning (MML-TP).

Attentions are numbered as in `AlbefConfig.attentions`. Each that prunes scores the tokens of
the text: self-attention as in a CLIP text tower, cross-attention by what a token, as a query,
makes of the picture (eq. 1 with the picture's states as keys; key 0 is its [CLS]). In a fusion
layer both masks multiply. A token that a cross-attention drops is out of the keys of later
self-attentions; the keys of a cross-attention are patches and are never pruned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from indexing.errors import ModelError
from indexing.models.albef.bert import Attention, Heads
from indexing.models.token_pruning import (
    Key,
    Score,
    TokenPruning,
    gated_attention,
    token_scores,
)

if TYPE_CHECKING:
    from indexing.models.albef.bert import Layer
    from indexing.models.albef.network import AlbefModel


@dataclass(frozen=True)
class States:
    """Texts on their way; b texts of n tokens.

    `masks` are what the penalty is on: for each attention its number and how far each token
    is kept after it (with cumulative masks) or by it (without). `trail` is how far each token
    is kept after each attention that was passed, for another model to follow.
    """

    x: Tensor  # [b, n, width]
    valid: Tensor  # bool [b, n]: no padding
    prunable: Tensor  # bool [b, n]: neither [CLS], [SEP], padding nor exempt
    alive: Tensor  # float32 [b, n]
    began: bool = False  # whether any attention behind it prunes
    scores: tuple[tuple[int, Tensor], ...] = ()  # float32 [b, n] of each that prunes
    masks: tuple[tuple[int, Tensor], ...] = ()
    trail: tuple[Tensor, ...] = ()

    def take(self, rows: Tensor) -> States:
        """The states of these texts, int64 [m]; what led to them is left behind."""
        x, valid, prunable, alive = self.x, self.valid, self.prunable, self.alive
        return States(x[rows], valid[rows], prunable[rows], alive[rows], self.began)

    def kept(self) -> Tensor:
        """The share of prunable tokens that are kept."""
        left = (self.alive >= 0.5) & self.prunable
        return left.sum() / self.prunable.sum().clamp_min(1)


class Reader:
    """Sends texts through the encoders of `model`, with the masks of `pruning` if any."""

    def __init__(
        self, model: AlbefModel, pruning: TokenPruning | None, *, watched: int | None = None
    ) -> None:
        """Makes ready to read.

        Args:
            watched: number of a cross-attention; `fuse` then leaves its weights, float32
                [b, heads, n, 1 + patches], in `weights`.

        Raises:
            ModelError: The pruning is made for other sizes, or its scores are not defined here.
        """
        self._bert = model.text_encoder.bert
        self._config = model.config
        self._pruning = pruning
        self._watched = watched
        self.weights: Tensor | None = None
        if pruning is None:
            return
        if len(pruning.config.base) != model.config.attentions:
            raise ModelError(
                f"this model has {model.config.attentions} attentions that may prune and the "
                f"pruning is for {len(pruning.config.base)}"
            )
        crossing = range(model.config.text_layers, model.config.attentions)
        if any(map(pruning.prunes, crossing)):
            try:
                check_cross(pruning.config.score, pruning.config.key)
            except ValueError as error:
                raise ModelError(str(error)) from error

    def read(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        hard: bool = False,
        exempt: Tensor | None = None,
        toggled: Tensor | None = None,
        follow: States | None = None,
    ) -> States:
        """Texts through the text encoder.

        Args:
            ids, mask: as of `AlbefModel.encode_text`. Columns that only pad cost nothing.
            hard: masks are 0 or 1, as at inference; else soft or straight-through.
            exempt: bool [b, n], tokens that must stay.
            toggled: bool [b, n], tokens that the first attention that prunes keeps where it
                would have dropped them, and the other way round.
            follow: takes the masks of these states and scores nothing.
        """
        valid = mask.bool()
        length = max(1, int(valid.sum(1).max())) if len(valid) else 1
        valid = valid[:, :length]
        place = torch.arange(length, device=ids.device)
        prunable = valid & (place > 0) & (place < valid.sum(1, keepdim=True) - 1)
        if exempt is not None:
            prunable = prunable & ~exempt[:, :length]
        alive = torch.ones(valid.shape, device=ids.device)
        states = States(self._bert.embeddings(ids[:, :length]), valid, prunable, alive)
        for number in range(self._config.fusion_layer):
            states = self._layer(number, states, None, hard, toggled, follow)
        return states

    def fuse(
        self, texts: States, image: Tensor, *, hard: bool = False, follow: States | None = None
    ) -> States:
        """Texts that were read through the fusion encoder, text i with picture i.

        Args:
            image: states of the picture encoder, [b, 1 + patches, vision_width].
        """
        states = texts
        for number in range(self._config.fusion_layer, self._config.text_layers):
            states = self._layer(number, states, image, hard, None, follow)
        return states

    def penalty(self, states: States) -> Tensor:
        """Lambda times eq. 4, over the attentions that the states have passed."""
        if self._pruning is None:
            return torch.zeros((), device=states.x.device)
        return self._pruning.penalty(list(states.masks), states.prunable)

    def _layer(
        self,
        number: int,
        states: States,
        image: Tensor | None,
        hard: bool,
        toggled: Tensor | None,
        follow: States | None,
    ) -> States:
        run = partial(self._run, number, image=image, hard=hard, toggled=toggled, follow=follow)
        if self._bert.grad_checkpointing and torch.is_grad_enabled():
            result: States = checkpoint(run, states, use_reentrant=False)
            return result
        return run(states)

    def _run(
        self,
        number: int,
        states: States,
        *,
        image: Tensor | None,
        hard: bool,
        toggled: Tensor | None,
        follow: States | None,
    ) -> States:
        layer = cast("Layer", self._bert.encoder.layer[number])
        states = self._self_attention(number, layer.attention, states, hard, toggled, follow)
        if image is not None:
            crossing = number - self._config.fusion_layer + self._config.text_layers
            states = self._cross_attention(
                crossing, layer.crossattention, states, image, hard, follow
            )
        x = layer.feed_forward(states.x)
        if self._pruning is not None and self._pruning.config.multiply and states.began:
            x = x * states.alive[..., None].to(x.dtype)
        return replace(states, x=x)

    def _self_attention(
        self,
        number: int,
        attention: Attention,
        states: States,
        hard: bool,
        toggled: Tensor | None,
        follow: States | None,
    ) -> States:
        pruning, began = self._pruning, states.began
        keys = "none" if pruning is None else pruning.config.keys
        gate = states.alive if keys != "none" and began else None
        heads = None
        if follow is not None:
            states = _followed(states, follow)
        elif pruning is not None and pruning.prunes(number):
            heads = _float_heads(attention, states.x, states.x)
            present = states.valid.float() if gate is None else states.valid * gate
            last = states.valid.sum(1) - 1
            found = token_scores(
                heads.query, heads.key, pruning.config.score, pruning.config.key,
                present, last, causal=False,
            )  # fmt: skip
            states = self._masked(
                number, states, found, hard, None if began else toggled, fresh=True
            )
        else:
            states = self._unmasked(number, states, fresh=True)
        if keys == "same" and states.began:
            gate = states.alive
        if heads is None:
            heads = attention.heads(states.x, states.x)
        if gate is None or hard:
            seen = states.valid[:, None, None, :]
            if gate is not None:
                own = torch.eye(gate.shape[1], dtype=torch.bool, device=gate.device)
                seen = seen & ((gate > 0)[:, None, None, :] | own)
            attended = functional.scaled_dot_product_attention(*heads, attn_mask=seen)
        else:
            attended = gated_attention(*heads, states.valid * gate, None)
        return replace(states, x=attention.merged(attended.to(states.x.dtype), states.x))

    def _cross_attention(
        self,
        number: int,
        attention: Attention,
        states: States,
        image: Tensor,
        hard: bool,
        follow: States | None,
    ) -> States:
        pruning = self._pruning
        if follow is not None:
            states = _followed(states, follow)
        elif pruning is not None and pruning.prunes(number):
            heads = _float_heads(attention, states.x, image)
            found = cross_scores(heads.query, heads.key, pruning.config.score, pruning.config.key)
            states = self._masked(number, states, found, hard, None, fresh=False)
        else:
            states = self._unmasked(number, states, fresh=False)
        heads = attention.heads(states.x, image)
        if number == self._watched:
            raw = heads.query.float() @ heads.key.float().transpose(-1, -2)
            weights = (raw / math.sqrt(heads.query.shape[-1])).softmax(-1)
            self.weights = weights
            attended = weights.to(heads.value.dtype) @ heads.value
        else:
            attended = functional.scaled_dot_product_attention(*heads)
        return replace(states, x=attention.merged(attended, states.x))

    def _masked(
        self,
        number: int,
        states: States,
        found: Tensor,
        hard: bool,
        toggled: Tensor | None,
        *,
        fresh: bool,
    ) -> States:
        """The states after an attention that prunes; `fresh`: the first one of its layer."""
        if self._pruning is None:
            return states
        mask = self._pruning.mask(number, found, states.prunable, hard=hard)
        if toggled is not None:
            mask = torch.where(toggled & states.prunable, 1 - mask, mask)
        cumulative = self._pruning.config.cumulative
        alive = mask if fresh and not cumulative else states.alive * mask
        return replace(
            states,
            alive=alive,
            began=True,
            scores=(*states.scores, (number, found)),
            masks=(*states.masks, (number, alive if cumulative else mask)),
            trail=(*states.trail, alive),
        )

    def _unmasked(self, number: int, states: States, *, fresh: bool) -> States:
        """The states after an attention that does not prune."""
        if self._pruning is None:
            return states
        config, alive, masks = self._pruning.config, states.alive, states.masks
        if config.cumulative and any(config.trained[i] for i, _ in masks):
            masks = (*masks, (number, alive))  # a token costs wherever it lives
        if fresh and not config.cumulative:
            alive = torch.ones_like(alive)
        return replace(states, alive=alive, masks=masks, trail=(*states.trail, alive))


def cross_scores(query: Tensor, key: Tensor, score: Score, which: Key) -> Tensor:
    """Eq. 1 and 2 for cross-attention: the score of each token, float32 [b, n], mean over heads.

    Args:
        query: of the text, [b, heads, n, d]; key: of the picture, [b, heads, k, d], [CLS] first.
        score, which: `pre` or `post` on the first key, or `pre` on the mean over all.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.float(), key.float()
        scale = 1 / math.sqrt(query.shape[-1])
        if score == "post":
            raw = scale * (query @ key.transpose(-1, -2))
            return (raw[..., 0] - raw.logsumexp(-1)).exp().mean(1)
        one = key[:, :, :1] if which == "first" else key.mean(2, keepdim=True)
        return scale * (query * one).sum(-1).mean(1)


def check_cross(score: Score, key: Key) -> None:
    """Raises ValueError where a cross-attention has no such score."""
    if score == "recv" or key in ("eot", "eot_query"):
        raise ValueError(
            f"score {score} with key {key} is not defined on cross-attention, whose keys are "
            "patches: use score pre or post with key first, or pre with mean"
        )


def _followed(states: States, follow: States) -> States:
    """The states with the masks that others had at the same attention."""
    alive = follow.trail[len(states.trail)]
    return replace(states, alive=alive, began=True, trail=(*states.trail, alive))


def _float_heads(attention: Attention, x: Tensor, memory: Tensor) -> Heads:
    """Heads in float32 also under autocast: masks hang on the last digits of scores."""
    with torch.autocast(x.device.type, enabled=False):
        return attention.heads(x.float(), memory.float())
