"""Where token pruning starts: the scores that a model gives to the user's own titles."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from indexing.errors import TrainingError
from indexing.models.clip import TEXT_BATCH, ClipEncoder
from indexing.models.pruned_text import unpruned_scores
from indexing.models.token_pruning import Key, Pruning, Score, check_pair

_LEAST_TEMPERATURE = 1e-6
TITLES = 2048  # quantiles and deviations of their tokens' scores are known well enough


def calibrate(
    encoder: ClipEncoder,
    titles: Iterable[str],
    *,
    score: Score = "pre",
    key: Key = "first",
    first_layer: int = 0,
    pruning_layers: int = 1,
    share: float = 0.05,
    spread: float = 0.4,
    weight: float = 0.1,
) -> Pruning:
    """`calibrated_pruning` on the scores that `encoder` gives to the first 2,048 titles.

    Raises:
        TrainingError: The titles have fewer than two tokens that may be pruned, the score is
            not defined on the key, or the tower has no such layers.
        ModelError: The text tower cannot be pruned.
    """
    scores, prunable = observed_scores(encoder, titles, score, key)
    return calibrated_pruning(
        scores,
        prunable,
        score=score,
        key=key,
        first_layer=first_layer,
        pruning_layers=pruning_layers,
        share=share,
        spread=spread,
        weight=weight,
    )


def calibrated_pruning(
    scores: Sequence[Tensor],
    prunable: Sequence[Tensor],
    *,
    score: Score,
    key: Key,
    first_layer: int,
    pruning_layers: int,
    share: float,
    spread: float,
    weight: float,
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
    return pruning_at(
        range(first_layer, end),
        scores,
        prunable,
        score=score,
        key=key,
        share=share,
        spread=spread,
        weight=weight,
    )


def pruning_at(
    layers: Collection[int],
    scores: Sequence[Tensor],
    prunable: Sequence[Tensor],
    *,
    score: Score,
    key: Key,
    share: float,
    spread: float,
    weight: float,
) -> Pruning:
    """As `calibrated_pruning`, where `layers` make masks.

    Raises:
        TrainingError: There are fewer than two scores, or some are not finite.
    """
    base, temperature, trained = [], [], []
    for layer, (found, mask) in enumerate(zip(scores, prunable, strict=True)):
        prunes = layer in layers
        values = found[mask].double().cpu().numpy()
        if prunes and len(values) < 2:
            raise TrainingError(
                f"token pruning cannot be calibrated on {len(values)} tokens: give more titles"
            )
        if prunes and not np.isfinite(values).all():
            raise TrainingError(
                "token pruning cannot be calibrated: the model's scores are not finite numbers"
            )
        # numpy: torch takes no quantile of more than 2**24 numbers.
        base.append(float(np.quantile(values, share)) if prunes else -math.inf)
        deviation = float(values.std(ddof=1)) if prunes else 1.0
        temperature.append(max(spread * deviation, _LEAST_TEMPERATURE) if prunes else 1.0)
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


def observed_scores(
    encoder: ClipEncoder, titles: Iterable[str], score: Score, key: Key, *, limit: int = TITLES
) -> tuple[list[Tensor], list[Tensor]]:
    """The scores of the first `limit` distinct titles in every layer, none pruned, on the CPU.

    Returns:
        For each layer the scores, float32 [titles, n], and what is prunable, bool [titles, n].

    Raises:
        TrainingError: The score is not defined on the key, or there are no titles.
        ModelError: The text tower cannot be pruned.
    """
    try:
        check_pair(score, key)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    distinct = list(islice(dict.fromkeys(titles), limit))
    if not distinct:
        raise TrainingError("token pruning cannot be calibrated on 0 titles: give some")
    parts = []
    for start in range(0, len(distinct), TEXT_BATCH):
        ids = encoder.tokenizer(distinct[start : start + TEXT_BATCH]).to(encoder.device)
        parts.append(unpruned_scores(encoder.model, ids, score, key))
    width = max(prunable.shape[1] for _, prunable in parts)
    scores = [joined(layer, width) for layer in zip(*(found for found, _ in parts), strict=True)]
    return scores, [joined([prunable for _, prunable in parts], width)] * len(scores)


def joined(parts: Sequence[Tensor], width: int) -> Tensor:
    """Batches [b, n] one below the other on the CPU, filled up with 0 to one width."""
    return torch.cat([functional.pad(part.cpu(), (0, width - part.shape[1])) for part in parts])
