"""The arms of a pruning experiment with ALBEF, and which words its texts keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.pruning.arms import keep_tokens, visual_only
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.albef.reading import Reader
from training.albef.config import AlbefTraining
from training.albef.train import train_albef
from training.data import Pairs
from training.images import ImageSide
from training.texts import draws

Rows = NDArray[np.int64]

# What each arm does with a title. The control drops as many tokens as `all` does.
ARMS = {
    "standard": "whole titles",
    "paper cross": "MML-TP as printed, on the cross-attentions",
    "paper all": "MML-TP as printed, on all attentions",
    "cross": "MML-TP calibrated, on the cross-attentions",
    "all": "MML-TP calibrated, on all attentions",
    "cross mean key": "as cross, scored by the mean over all patches",
    "all mean key": "as all, scored by the mean over all keys",
    "random drop": "random tokens dropped, others in each epoch",
    "oracle": "visual words only",
}
_TOGETHER = 250


def train_albef_arm(
    arm: str,
    encoder: AlbefEncoder,
    pairs: Pairs,
    images: ImageSide,
    config: AlbefTraining,
    *,
    share: float,
    visual: Callable[[str], bool],
) -> None:
    """Fine-tunes `encoder` in one of the ARMS.

    Args:
        config: of the arm `standard`.
        share: what share of the tokens `random drop` keeps.
        visual: whether pictures show a word, for `oracle`.
    """
    titles, shown = pairs.titles, None
    recipe, _, which = arm.partition(" ") if arm.startswith("paper ") else ("calibrated", "", arm)
    prune, _, key = which.partition(" ")
    changes: dict[str, object] = {"preset": "standard"}
    if prune in ("cross", "all"):
        changes = {"preset": recipe, "prune": prune, "key": "mean" if key else "first"}
        if recipe == "paper":  # one schedule for weights and thresholds
            changes["threshold_learning_rate"] = config.learning_rate
    elif arm == "random drop":
        shown = _RandomDrop(encoder, share, config.seed)
    elif arm == "oracle":
        titles = visual_only(titles, visual)
    read = Pairs(pairs.pictures, titles, pairs.keys, pairs.products)
    changed = config.model_copy(update=changes)
    train_albef(encoder, read, images, None, None, None, changed, shown=shown)


class _RandomDrop:
    """Drops random tokens of each title, by row and epoch."""

    def __init__(self, encoder: AlbefEncoder, share: float, seed: int) -> None:
        self._tokenizer, self._share, self._seed = encoder.tokenizer, share, seed

    def __call__(self, ids: Tensor, rows: Rows, epoch: int) -> Tensor:
        keep = draws(rows, ids.shape[1], self._seed, epoch) < self._share
        end = self._tokenizer.mask(ids).sum(1, keepdim=True) - 1
        return keep_tokens(ids, keep.to(ids.device), end, self._tokenizer.pad_id)


@torch.inference_mode()
def kept_words(
    encoder: AlbefEncoder, titles: Sequence[str], pixels: Tensor
) -> list[list[tuple[str, bool]]]:
    """The words of each title beside its own picture, and whether token pruning keeps them to
    the end of the fusion encoder: a word is kept if any of its pieces is.

    Args:
        pixels: preprocessed, [n, 3, image_size, image_size].
    """
    model, tokenizer = encoder.model, encoder.tokenizer
    reader = Reader(model, encoder.pruning)
    found = []
    for start in range(0, len(titles), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        ids = tokenizer(titles[part])
        texts = reader.read(ids, tokenizer.mask(ids), hard=True)
        alive = reader.fuse(texts, model.visual_encoder(pixels[part]), hard=True).alive > 0
        for title, row in zip(titles[part], alive, strict=True):
            found.append(_words(title, encoder, row))
    return found


def _words(title: str, encoder: AlbefEncoder, alive: Tensor) -> list[tuple[str, bool]]:
    words = title.split()
    # Of each character, how many words have begun by then.
    begun = list(accumulate(
        int(not char.isspace() and (place == 0 or title[place - 1].isspace()))
        for place, char in enumerate(title)
    ))  # fmt: skip
    kept = [False] * len(words)
    for place, piece in enumerate(encoder.tokenizer.pieces(title), 1):
        if place < len(alive) - 1 and bool(alive[place]):
            kept[begun[piece.end - 1] - 1] = True
    return list(zip(words, kept, strict=True))
