"""MoCHi: negatives that are harder than any there is, mixed from the hardest there are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.losses.base import PairLoss
from training.losses.batch import Scored, upcast
from training.losses.infonce import cross_entropy, mean_over_rows

MIXED = (64, 32, 32)  # of the hardest, so many mixtures of two, and so many with the query
_TURNED = 1 << 40  # more than there are steps: the seeds of the two directions never meet


class MoCHi(PairLoss):
    """InfoNCE with mixed hard negatives in its denominators, and those of a queue.

    Kalantidis et al. (NeurIPS 2020), section 4: of the `hardest` negatives of a query q,
    `pairs` mixtures of two, n = norm(a n_1 + (1 - a) n_2) with a ~ U(0, 1), and `towards`
    mixtures with the query itself, n' = norm(b q + (1 - b) n) with b ~ U(0, .5). Mixtures take
    no gradient. Pairs of one product and ignored pairs are not mixed: a duplicate would become
    the hardest negative of all. What is drawn depends on `step` alone.

    With `queue` its vectors are negatives of pictures and of titles both; it is for the caller
    to leave out those of the batch's own products.
    """

    uses = frozenset({"weight", "queue"})

    def __init__(self, sizes: tuple[int, int, int] = MIXED) -> None:
        """`sizes`: `hardest`, `pairs` and `towards`."""
        super().__init__()
        self._sizes = sizes

    def of(self, batch: Scored) -> Tensor:
        to_titles = self._one_way(batch, 0)
        return (to_titles + self._one_way(batch.turned(), _TURNED)) / 2

    def _one_way(self, batch: Scored, seed: int) -> Tensor:
        """Of the pictures of a batch among its titles."""
        queue = batch.text[:0] if batch.queue is None else upcast(batch.queue)
        keys = torch.cat([batch.text, queue.to(batch.text.dtype)])
        queued = batch.negative.new_ones((len(batch.image), len(queue)))
        negative = torch.cat([batch.negative, queued], 1)
        own = torch.cat(
            [batch.masked_scores(), batch.scale * batch.image @ keys[len(batch.text) :].T], 1
        )
        generator = torch.Generator().manual_seed((batch.step or 0) + seed)
        mixed = mixed_scores(batch.image, keys, negative, self._sizes, generator)
        targets = functional.pad(batch.quality, (0, len(queue) + mixed.shape[1]))
        per_row = cross_entropy(torch.cat([own, batch.scale * mixed], 1), targets)
        return mean_over_rows(per_row, batch.quality, batch.positive)


def mixed_scores(
    queries: Tensor,
    keys: Tensor,
    negative: Tensor,
    sizes: tuple[int, int, int],
    generator: torch.Generator,
) -> Tensor:
    """Cosines of queries with mixtures of their hardest negatives.

    Args:
        queries: unit vectors [n, d], with gradient; keys: unit vectors [m, d].
        negative: bool [n, m], which keys may be mixed.
        sizes: how many of the hardest are mixed, how many mixtures of two, and with the query.
        generator: on the CPU.

    Returns:
        [n, pairs + towards]; rows without a negative are as low as a number can be.
    """
    hardest, pairs, towards = sizes
    with torch.no_grad():
        cosines = (queries @ keys.T).masked_fill(~negative, -torch.inf)
        found = cosines.topk(min(hardest, len(keys)), dim=1).indices
        usable = negative.gather(1, found).sum(1)  # they come first

        def drawn(count: int) -> Tensor:
            share = torch.rand(len(queries), count, generator=generator).to(queries.device)
            place = (share * usable[:, None]).long().clamp(max=found.shape[1] - 1)
            return keys[found.gather(1, place)]

        def portion(count: int) -> Tensor:
            share = torch.rand(len(queries), count, 1, generator=generator)
            return share.to(queries.device, queries.dtype)

        a, b = portion(pairs), portion(towards) / 2
        between = a * drawn(pairs) + (1 - a) * drawn(pairs)
        nearer = b * queries[:, None] + (1 - b) * drawn(towards)
        mixtures = functional.normalize(torch.cat([between, nearer], 1), dim=-1)
    scores = torch.einsum("nd,nsd->ns", queries, mixtures)
    return scores.masked_fill(usable[:, None] == 0, torch.finfo(scores.dtype).min)
