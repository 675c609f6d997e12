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
from typing import TYPE_CHECKING, NamedTuple, cast

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

Numbered = tuple[tuple[int, Tensor], ...]  # float32 [b, n] each, with its attention's number


@dataclass(frozen=True)
class States:
    """Texts on their way; b texts of n tokens.

    `masks` are what the penalty is on: how far each token is kept after an attention (with
    cumulative masks) or by it (without). `trail` is how far each token is kept after each
    attention that was passed, for another model to follow.
    """

    x: Tensor  # [b, n, width]
    valid: Tensor  # bool [b, n]: no padding
    prunable: Tensor  # bool [b, n]: neither [CLS], [SEP], padding nor exempt
    alive: Tensor  # float32 [b, n]
    began: bool = False  # whether any attention behind it prunes
    scores: Numbered = ()  # of the attentions that prune
    masks: Numbered = ()
    trail: Numbered = ()

    def take(self, rows: Tensor) -> States:
        """The states of these texts, int64 [m], for other pictures than their own.

        Scores, masks and trail so far are left behind: a title is priced once, beside its own
        picture.
        """
        x, valid, prunable, alive = self.x, self.valid, self.prunable, self.alive
        return States(x[rows], valid[rows], prunable[rows], alive[rows], self.began)

    def kept(self) -> Tensor:
        """The share of prunable tokens that are kept."""
        left = (self.alive >= 0.5) & self.prunable
        return left.sum() / self.prunable.sum().clamp_min(1)


class _Way(NamedTuple):
    """How texts are read, as the arguments of `Reader.read` say."""

    hard: bool
    toggled: Tensor | None
    follow: States | None


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
            exempt: bool [b, length], tokens that must stay.
            toggled: bool [b, length], tokens that the first self-attention of the text encoder
                that prunes keeps where it would have dropped them, and the other way round.
            follow: takes the masks of these states, which a reader with the same pruning made
                of the same texts, and scores nothing.
        """
        valid = mask.bool()
        length = max(1, int(valid.sum(1).max())) if len(valid) else 1
        valid = valid[:, :length]
        exempt = None if exempt is None else exempt[:, :length]
        way = _Way(hard, None if toggled is None else toggled[:, :length], follow)
        return self._read(ids[:, :length], valid, exempt, way)

    def read_cut(self, ids: Tensor, ends: Tensor) -> States:
        """As `read` by hard masks, of texts that are cut to the longest of them: no step hangs on
        what the tensors hold, so it can be traced.

        Args:
            ids: int64 [b, n].
            ends: int64 [b], place of each text's [SEP].
        """
        place = torch.arange(ids.shape[1], device=ids.device)
        return self._read(ids, place[None, :] <= ends[:, None], None, _Way(True, None, None))

    def _read(self, ids: Tensor, valid: Tensor, exempt: Tensor | None, way: _Way) -> States:
        place = torch.arange(ids.shape[1], device=ids.device)
        prunable = valid & (place > 0) & (place < valid.sum(1, keepdim=True) - 1)
        if exempt is not None:
            prunable = prunable & ~exempt
        alive = torch.ones(valid.shape, device=ids.device)
        states = States(self._bert.embeddings(ids), valid, prunable, alive)
        for number in range(self._config.fusion_layer):
            states = self._layer(number, states, None, way)
        return states

    def fuse(
        self, texts: States, image: Tensor, *, hard: bool = False, follow: States | None = None
    ) -> States:
        """Texts that were read through the fusion encoder, text i with picture i.

        Args:
            image: states of the picture encoder, [b, 1 + patches, vision_width].
            hard, follow: as of `read`.
        """
        states = texts
        for number in range(self._config.fusion_layer, self._config.text_layers):
            states = self._layer(number, states, image, _Way(hard, None, follow))
        return states

    def penalty(self, states: States) -> Tensor:
        """Lambda times eq. 4, over the attentions that the states have passed."""
        if self._pruning is None:
            return torch.zeros((), device=states.x.device)
        return self._pruning.penalty(list(states.masks), states.prunable)

    def _layer(self, number: int, states: States, image: Tensor | None, way: _Way) -> States:
        def run(x: Tensor) -> States:
            return self._run(number, replace(states, x=x), image, way)

        if self._bert.grad_checkpointing and torch.is_grad_enabled():
            # A tensor as argument: by its device torch knows whose random numbers to repeat.
            result: States = checkpoint(run, states.x, use_reentrant=False)
            return result
        return run(states.x)

    def _run(self, number: int, states: States, image: Tensor | None, way: _Way) -> States:
        layer = cast("Layer", self._bert.encoder.layer[number])
        states = self._self_attention(number, layer.attention, states, way)
        if image is not None:
            crossing = number - self._config.fusion_layer + self._config.text_layers
            states = self._cross_attention(crossing, layer.crossattention, states, image, way)
        x = layer.feed_forward(states.x)
        # Not before: the feed-forward and its norm turn a state of 0 into a constant.
        if self._pruning is not None and self._pruning.config.multiply and states.began:
            x = x * states.alive[..., None].to(x.dtype)
        return replace(states, x=x)

    def _self_attention(
        self, number: int, attention: Attention, states: States, way: _Way
    ) -> States:
        pruning, gate = self._pruning, self._gate(states)
        heads, found = None, None
        if pruning is not None and self._scores(number, way):
            heads = _float_heads(attention, states.x, states.x)
            present = states.valid.float() if gate is None else states.valid * gate
            found = token_scores(
                heads.query, heads.key, pruning.config.score, pruning.config.key, present,
                states.valid.sum(1) - 1, causal=False,
            )  # fmt: skip
        states = self._passed(number, states, found, way)
        if pruning is not None and pruning.config.keys == "same":
            gate = self._gate(states)
        if heads is None:
            heads = attention.heads(states.x, states.x)
        if gate is not None and not way.hard:
            attended = gated_attention(*heads, states.valid * gate, None)
        else:  # masks of 0 or 1 without a gradient, if any: what fused attention can do
            seen = states.valid[:, None, None, :]
            if gate is not None:
                own = torch.eye(gate.shape[1], dtype=torch.bool, device=gate.device)
                seen = seen & ((gate > 0)[:, None, None, :] | own)
            attended = functional.scaled_dot_product_attention(*heads, attn_mask=seen)
        return replace(states, x=attention.merged(attended.to(states.x.dtype), states.x))

    def _cross_attention(
        self, number: int, attention: Attention, states: States, image: Tensor, way: _Way
    ) -> States:
        pruning, found = self._pruning, None
        if pruning is not None and self._scores(number, way):
            score, key = pruning.config.score, pruning.config.key
            scored = _float_heads(attention, states.x, _scored_part(image, score, key))
            found = cross_scores(scored.query, scored.key, score, key)
        states = self._passed(number, states, found, way)
        heads = attention.heads(states.x, image)
        if number == self._watched:
            with torch.autocast(image.device.type, enabled=False):
                raw = heads.query.float() @ heads.key.float().transpose(-1, -2)
                self.weights = (raw / math.sqrt(heads.query.shape[-1])).softmax(-1)
            attended = self.weights.to(heads.value.dtype) @ heads.value
        else:
            attended = functional.scaled_dot_product_attention(*heads)
        return replace(states, x=attention.merged(attended, states.x))

    def _scores(self, number: int, way: _Way) -> bool:
        """Whether an attention scores tokens."""
        return self._pruning is not None and way.follow is None and self._pruning.prunes(number)

    def _gate(self, states: States) -> Tensor | None:
        """How far keys of self-attention count; None where they all do."""
        gated = self._pruning is not None and self._pruning.config.keys != "none"
        return states.alive if gated and states.began else None

    def _passed(self, number: int, states: States, found: Tensor | None, way: _Way) -> States:
        """The states with the masks after an attention; `found` are its scores, if it prunes."""
        pruning = self._pruning
        if pruning is None:
            return states
        config, scores, masks = pruning.config, states.scores, states.masks
        if way.follow is not None:
            alive = dict(way.follow.trail)[number]
        else:
            alive = states.alive
            if not config.cumulative and number < self._config.text_layers:
                alive = torch.ones_like(alive)  # a new layer; its cross-attention adds to it
            if found is not None:
                mask = pruning.mask(number, found, states.prunable, hard=way.hard)
                if way.toggled is not None and not states.began:
                    mask = torch.where(way.toggled & states.prunable, 1 - mask, mask)
                alive = alive * mask
                scores = (*scores, (number, found))
                masks = (*masks, (number, alive if config.cumulative else mask))
            elif config.cumulative and any(config.trained[i] for i, _ in masks):
                masks = (*masks, (number, alive))  # a token costs wherever it lives
        return replace(
            states,
            alive=alive,
            began=states.began or pruning.prunes(number),
            scores=scores,
            masks=masks,
            trail=(*states.trail, (number, alive)),
        )


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


def _scored_part(image: Tensor, score: Score, key: Key) -> Tensor:
    """The part of a picture's states that scores are on; a mean of keys is the key of a mean."""
    if score == "post":
        return image
    return image[:, :1] if key == "first" else image.float().mean(1, keepdim=True)


def _float_heads(attention: Attention, x: Tensor, memory: Tensor) -> Heads:
    """Heads in float32 also under autocast: masks hang on the last digits of scores."""
    with torch.autocast(x.device.type, enabled=False):
        return attention.heads(x.float(), memory.float())
