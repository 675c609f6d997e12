"""The title side of training: token ids to embeddings, plain or with token pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexing.models.pruned_text import PrunedText, PrunedTexts
from indexing.models.text import by_length, embed_tokens, ends_of_text
from indexing.models.token_pruning import TokenPruning


@dataclass(frozen=True)
class Texts:
    """Embedded titles.

    Attributes:
        embeddings: float [n, dim], not normalised.
        penalty: What is added to the loss, a scalar: a mean over the titles, so that the
            penalties of parts of a batch average to that of the batch.
        kept: Share of the tokens that could be pruned and were not; None without pruning.
    """

    embeddings: Tensor
    penalty: Tensor
    kept: float | None


class TextSide(Protocol):
    """Turns titles into embeddings that carry gradients."""

    def __call__(self, ids: Tensor, rows: NDArray[np.int64], epoch: int) -> Texts:
        """Embed titles.

        May be called twice for the same titles of a step, and must give the same both times:
        what is random may use torch's generator, which is set anew before each call, or
        `rows` and `epoch`.

        Args:
            ids: int64 [n, context_length], on the device of the model.
            rows: int64 [n], which pairs they belong to.
            epoch: from 0.
        """


class PlainTexts:
    """The text tower as it is."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, ids: Tensor, rows: NDArray[np.int64], epoch: int) -> Texts:
        return Texts(embed_tokens(self._model, ids), torch.zeros((), device=ids.device), None)


class PruningTexts:
    """The text tower with the masks of `pruning`, soft or straight-through as it says.

    Args:
        held: Masks are followed as at inference; they are neither learned nor priced.

    Raises:
        ModelError: The tower is of a kind that cannot prune.
    """

    def __init__(self, model: Any, pruning: TokenPruning, *, held: bool = False) -> None:
        self._model = model
        self._tower = PrunedText(model, pruning)
        self._held = held

    def __call__(self, ids: Tensor, rows: NDArray[np.int64], epoch: int) -> Texts:
        if self._held:
            embeddings, kept = self._tower.followed(ids)
            return Texts(embeddings, torch.zeros((), device=ids.device), kept)
        found: list[PrunedTexts] = []

        def run(part: Tensor) -> Tensor:
            found.append(self._tower(ids[part]))
            return found[-1].embeddings

        embeddings = by_length(ends_of_text(self._model, ids), run)
        penalties = [len(texts.prunable) * texts.penalty for texts in found]
        left = sum(int(texts.left().sum()) for texts in found)
        prunable = sum(int(texts.prunable.sum()) for texts in found)
        return Texts(embeddings, torch.stack(penalties).sum() / len(ids), left / max(1, prunable))


def hide_words(
    tokens: Tensor, rows: NDArray[np.int64], share: float, unknown_id: int, seed: int, epoch: int
) -> Tensor:
    """Tokens with this share of each title's words replaced by `unknown_id`.

    Which words depends on the row, the epoch and the seed alone, and so neither on how a
    batch is cut up nor on where a run was stopped.

    Args:
        tokens: int64 [n, length], `[SOT] words [EOT] 0 0 ...` with the highest id at [EOT].
        rows: int64 [n], which pairs they belong to.
    """
    if not share:
        return tokens
    place = torch.arange(tokens.shape[1])
    words = (place > 0) & (place < tokens.argmax(-1, keepdim=True))
    hidden = draws(rows, tokens.shape[1], seed, epoch) < share
    return tokens.masked_fill(words & hidden, unknown_id)


def draws(rows: NDArray[np.int64], width: int, seed: int, epoch: int) -> Tensor:
    """Uniform random numbers, float64 [len(rows), width], by row, epoch and seed alone."""
    # With a number of its own: pictures are cropped by generators of seed, epoch and row.
    drawn = [np.random.default_rng([seed, epoch, row, 1]).random(width) for row in rows]
    return torch.from_numpy(np.array(drawn).reshape(len(rows), width))
