"""The text tower of an open_clip model, run with token pruning.

The tower's own modules and weights are used, none is copied: a block's attention is computed
here only where a mask acts on it. Nothing to prune: open_clip's own `encode_text`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from indexing.errors import ModelError
from indexing.models.text import (
    by_length,
    ends_of_text,
    pools_end_of_text,
    projected,
    with_positions,
)
from indexing.models.token_pruning import (
    Key,
    Score,
    TokenPruning,
    gated_attention,
    token_scores,
)


@dataclass(frozen=True)
class PrunedTexts:
    """What a forward pass gives; b titles, n tokens of the longest."""

    embeddings: Tensor  # [b, dim], not normalised
    penalty: Tensor  # lambda * L_prune
    prunable: Tensor  # bool [b, n]: neither start, end nor padding
    scores: list[Tensor]  # float32 [b, n] a layer that scores
    alive: list[Tensor]  # float32 [b, n] for every layer: how far each token is kept after it

    def kept(self) -> Tensor:
        """The share of prunable tokens that are kept after the last layer."""
        return self.left().sum() / self.prunable.sum().clamp_min(1)

    def left(self) -> Tensor:
        """The prunable tokens that are kept after the last layer, bool [b, n]."""
        return (self.alive[-1] >= 0.5) & self.prunable


@dataclass(frozen=True)
class _Places:
    """Where things stand in a batch of token ids."""

    eot: Tensor  # int64 [b]
    valid: Tensor  # bool [b, n]
    prunable: Tensor  # bool [b, n]


class PrunedText:
    """Runs the text tower of `model` with the masks of `pruning`."""

    def __init__(self, model: Any, pruning: TokenPruning) -> None:
        """Raises ModelError for a tower that is not open_clip's plain transformer with a
        causal mask, pooled at the end-of-text token."""
        self._model = model
        self._tower = text_tower(model)
        self._pruning = pruning
        layers = len(self._tower.transformer.resblocks)
        if layers != len(pruning.config.base):
            raise ModelError(
                f"the text tower has {layers} layers and the pruning is for "
                f"{len(pruning.config.base)}"
            )

    @property
    def first(self) -> int | None:
        """The first layer that prunes; None where none does."""
        return next(filter(self._pruning.prunes, range(len(self._pruning.config.base))), None)

    def __call__(
        self, ids: Tensor, *, hard: bool = False, toggled: Tensor | None = None
    ) -> PrunedTexts:
        """Embed titles with masks: soft or straight-through for training, `hard` as at
        inference.

        Args:
            ids: int64 [b, context_length].
            toggled: bool [b, n]; tokens that the first pruning layer keeps where it would
                have dropped them, and the other way round.

        Where the model's text transformer checkpoints its activations, so does this.
        """
        config, pruning = self._pruning.config, self._pruning
        places = _places(self._model, ids)
        if not self._prunes():  # to the bit what open_clip gives
            whole = [torch.ones(places.valid.shape, device=ids.device)] * len(config.base)
            nothing = pruning.penalty([], places.prunable)
            return PrunedTexts(self._model.encode_text(ids), nothing, places.prunable, [], whole)
        scores: list[Tensor] = []
        masks: list[tuple[int, Tensor]] = []
        states: list[Tensor] = []
        for layer, step in enumerate(self._layers(ids, places, hard, toggled)):
            x, alive, found = step
            states.append(alive)
            if found is not None:
                scores.append(found)
                masks.append((layer, alive))
            elif config.cumulative and any(config.trained[i] for i, _ in masks):
                masks.append((layer, alive))  # a token costs in each layer that it lives in
        embeddings = _pooled(self._tower, x, places.eot)
        penalty = pruning.penalty(masks, places.prunable)
        return PrunedTexts(embeddings, penalty, places.prunable, scores, states)

    def first_scores(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the first layer that prunes, with their gradient, and `prunable`, both as
        of `PrunedTexts`. No later layer is run."""
        places = _places(self._model, ids)
        layers = self._layers(ids, places, True)
        scores = next(found for _, _, found in layers if found is not None)
        return scores, places.prunable

    @torch.no_grad()
    def masks(self, ids: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """What hard masks do to titles, without embedding them: `alive` of each layer up to
        the last that prunes, `scores` and `prunable` as of `PrunedTexts`."""
        places = _places(self._model, ids)
        pruning_layers = filter(self._pruning.prunes, range(len(self._pruning.config.base)))
        last = max(pruning_layers, default=-1)
        steps = list(islice(self._layers(ids, places, True), last + 1))
        scores = [found for _, _, found in steps if found is not None]
        return [alive for _, alive, _ in steps], scores, places.prunable

    def embed_cut(self, ids: Tensor, ends: Tensor) -> Tensor:
        """As `embed`, of titles that are cut to the longest of them: no step hangs on what the
        tensors hold, so it can be traced.

        Args:
            ids: int64 [b, n].
            ends: int64 [b], place of each title's end-of-text token.
        """
        *_, (x, _, _) = self._layers(ids, _places_by(ends, ids.shape[1]), True)
        return _pooled(self._tower, x, ends)

    def _layers(
        self, ids: Tensor, places: _Places, hard: bool, toggled: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """After each layer: states, how far each token is kept, and scores where it has any."""
        transformer = self._tower.transformer
        x = with_positions(self._tower, ids[:, : places.valid.shape[1]])
        alive = torch.ones(places.valid.shape, device=ids.device)
        for layer in range(len(transformer.resblocks)):
            run = partial(self._layer, layer, places, hard, toggled)
            if transformer.grad_checkpointing and torch.is_grad_enabled():
                run = partial(checkpoint, run, use_reentrant=False)
            x, alive, found = run(x, alive)
            yield x, alive, found

    def _layer(
        self,
        layer: int,
        places: _Places,
        hard: bool,
        toggled: Tensor | None,
        x: Tensor,
        alive: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `_layers` yields, out of what it yielded before."""
        config, pruning = self._pruning.config, self._pruning
        block = self._tower.transformer.resblocks[layer]
        bias = self._tower.attn_mask[: x.shape[1], : x.shape[1]]
        began = any(map(pruning.prunes, range(layer)))
        gate = alive if config.keys != "none" and began else None
        heads, found = None, None
        if pruning.prunes(layer):
            heads = _scored_heads(block, x, 2 if config.keys == "none" else 3)
            present = places.valid.float() if gate is None else places.valid * gate
            found = _scores(heads, config.score, config.key, present, places)
            mask = pruning.mask(layer, found, places.prunable, hard=hard)
            if toggled is not None and not began:
                mask = torch.where(toggled & places.prunable, 1 - mask, mask)
            alive = alive * mask if config.cumulative else mask
            gate = alive if config.keys == "same" else gate
        elif not config.cumulative:
            alive = torch.ones_like(alive)
        if gate is None:
            x = block(x, attn_mask=bias)
        else:
            heads = _heads(block, x) if heads is None else heads
            x = _gated(block, x, heads, gate, bias, hard)
        if config.multiply and (began or found is not None):
            x = x * alive[..., None].to(x.dtype)
        return x, alive, found

    def embed(self, ids: Tensor) -> Tensor:
        """Embed titles with hard masks, [b, dim], not normalised.

        Titles go through the tower in groups of like length. Where pruned tokens are out of
        the keys they are really dropped, which gives the same embeddings, and the same
        gradients on the weights, for less work.
        """
        return self.followed(ids)[0]

    def followed(self, ids: Tensor) -> tuple[Tensor, float]:
        """As `embed`, with the share of prunable tokens that are kept after the last layer."""
        kept, prunable = [0], [0]  # without any titles, too

        def run(part: Tensor) -> Tensor:
            if len(part) and self._prunes() and self._pruning.config.keys != "none":
                embeddings, left, before = self._dropping(ids[part])
            else:
                texts = self(ids[part], hard=True)
                embeddings, left, before = texts.embeddings, texts.left(), texts.prunable
            kept.append(int(left.sum()))
            prunable.append(int(before.sum()))
            return embeddings

        embeddings = by_length(ends_of_text(self._model, ids), run)
        return embeddings, sum(kept) / max(1, sum(prunable))

    def _dropping(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings, and the prunable tokens among those left and among all, bool [b, n]."""
        config, pruning, tower = self._pruning.config, self._pruning, self._tower
        places = _places(self._model, ids)
        before = places.prunable
        x = with_positions(tower, ids[:, : places.valid.shape[1]])
        for layer, block in enumerate(tower.transformer.resblocks):
            run, mask = block, None
            if tower.transformer.grad_checkpointing and torch.is_grad_enabled():
                run = partial(checkpoint, block, use_reentrant=False)
            if pruning.prunes(layer):
                with torch.no_grad():
                    heads, present = _scored_heads(block, x), places.valid.float()
                    found = _scores(heads, config.score, config.key, present, places)
                    mask = pruning.mask(layer, found, places.prunable, hard=True) > 0
            if mask is not None and config.keys == "same":
                x, places = _dropped(x, places, mask)
            length = x.shape[1]
            x = run(x, attn_mask=tower.attn_mask[:length, :length])
            if mask is not None and config.keys == "next":
                x, places = _dropped(x, places, mask)
        return _pooled(tower, x, places.eot), places.prunable, before

    def _prunes(self) -> bool:
        return self.first is not None


def text_tower(model: Any) -> Any:
    """The part of an open_clip model that holds the text transformer.

    Raises:
        ModelError: Its text tower is of another kind.
    """
    tower = getattr(model, "text", model)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    plain = blocks is not None and all(
        isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks
    )
    if not (plain and pools_end_of_text(model)):
        raise ModelError(
            "token pruning needs a causal text transformer of open_clip that pools the "
            f"end-of-text token; this model's is {type(tower).__name__}"
        )
    return tower


@torch.no_grad()
def unpruned_scores(model: Any, ids: Tensor, score: Score, key: Key) -> tuple[list[Tensor], Tensor]:
    """The scores of every layer where no token is pruned, for calibration.

    Args:
        ids: int64 [b, context_length].

    Returns:
        The scores of each layer, float32 [b, n], and what is prunable, bool [b, n].

    Raises:
        ModelError: The text tower cannot be pruned.
    """
    tower, places = text_tower(model), _places(model, ids)
    length = places.valid.shape[1]
    x, scores, present = with_positions(tower, ids[:, :length]), [], places.valid.float()
    for block in tower.transformer.resblocks:
        scores.append(_scores(_scored_heads(block, x), score, key, present, places))
        x = block(x, attn_mask=tower.attn_mask[:length, :length])
    return scores, places.prunable


def _places(model: Any, ids: Tensor) -> _Places:
    eot = ends_of_text(model, ids)
    return _places_by(eot, int(eot.max()) + 1 if len(eot) else 1)


def _places_by(eot: Tensor, length: int) -> _Places:
    place = torch.arange(length, device=eot.device)[None, :]
    valid = place <= eot[:, None]
    return _Places(eot, valid, valid & (place > 0) & (place < eot[:, None]))


def _pooled(tower: Any, x: Tensor, eot: Tensor) -> Tensor:
    last: Tensor = tower.ln_final(x[torch.arange(x.shape[0], device=x.device), eot])
    return projected(tower, last)


def _heads(block: Any, x: Tensor, parts: int = 3) -> Tensor:
    """Queries, keys and, of three parts, values of a block's attention, [parts, b, heads, n, d]."""
    attention, (batch, length, width) = block.attn, x.shape
    weight = attention.in_proj_weight[: parts * width].float()
    bias = attention.in_proj_bias[: parts * width].float()
    packed = functional.linear(block.ln_1(x).float(), weight, bias)
    split = packed.view(batch, length, parts, attention.num_heads, attention.head_dim)
    return split.permute(2, 0, 3, 1, 4)


def _scored_heads(block: Any, x: Tensor, parts: int = 2) -> Tensor:
    """As `_heads`, in float32 also under autocast: masks hang on the last digits of scores."""
    with torch.autocast(x.device.type, enabled=False):
        return _heads(block, x, parts)


def _scores(heads: Tensor, score: Score, key: Key, present: Tensor, places: _Places) -> Tensor:
    return token_scores(heads[0], heads[1], score, key, present, places.eot, causal=True)


def _gated(block: Any, x: Tensor, heads: Tensor, gate: Tensor, bias: Tensor, hard: bool) -> Tensor:
    """A residual block of open_clip whose keys count as far as `gate` says."""
    if hard:  # 0 or 1 and without a gradient: what fused attention can do
        own = torch.eye(len(bias), dtype=torch.bool, device=bias.device)
        seen = (bias == 0) & ((gate > 0)[:, None, None, :] | own)
        attended = functional.scaled_dot_product_attention(
            heads[0], heads[1], heads[2], attn_mask=seen
        )
    else:
        attended = gated_attention(heads[0], heads[1], heads[2], gate, bias)
    x = x + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2).to(x.dtype)))
    after: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return after


def _dropped(x: Tensor, places: _Places, mask: Tensor) -> tuple[Tensor, _Places]:
    """The kept tokens moved together, in order, and where things stand now."""
    keep = mask & places.valid
    counts = keep.sum(1)
    length = int(counts.max())
    order = torch.argsort(~keep, dim=1, stable=True)[:, :length]
    moved = x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
    valid = torch.arange(length, device=x.device)[None, :] < counts[:, None]
    prunable = places.prunable.gather(1, order) & valid
    return moved, _Places(counts - 1, valid, prunable)
