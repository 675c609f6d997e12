"""The arms of a pruning experiment: ways to read a noisy title while a model is fine-tuned."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexing.models.calibration import calibrate
from indexing.models.clip import ClipEncoder
from indexing.models.text import embed_tokens
from indexing.models.token_pruning import TokenPruning
from training.clip import train_clip
from training.config import TrainConfig
from training.data import Pairs
from training.images import ImageSide
from training.texts import Texts, draws

# What each arm does with a title. The controls drop as many tokens as `calibrated` did.
ARMS = {
    "standard": "whole titles",
    "paper": "MML-TP as printed",
    "online": "MML-TP, thresholds from score quantiles, learned along with the weights",
    "calibrated": "MML-TP, masks learned by the worth of tokens, then held",
    "mean key": "as calibrated, scored by the mean over keys in place of the first token's",
    "random drop": "random tokens dropped, others in each epoch",
    "fixed types": "random words dropped wherever they stand",
    "truncated": "titles cut at their end",
    "oracle": "visual words only",
}
CONTROLS = ("random drop", "fixed types", "truncated")


def train_arm(
    arm: str,
    encoder: ClipEncoder,
    pairs: Pairs,
    images: ImageSide,
    config: TrainConfig,
    *,
    share: float = 1.0,
    visual: Callable[[str], bool] = lambda word: True,
    mask_steps: int = 120,
) -> None:
    """Fine-tunes `encoder` in one of the ARMS.

    Args:
        config: of the arm `standard`.
        share: what share of the tokens a control keeps.
        visual: whether pictures show a word, for `oracle`.
    """
    titles, texts = pairs.titles, None
    mixed = random.Random(0).sample(titles, len(titles))  # calibration reads the first of them
    changes: dict[str, object] = {"preset": "standard"}
    if arm == "paper":
        # One schedule for weights and thresholds, as is printed.
        changes = {"preset": "paper", "threshold_learning_rate": config.learning_rate}
    elif arm == "online":
        changes = {"preset": None}
        pruning = calibrate(encoder, mixed, spread=1.4, weight=0.5)
        encoder.pruning = TokenPruning(pruning).to(encoder.device)
    elif arm == "mean key":
        changes = {"preset": None, "mask_steps": mask_steps}
        encoder.pruning = TokenPruning(calibrate(encoder, mixed, key="mean")).to(encoder.device)
    elif arm == "calibrated":
        changes = {"preset": "calibrated", "mask_steps": mask_steps}
    elif arm == "random drop":
        texts = RandomDrop(encoder.model, share, config.seed)
    elif arm == "fixed types":
        titles = without_types(titles, share, config.seed)
    elif arm == "truncated":
        titles = [" ".join(words[: max(1, round(share * len(words)))]) for words in _split(titles)]
    elif arm == "oracle":
        titles = visual_only(titles, visual)
    shown = Pairs(pairs.pictures, titles, pairs.keys, pairs.products)
    train_clip(
        encoder, shown, images, None, None, None, config.model_copy(update=changes), texts=texts
    )


class RandomDrop:
    """Drops random tokens of each title, by row and epoch."""

    def __init__(self, model: object, share: float, seed: int) -> None:
        self._model, self._share, self._seed = model, share, seed

    def __call__(self, ids: Tensor, rows: NDArray[np.int64], epoch: int) -> Texts:
        keep = draws(rows, ids.shape[1], self._seed, epoch) < self._share
        kept = keep_tokens(ids, keep.to(ids.device), ids.argmax(-1, keepdim=True))
        return Texts(embed_tokens(self._model, kept), torch.zeros((), device=ids.device), None)


def keep_tokens(ids: Tensor, keep: Tensor, end: Tensor, pad_id: int = 0) -> Tensor:
    """Token ids with only the tokens of `keep` between start and end, moved together.

    Args:
        ids: int64 [n, length], `start words end` and padding.
        keep: bool [n, length].
        end: int64 [n, 1], the place of the end.
    """
    place = torch.arange(ids.shape[1], device=ids.device)
    stays = (keep & (place < end)) | (place == 0) | (place == end)
    order = torch.argsort(~stays, dim=1, stable=True)
    within = place < stays.sum(1, keepdim=True)
    return torch.where(within, ids.gather(1, order), pad_id)


def without_types(titles: Sequence[str], share: float, seed: int) -> list[str]:
    """Titles of a random vocabulary that makes up about this share of the words."""
    counts = Counter(word for words in _split(titles) for word in words)
    types = sorted(counts)
    np.random.default_rng(seed).shuffle(types)
    left, kept = share * counts.total(), set()
    for word in types:
        if counts[word] <= left:
            kept.add(word)
            left -= counts[word]
    return [" ".join(word for word in words if word in kept) for words in _split(titles)]


def visual_only(titles: Sequence[str], visual: Callable[[str], bool]) -> list[str]:
    """Titles without the words that no picture shows."""
    return [" ".join(word for word in words if visual(word)) for words in _split(titles)]


def _split(titles: Sequence[str]) -> list[list[str]]:
    return [title.split() for title in titles]
