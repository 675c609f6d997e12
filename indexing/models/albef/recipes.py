"""Where token pruning of ALBEF starts: the printed recipe, and thresholds out of own scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from indexing.errors import TrainingError
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.network import AlbefModel
from indexing.models.albef.reading import Reader, check_cross
from indexing.models.calibration import joined, pruning_at
from indexing.models.token_pruning import Key, Pruning, Score, TokenPruning, check_pair

Prune = Literal["cross", "all"]  # the cross-attentions alone, or the self-attentions, too
_BATCH = 64
_BELOW_ALL = -1e9  # a threshold that every score passes


def paper_albef_pruning(config: AlbefConfig, prune: Prune) -> Pruning:
    """The printed recipe, literally: as `paper_pruning`, with thresholds that rise to 0.01 over
    the self-attentions, and over the cross-attentions.

    The last threshold of both kinds is fixed and not penalised. Their masks multiply the
    output of the last layer, of which nothing is read but [CLS], for matching, and hidden
    words, for guessing; neither may be pruned. No loss would hold these thresholds against
    the penalty. "A fixed threshold of 0.01 at the final layer" fits both. The last layer of
    the text encoder is another matter: the fusion encoder reads all of its tokens.
    """
    own, crossing = config.text_layers, config.text_layers - config.fusion_layer
    rising = [0.01 * (layer + 1) / own for layer in range(own)]
    trained = [True] * (own - 1) + [False]
    if prune == "cross":
        rising, trained = [-math.inf] * own, [False] * own
    rising += [0.01 * (layer + 1) / crossing for layer in range(crossing)]
    trained += [True] * (crossing - 1) + [False]
    return Pruning(
        score="post",
        key="first",
        base=tuple(rising),
        trained=tuple(trained),
        temperature=(1e-4,) * config.attentions,
        straight_through=False,
        cumulative=False,
        multiply=True,
        keys="none",
        weight=0.1,
    )


def calibrated_albef_pruning(
    config: AlbefConfig,
    scores: Sequence[Tensor],
    prunable: Tensor,
    *,
    prune: Prune = "all",
    score: Score = "pre",
    key: Key = "first",
    self_layers: int = 1,
    cross_layers: int = 1,
    share: float = 0.05,
    spread: float = 0.4,
    weight: float = 0.1,
) -> Pruning:
    """Thresholds and temperatures out of what `observe` gave, as `calibrated_pruning` does.

    Args:
        scores: float32 [b, n] of each attention; prunable: bool [b, n].
        score, key: what the scores are.
        self_layers: how many self-attentions prune, from the first on; with `cross` none.
        cross_layers: how many cross-attentions, from the first on; never all, as the mask of
            the last acts on the keys of later layers, and there is none.

    Raises:
        TrainingError: The model has no such layers, or there are fewer than two scores.
    """
    own, crossing = config.text_layers, config.text_layers - config.fusion_layer
    self_layers = self_layers if prune == "all" else 0
    if not 0 <= self_layers <= own:
        raise TrainingError(f"{self_layers} self-attentions cannot prune: the model has {own}")
    if not 0 <= cross_layers < crossing:
        raise TrainingError(
            f"{cross_layers} cross-attentions cannot prune: the model has {crossing}, and after "
            "the last of them no key is left to take out; use 0 to "
            f"{crossing - 1}"
        )
    layers = [*range(self_layers), *range(own, own + cross_layers)]
    if not layers:
        raise TrainingError("no attention prunes: give 1 or more self_layers or cross_layers")
    return pruning_at(
        layers,
        scores,
        [prunable] * len(scores),
        score=score,
        key=key,
        share=share,
        spread=spread,
        weight=weight,
    )


@torch.no_grad()
def observe(
    model: AlbefModel, ids: Tensor, mask: Tensor, images: Tensor, score: Score, key: Key
) -> tuple[list[Tensor], Tensor]:
    """The scores of titles beside their own pictures, where no token is pruned, on the CPU.

    The model is read without dropout, 64 titles at a time; inputs may lie on another device.

    Args:
        ids, mask: as of `AlbefModel.encode_text`, [b, n].
        images: float, the titles' pictures, [b, 3, image_size, image_size], or what the
            picture encoder makes of them, [b, 1 + patches, vision_width].

    Returns:
        The scores of each attention, float32 [b, n], and what is prunable, bool [b, n].

    Raises:
        TrainingError: A cross-attention has no such score, or there are no titles.
    """
    try:
        check_pair(score, key)
        check_cross(score, key)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    if not len(ids):
        raise TrainingError("token pruning cannot be calibrated on 0 titles: give some")
    count, device = model.config.attentions, model.temp.device
    keeps_all = Pruning(
        score=score, key=key, base=(_BELOW_ALL,) * count, trained=(False,) * count,
        temperature=(1.0,) * count, straight_through=False, cumulative=True, multiply=False,
        keys="same", weight=0,
    )  # fmt: skip
    reader, parts = Reader(model, TokenPruning(keeps_all).to(device)), []
    training = model.training
    model.eval()
    for start in range(0, len(ids), _BATCH):
        part = slice(start, start + _BATCH)
        image = images[part].to(device)
        if image.dim() == 4:
            image = model.visual_encoder(image)
        texts = reader.read(ids[part].to(device), mask[part].to(device), hard=True)
        fused = reader.fuse(texts, image, hard=True)
        parts.append((dict(fused.scores), fused.prunable))
    model.train(training)
    width = ids.shape[1]
    scores = [joined([found[number] for found, _ in parts], width) for number in range(count)]
    return scores, joined([prunable for _, prunable in parts], width)
