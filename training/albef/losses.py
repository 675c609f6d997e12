"""The three losses of ALBEF, each a mean over what it looks at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.texts import draws

_LEAST_WEIGHT = 1e-4  # of a negative: also one that scores low may be drawn
UNSEEN = -100  # the label of a token that was not hidden
_REPLACED, _LEFT = 0.8, 0.9  # up to here the mask, up to here the word itself; then any word


@dataclass(frozen=True)
class Relations:
    """What pair i of a batch and key j are to each other.

    Attributes:
        positive: bool [b, k], of the same title.
        ignored: bool [b, k], neither positive nor negative.
    """

    positive: Tensor
    ignored: Tensor


def contrastive_loss(
    scores: Tensor, slow_scores: Tensor, to: Relations, soft: float, mixed: Tensor | None = None
) -> Tensor:
    """Cross-entropy to the positives and, for a share, to what the slow copy finds alike.

    Args:
        scores: of embeddings against keys, divided by the temperature, [b, k].
        slow_scores: the same of the slow copy's own embeddings.
        soft: share of the targets that the slow copy gives.
        mixed: further negatives, scores [b, s], which no target names (MoCHi).
    """
    hard = to.positive / to.positive.sum(1, keepdim=True)
    slow = slow_scores.detach().masked_fill(to.ignored, -torch.inf).softmax(1)
    targets = soft * slow + (1 - soft) * hard
    counted = scores.masked_fill(to.ignored, -torch.inf)
    if mixed is not None:
        counted = torch.cat([counted, mixed], 1)
    logs = counted.log_softmax(1)[:, : scores.shape[1]].masked_fill(to.ignored, 0)
    return -(targets * logs).sum(1).mean()


def hard_negatives(scores: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
    """For each row a column that is not alike, the likelier the better it scores.

    Args:
        scores: [n, n].
        alike: bool [n, n], what may not be drawn.

    Returns:
        Rows that have a negative, int64 [m], and what was drawn for them, int64 [m].
    """
    # A score that is no number is for the loss to report; it cannot be drawn by.
    likely = scores.detach().float().nan_to_num().softmax(1)
    weights = (likely + _LEAST_WEIGHT).masked_fill(alike, 0)
    rows = weights.sum(1).nonzero().squeeze(1)
    if len(rows) == 0:
        return rows, rows
    return rows, torch.multinomial(weights[rows], 1).squeeze(1)


def hide_tokens(
    ids: Tensor,
    hideable: Tensor,
    rows: NDArray[np.int64],
    share: float,
    mask_id: int,
    vocab_size: int,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Tokens to guess: 80% become the mask, 10% any token, 10% stay as they are (BERT).

    Depends on the row, the epoch and the seed alone.

    Args:
        ids: int64 [n, length]; hideable: bool [n, length].
        rows: int64 [n], which pairs they belong to.

    Returns:
        The ids to read, and the ids to guess (UNSEEN where there is nothing to guess).
    """
    drawn = draws(rows, 3 * ids.shape[1], seed, epoch).view(len(ids), 3, -1).to(ids.device)
    chosen, kind, word = drawn.unbind(1)
    hidden = hideable & (chosen < share)
    labels = ids.masked_fill(~hidden, UNSEEN)
    shown = torch.where(hidden & (kind < _REPLACED), mask_id, ids)
    random = hidden & (kind >= _LEFT)
    return torch.where(random, (word * vocab_size).long(), shown), labels


def guessing_loss(logits: Tensor, slow_logits: Tensor, labels: Tensor, soft: float) -> Tensor:
    """Cross-entropy of guessed words, for a share to what the slow copy guesses.

    Args:
        logits, slow_logits: [m, vocab_size]; labels: int64 [m].
    """
    if len(labels) == 0:
        return logits.sum() * 0
    logs = logits.float().log_softmax(1)
    guess = -(slow_logits.detach().float().softmax(1) * logs).sum(1).mean()
    return (1 - soft) * functional.nll_loss(logs, labels) + soft * guess
