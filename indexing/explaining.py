"""Where ALBEF's fusion encoder looks for each word of a text: Grad-CAM on cross-attention.

As ALBEF does it (Li et al., NeurIPS 2021, section 6.4; after Selvaraju et al., ICCV 2017): the
attention of each word to each patch in the third fusion layer, times its gradient for the logit
of a match where that is positive, mean over heads. A map says how far what the word sees in
each patch speaks for a match, to first order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexing.errors import ModelError, QueryError
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.albef.reading import Reader
from indexing.models.protocol import Encoder
from indexing.query_text import check_text

if TYPE_CHECKING:
    from PIL.Image import Image

_LAYER = 3  # of the fusion encoder, from 1


@dataclass(frozen=True, eq=False)
class WordMap:
    """What a word, as the model's tokenizer parts words, has to do with each patch.

    Attributes:
        text: The word as the text has it.
        map: float32 [grid, grid], top row first, none below 0. Maps of one text are on one scale.
        entropy: Of the map, from 0 (all on one patch) to 1 (the same on all); nan where the
            map is 0 throughout: no patch that the word sees speaks for a match.
        kept: Whether token pruning keeps the word to the end.
        read: Whether the model reads it; not if it is beyond the longest text. It is not kept
            then, either.
    """

    text: str
    map: NDArray[np.float32]
    entropy: float
    kept: bool = True
    read: bool = True


@dataclass(frozen=True)
class Explanation:
    """The words of a text with their maps, in order.

    Attributes:
        score: The probability that picture and text match.
        layer: Of the fusion encoder, from 1, whose attention the maps are of.
    """

    score: float
    layer: int
    words: list[WordMap]


def explain(
    encoder: Encoder, picture: Image, text: str, *, layer: int | None = None
) -> Explanation:
    """Grad-CAM of each word of a text for its match with an RGB picture.

    A word of several pieces has the sum of their maps: all maps are first-order parts of one
    logit, so parts add up. A mean would make a word less for being cut into more pieces. The
    entropy is the same with both.

    Args:
        encoder: An AlbefEncoder. Tokens are dropped by its pruning, as in `match`.
        layer: Of the fusion encoder, from 1; by default the third, or the last that has a
            gradient. The very last has none, as the matching head reads only [CLS] behind it.

    Raises:
        ModelError: The encoder has no fusion encoder or no matching head, or a fusion encoder
            of one layer.
        QueryError: No such layer, or a text that is blank, overlong or without a word.
    """
    if not isinstance(encoder, AlbefEncoder):
        raise ModelError(f"{encoder.name} has no fusion encoder: give an ALBEF model, albef:PATH")
    if not encoder.has_match:
        raise ModelError(
            f"{encoder.name} has no matching head (itm_head): give an ALBEF model that has one"
        )
    layer = _checked(encoder, layer)
    check_text("text", text)
    found = _cam(encoder, picture, text, layer)
    words = list(_words(encoder, text, found))
    if not words:
        raise QueryError(f"text {text[:40]!a} has no word that the model reads: give at least one")
    return Explanation(found.score, layer, words)


def can_explain(encoder: AlbefEncoder) -> bool:
    """Whether it has what `explain` needs: a matching head, and two fusion layers."""
    return encoder.has_match and encoder.config.text_layers - encoder.config.fusion_layer > 1


def map_entropy(cam: NDArray[np.float32]) -> float:
    """The entropy of a map's values (>= 0) as shares of their sum, in that of equal shares.

    From 0 to 1; nan for a map without a positive value.
    """
    total = float(cam.sum(dtype=np.float64))
    if not 0 < total < math.inf:
        return math.nan
    shares = cam[cam > 0].astype(np.float64) / total
    return max(0.0, float(-(shares * np.log(shares)).sum() / math.log(max(2, cam.size))))


@dataclass(frozen=True)
class _Cam:
    """Of one text of n tokens, without its padding."""

    score: float
    maps: Tensor  # float32 [n, patches]
    alive: Tensor  # bool [n]


def _checked(encoder: AlbefEncoder, layer: int | None) -> int:
    layers = encoder.config.text_layers - encoder.config.fusion_layer
    if layers < 2:
        raise ModelError(
            f"{encoder.name} has one fusion layer: Grad-CAM needs one whose words a later one reads"
        )
    if layer is None:
        return min(_LAYER, layers - 1)
    if not 1 <= layer < layers:
        raise QueryError(
            f"layer {layer}: must be between 1 and {layers - 1}; the fusion encoder has {layers}, "
            "and behind its last one no word is read"
        )
    return layer


def _cam(encoder: AlbefEncoder, picture: Image, text: str, layer: int) -> _Cam:
    model, config = encoder.model, encoder.config
    pixels = torch.from_numpy(encoder.preprocess(picture))[None].to(encoder.device)
    ids = encoder.tokenizer([text]).to(encoder.device)
    reader = Reader(model, encoder.pruning, watched=config.text_layers + layer - 1)
    with torch.no_grad():
        seen = model.visual_encoder(pixels)
        read = reader.read(ids, encoder.tokenizer.mask(ids), hard=True)
    with torch.enable_grad():
        # The attention hangs on this, so it has a gradient even if all weights are frozen.
        fused = reader.fuse(replace(read, x=read.x.requires_grad_()), seen, hard=True)
        logits = model.itm_head(fused.x[0, 0])
        attention = cast("Tensor", reader.weights)
        (slope,) = torch.autograd.grad(logits[1], attention)
    cam = (attention.detach() * slope.clamp(min=0))[0, :, :, 1:].mean(0)
    return _Cam(float(logits.detach().softmax(-1)[1]), cam.cpu(), (fused.alive[0] > 0).cpu())


def _words(encoder: AlbefEncoder, text: str, found: _Cam) -> Iterator[WordMap]:
    grid, last = encoder.config.grid, len(found.maps) - 1  # the place of [SEP]
    pieces = enumerate(encoder.tokenizer.pieces(text), 1)
    for _, group in groupby(pieces, lambda piece: piece[1].word):
        own = list(group)
        places = [place for place, _ in own if place < last]
        cam = found.maps[places].sum(0).view(grid, grid).numpy()
        yield WordMap(
            text[own[0][1].start : own[-1][1].end],
            cam,
            map_entropy(cam),
            kept=bool(found.alive[places].any()),
            read=bool(places),
        )
