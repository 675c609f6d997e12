"""Losses that look at all views of a product at once: its title and its pictures in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.losses.base import PairLoss
from training.losses.batch import Scored


@dataclass(frozen=True)
class _Views:
    """Pictures and titles of a batch in one row, the pictures first.

    A product has one title, which a batch holds beside each of its pictures. All of them
    together count as one view: two would be as alike as can be, and outweigh what there is to
    learn from pictures.

    Attributes:
        scores: k s, [n, n].
        share: the logarithm of how much of a view each is, [n]: 0 for a picture, -log m for
            one of m titles of a product.
        positive: bool [n, n], two views of one product; never a view with itself.
        negative: bool [n, n], views of two products.
        product: int64 [n], numbered from 0; `products` of them.
    """

    scores: Tensor
    share: Tensor
    positive: Tensor
    negative: Tensor
    product: Tensor
    products: int

    def per_product(self, terms: Tensor) -> Tensor:
        """log of the sum of exp over views of a product, [products]; `terms` is [n, n]."""
        rows = self.per_view(terms) + self.share
        highest = torch.full((self.products,), -torch.inf, dtype=rows.dtype, device=rows.device)
        highest = highest.scatter_reduce(0, self.product, rows.detach(), "amax")
        shift = highest.clamp_min(torch.finfo(rows.dtype).min)
        sums = torch.zeros_like(shift).scatter_add(
            0, self.product, (rows - shift[self.product]).exp()
        )
        return sums.clamp_min(torch.finfo(rows.dtype).tiny).log() + shift

    def per_view(self, terms: Tensor) -> Tensor:
        """log of the sum of exp over what each is compared with, [n]; `terms` is [n, n]."""
        return (terms + self.share).logsumexp(1)

    def sum_of(self, values: Tensor) -> Tensor:
        """Sums over the views of each product, [products]; `values` is [n]."""
        zeros = torch.zeros(self.products, dtype=values.dtype, device=values.device)
        return zeros.scatter_add(0, self.product, values * self.share.exp())


def _views(batch: Scored) -> _Views:
    images, (same_title, other_titles) = batch.among_pictures(), batch.among_titles()
    stacked = torch.cat([batch.image, batch.text])
    copies = (batch.text_pid[:, None] == batch.text_pid).sum(1).to(stacked.dtype)
    _, product = torch.cat([batch.image_pid, batch.text_pid]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return _Views(
        batch.scale * stacked @ stacked.T,
        torch.cat([torch.zeros_like(batch.image[:, 0]), -copies.log()]),
        _blocks(images[0], batch.positive, torch.zeros_like(same_title)),
        _blocks(images[1], batch.negative, other_titles),
        product,
        int(product.max()) + 1,
    )


def _blocks(images: Tensor, across: Tensor, titles: Tensor) -> Tensor:
    return torch.cat([torch.cat([images, across], 1), torch.cat([across.T, titles], 1)])


def _only(scores: Tensor, counted: Tensor) -> Tensor:
    # Not -inf: a row with nothing that counts would have no number for a gradient.
    return scores.masked_fill(~counted, torch.finfo(scores.dtype).min / 4)


class MVInfoNCE(PairLoss):
    """L = -mean_i log( sum_{k != l} exp(u_ik u_il / t) / sum_k sum_{(j,l) != (i,k)} exp(u_ik u_jl / t) )

    with u_ik view k of product i and 1/t the logit scale: the fraction of a product's attraction
    that its own views have. "Multi-view InfoNCE" of Koromilas et al. (NeurIPS 2024). Products
    may have different numbers of views; those with one view say nothing.
    """  # noqa: E501

    def of(self, batch: Scored) -> Tensor:
        views = _views(batch)
        own = views.per_product(_only(views.scores, views.positive))
        all_ = views.per_product(_only(views.scores, views.positive | views.negative))
        known = views.sum_of(views.positive.sum(1).to(own.dtype)) > 0
        return (all_ - own)[known].mean()


class MVDHEL(PairLoss):
    """L = -mean_i [ log sum_{k<l} exp(u_ik u_il / t) - sum_k log sum_{j != i} exp(u_ik u_jk / t) ]

    "Multi-view decoupled hyperspherical energy loss" of Koromilas et al. (NeurIPS 2024): views
    of a product attract each other whatever the negatives do, and negatives are of the same
    view, so that pictures are told from pictures and titles from titles. With sums of
    exponentials in logarithms, where a product of them overflows. The pictures of a product
    have no order here: the negatives of a picture are all pictures of other products.

    The loss falls without bound as 1/t grows, so t is a setting; .5 is the paper's.
    """

    initial_scale = 2.0
    fixed_scale = True

    def of(self, batch: Scored) -> Tensor:
        views = _views(batch)
        attracted = views.per_product(_only(views.scores, views.positive))
        count = len(batch.image)
        same_kind = torch.zeros_like(views.negative)
        same_kind[:count, :count] = same_kind[count:, count:] = True
        counted = views.negative & same_kind
        energies = views.per_view(_only(views.scores, counted))
        repelled = views.sum_of(torch.where(counted.any(1), energies, 0.0))
        known = views.sum_of(views.positive.sum(1).to(attracted.dtype)) > 0
        # Each pair stands in `positive` twice.
        two = torch.tensor(2.0, dtype=attracted.dtype).log()
        return (repelled - attracted + two)[known].mean()
