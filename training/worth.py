"""Masks learned by what tokens are worth, before the weights learn anything.

A token is worth how much the contrastive loss of its title rises when that token alone is
left out. Both texts are computed, so this is the difference itself and no derivative: where a
mask is 0 or 1 the derivative sees neither the harm that an unknown word does nor that a known
one has done its work. What costs more than it is worth is dropped.

The weights rest meanwhile but for what the scores hang on. Weights that are trained at the
same time learn titles by heart, by the words that no picture shows; such words then look as
if they were worth their price.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from indexing.errors import TrainingError
from indexing.messages import printable
from indexing.models.clip import ClipEncoder
from indexing.models.pruned_text import PrunedText
from indexing.models.token_pruning import Pruning
from training.config import TrainConfig
from training.data import Pairs
from training.gradients import wants_bfloat16
from training.images import ImageSide

Rows = NDArray[np.int64]
BATCH = 256  # more pairs take longer and say little more
TOGGLED = 2  # tokens of each title that are tried in a step
# What part of the temperature a threshold may move in a step: fast against the scores, as it
# is one number for all tokens.
THRESHOLD_RATE = 0.05


@dataclass(frozen=True)
class MaskStep:
    """A step of `learn_masks`: `kept` is the share of prunable tokens that its layer keeps."""

    number: int
    total: int
    kept: float


def learn_masks(
    encoder: ClipEncoder,
    pairs: Pairs,
    images: ImageSide,
    config: TrainConfig,
    *,
    scale: float | None = None,
    on_step: Callable[[MaskStep], None] = lambda step: None,
) -> None:
    """Learns the masks of the first layer that prunes, in `config.mask_steps` steps.

    A token's soft mask (eq. 3) is raised by its worth and lowered by its price, which is
    lambda times its part of eq. 4: 1/n for each layer from the pruning one on. An encoder
    that does not prune has no masks, and stays as it is.

    Args:
        scale: the factor of the logits that worth is measured with; None: the model's.

    Raises:
        TrainingError: None of the pictures can be read, or an embedding is not finite.
    """
    pruning = encoder.pruning
    tower = None if pruning is None else PrunedText(encoder.model, pruning)
    if pruning is None or tower is None or tower.first is None:
        return
    model, device, layer = encoder.model, torch.device(encoder.device), tower.first
    factor = model.logit_scale.detach().exp()
    if scale is not None:
        factor = torch.full_like(factor, scale)
    price, keys = _price(pruning.config, layer), torch.from_numpy(pairs.keys)
    rate = THRESHOLD_RATE * pruning.config.temperature[layer]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.requires_grad]},
        {"params": [pruning.delta], "lr": rate, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    half, read = wants_bfloat16(config.precision, device), 0
    model.eval()
    batches = _batches(len(pairs), config)
    for step, (rows, pictures) in enumerate(images.batches(batches, 0)):
        if not len(rows):
            continue
        read += len(rows)
        ids = encoder.tokenizer([pairs.titles[row] for row in rows])
        draws = torch.from_numpy(np.random.default_rng([config.seed, step]).random(ids.shape))
        ids = ids.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            with torch.no_grad():
                embedded = functional.normalize(images.embed(pictures).float(), dim=-1)
            scores, prunable = tower.first_scores(ids)
            tried = _tried(draws, prunable.cpu()).to(device)
            worth = token_worth(tower, ids, embedded, factor, keys[rows].to(device), tried)
        counts = prunable.sum(1, keepdim=True).clamp_min(1)
        above = scores - pruning.thresholds()[layer]
        soft = torch.sigmoid(above / pruning.config.temperature[layer]) * prunable
        # What was measured of a few tokens stands for all of the title.
        shares = counts / tried.sum((0, 2)).clamp_min(1)[:, None]
        loss = (soft * (price / counts - worth * shares)).sum(1).mean()
        if not math.isfinite(loss.item()):
            raise TrainingError(_not_finite(pairs, rows, embedded, step))
        hard = pruning.mask(layer, scores, prunable, hard=True) * prunable
        kept = float(hard.sum() / prunable.sum().clamp_min(1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        pruning.clamp_()
        on_step(MaskStep(step + 1, config.mask_steps, kept))
    optimizer.zero_grad(set_to_none=True)
    if not read:
        raise TrainingError("none of the pictures can be read: check the images folder")


@torch.no_grad()
def token_worth(
    tower: PrunedText, ids: Tensor, images: Tensor, scale: Tensor, keys: Tensor, tried: Tensor
) -> Tensor:
    """How much each tried token lowers the loss of its title, in nats.

    The loss of a title is half the cross-entropy of finding its picture among the batch's,
    and half that of finding it among the titles by its picture. All else stays as it is.

    Args:
        ids: int64 [b, context_length].
        images: unit vectors [b, dim] of the titles' pictures.
        scale: the factor of the logits.
        keys: int64 [b]; pairs of one key are no negatives of each other.
        tried: bool [r, b, n]: at most one token of each title in each of r trials.

    Returns:
        float32 [b, n], 0 where nothing was tried.
    """
    texts = tower(ids, hard=True)
    kept = texts.alive[tower.first or 0] > 0.5
    others = keys[:, None] != keys[None, :]
    whole = functional.normalize(texts.embeddings.float(), dim=-1)
    to_texts = (scale * images @ whole.T).masked_fill(~others, -torch.inf)
    rest = torch.logsumexp(to_texts, 1)  # of a picture, over the titles of others
    before = _losses(whole, images, scale, others, rest)
    worth = torch.zeros(kept.shape, device=ids.device)
    for trial in tried:
        changed = tower(ids, hard=True, toggled=trial).embeddings.float()
        after = _losses(functional.normalize(changed, dim=-1), images, scale, others, rest)
        rise = (after - before)[:, None]
        worth += torch.where(kept, rise, -rise) * trial
    return worth


def _losses(texts: Tensor, images: Tensor, scale: Tensor, others: Tensor, rest: Tensor) -> Tensor:
    """The loss of each title on its own, [b]; `rest` is what its picture scores otherwise."""
    own = scale * (texts * images).sum(1)
    to_images = (scale * texts @ images.T).masked_fill(~others, -torch.inf)
    by_text = torch.logaddexp(torch.logsumexp(to_images, 1), own) - own
    by_image = torch.logaddexp(rest, own) - own
    return (by_text + by_image) / 2


def _price(config: Pruning, layer: int) -> float:
    """Lambda times eq. 4 of a title that is kept whole, where this layer alone prunes."""
    summed = config.cumulative and config.norm == "sum_layers"
    return config.weight * (len(config.base) - layer if summed else 1)


def _not_finite(pairs: Pairs, rows: Rows, images: Tensor, step: int) -> str:
    broken = rows[~images.isfinite().all(1).cpu().numpy()]
    if not len(broken):
        return f"masks cannot be learned: a title's loss is not finite at mask step {step + 1}"
    row = broken[0]
    return (
        f"masks cannot be learned: the embedding of {len(broken)} of {len(rows)} pictures is not "
        f"finite at mask step {step + 1}: look at product {printable(pairs.products[row])} "
        f"{printable(pairs.titles[row])!r}"
    )


def _tried(draws: Tensor, prunable: Tensor) -> Tensor:
    """TOGGLED random tokens of each title, one a trial, bool [TOGGLED, b, n]."""
    order = draws[:, : prunable.shape[1]].masked_fill(~prunable, -1).argsort(1, descending=True)
    trials = [functional.one_hot(order[:, k], prunable.shape[1]) for k in range(TOGGLED)]
    return torch.stack(trials).bool() & prunable


def _batches(count: int, config: TrainConfig) -> list[Rows]:
    """The rows of each step: all pairs in turn, in a new order each time."""
    size = min(BATCH, config.batch_size, count)
    batches: list[Rows] = []
    while size and len(batches) < config.mask_steps:
        order = np.random.default_rng([config.seed, len(batches), 1]).permutation(count)
        batches += np.split(order[: count // size * size], count // size)
    return batches[: config.mask_steps]
