"""The text tower of an open_clip model, run with token pruning.

The tower's own modules and weights are used, none is copied: a block's attention is computed
here only where a mask acts on it. Nothing to prune: open_clip's own `encode_text`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from indexing.errors import ModelError
from indexing.models.text import ends_of_text, pools_end_of_text, projected, with_positions
from indexing.models.token_pruning import TokenPruning, gated_attention, token_scores


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
        alive = (self.alive[-1] >= 0.5) & self.prunable
        return alive.sum() / self.prunable.sum().clamp_min(1)


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

    def __call__(self, ids: Tensor, *, hard: bool = False) -> PrunedTexts:
        """Embed titles with masks: soft or straight-through for training, `hard` as at
        inference. `ids` is int64 [b, context_length]."""
        config, pruning, tower = self._pruning.config, self._pruning, self._tower
        places = _places(self._model, ids)
        if not self._prunes():  # to the bit what open_clip gives
            whole = [torch.ones(places.valid.shape, device=ids.device)] * len(config.base)
            nothing = pruning.penalty([], places.prunable)
            return PrunedTexts(self._model.encode_text(ids), nothing, places.prunable, [], whole)
        length = places.valid.shape[1]
        x = with_positions(tower, ids[:, :length])
        bias = tower.attn_mask[:length, :length]
        alive = torch.ones(places.valid.shape, device=ids.device)
        scores: list[Tensor] = []
        masks: list[tuple[int, Tensor]] = []
        states: list[Tensor] = []
        for layer, block in enumerate(tower.transformer.resblocks):
            gate = alive if config.keys != "none" and scores else None
            if pruning.prunes(layer):
                heads = _heads(block, block.ln_1(x))
                present = places.valid if gate is None else places.valid * gate
                found = token_scores(*heads[:2], config, present.float(), places.eot, causal=True)
                mask = pruning.mask(layer, found, places.prunable, hard=hard)
                alive = alive * mask if config.cumulative else mask
                scores.append(found)
                masks.append((layer, alive))
                gate = alive if config.keys == "same" else gate
            elif not config.cumulative:
                alive = torch.ones_like(alive)
            elif any(config.trained[:layer]):
                masks.append((layer, alive))  # a token costs in each layer that it lives in
            x = _block(block, x, bias, gate)
            if config.multiply and scores:
                x = x * alive[..., None].to(x.dtype)
            states.append(alive)
        embeddings = _pooled(tower, x, places.eot)
        penalty = pruning.penalty(masks, places.prunable)
        return PrunedTexts(embeddings, penalty, places.prunable, scores, states)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Embed titles with hard masks, [b, dim], not normalised.

        Where pruned tokens are out of the keys they are really dropped, which gives the same
        embeddings for less work.
        """
        config, pruning, tower = self._pruning.config, self._pruning, self._tower
        if config.keys == "none" or not self._prunes():
            return self(ids, hard=True).embeddings
        places = _places(self._model, ids)
        x = with_positions(tower, ids[:, : places.valid.shape[1]])
        for layer, block in enumerate(tower.transformer.resblocks):
            mask = None
            if pruning.prunes(layer):
                heads = _heads(block, block.ln_1(x))
                present = places.valid.float()
                found = token_scores(*heads[:2], config, present, places.eot, causal=True)
                mask = pruning.mask(layer, found, places.prunable, hard=True) > 0
            if mask is not None and config.keys == "same":
                x, places = _dropped(x, places, mask)
            length = x.shape[1]
            x = block(x, attn_mask=tower.attn_mask[:length, :length])
            if mask is not None and config.keys == "next":
                x, places = _dropped(x, places, mask)
        return _pooled(tower, x, places.eot)

    def _prunes(self) -> bool:
        return any(map(self._pruning.prunes, range(len(self._pruning.config.base))))


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


def _places(model: Any, ids: Tensor) -> _Places:
    eot = ends_of_text(model, ids)
    place = torch.arange(int(eot.max()) + 1, device=ids.device)[None, :]
    valid = place <= eot[:, None]
    return _Places(eot, valid, valid & (place > 0) & (place < eot[:, None]))


def _pooled(tower: Any, x: Tensor, eot: Tensor) -> Tensor:
    last: Tensor = tower.ln_final(x[torch.arange(len(x), device=x.device), eot])
    return projected(tower, last)


def _heads(block: Any, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a block's attention, [b, heads, n, d] each."""
    attention = block.attn
    packed = functional.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    batch, length, _ = normed.shape
    split = packed.view(batch, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    return split[0], split[1], split[2]


def _block(block: Any, x: Tensor, bias: Tensor, gate: Tensor | None) -> Tensor:
    """A residual block of open_clip; with `gate`, some keys count less."""
    if gate is None:
        whole: Tensor = block(x, attn_mask=bias)
        return whole
    attended = gated_attention(*_heads(block, block.ln_1(x)), gate, bias)
    attended = attended.transpose(1, 2).flatten(2)
    x = x + block.ls_1(block.attn.out_proj(attended))
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
