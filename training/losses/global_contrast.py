"""SogCLR and iSogCLR: what a large batch would say, from small ones and a memory."""

from __future__ import annotations

import torch
from torch import Tensor

from indexing.errors import TrainingError
from training.losses.base import PairLoss
from training.losses.batch import Scored


class SogCLR(PairLoss):
    """The global contrastive loss by a moving average for each pair of the catalog.

    With h_ij = s_ij - s_ii, for pictures (titles likewise, and both are summed up):

        u_i <- (1 - g) u_i + g mean_j exp(h_ij / t)
        L = mean_i mean_j sg[exp(h_ij / t) / u_i] h_ij

    over the negatives j of the batch; sg takes no gradient. Yuan et al. (ICML 2022), algorithm 1,
    in the two-modality form of Qiu et al. (ICML 2023); log u_i is kept, so that nothing overflows
    and a pair that was hard once does not fall silent. s_ii is the mean over a picture's
    positives. The value is no measure of progress; its gradient is that of
    t log mean_j exp(h_ij / t) where g is 1. t is a setting.

    Without `sample_idx` nothing is remembered: g is 1.

    Buffers: `log_u`, float32 [2, pairs], of pictures and of titles; -inf where a pair was not
    seen yet.
    """

    initial_scale = 10.0
    fixed_scale = True
    log_u: Tensor

    def __init__(self, pairs: int, gamma: float = 0.8) -> None:
        super().__init__()
        self._gamma = gamma
        self.register_buffer("log_u", torch.full((2, pairs), -torch.inf))

    def of(self, batch: Scored) -> Tensor:
        rows = batch.sample_idx
        if rows is not None and len(batch.text) != len(batch.image):
            raise TrainingError(
                f"{len(batch.image)} pictures and {len(batch.text)} titles: a loss with a memory "
                "needs them one to one"
            )
        return self._one_way(batch, 0) + self._one_way(batch.turned(), 1)

    def _one_way(self, batch: Scored, way: int) -> Tensor:
        """Of the pictures of a batch among its titles; `way` is the row of the buffers."""
        usable = batch.positive.any(1) & batch.negative.any(1)
        positive, negative = batch.positive[usable], batch.negative[usable]
        cosines = (batch.image @ batch.text.T)[usable]
        rows = None if batch.sample_idx is None else batch.sample_idx[usable]
        if not len(cosines):
            return cosines.sum()
        own = (cosines * positive).sum(1, keepdim=True) / positive.sum(1, keepdim=True)
        gaps = cosines - own
        with torch.no_grad():
            scale = self._scales(way, rows, batch.scale)
            exponents = (gaps * scale).masked_fill(~negative, -torch.inf)
            log_u = exponents.logsumexp(1) - negative.sum(1).log()
            if rows is not None:
                log_u = self._remember(way, rows, log_u)
            weights = (exponents - log_u[:, None]).exp()
            if rows is not None:
                pull = (weights * gaps * scale).sum(1) / negative.sum(1)
                self._adapt(way, rows, scale, log_u - pull)
        return (weights * gaps).sum(1).div(negative.sum(1)).mean()

    def _remember(self, way: int, rows: Tensor, now: Tensor) -> Tensor:
        """log u of these rows after a batch in which it is `now`."""
        before = self.log_u[way, rows].to(now.dtype)
        share = torch.tensor(self._gamma, dtype=now.dtype, device=now.device)
        mixed = torch.logaddexp(before + (1 - share).log(), now + share.log())
        log_u = torch.where(before.isfinite(), mixed, now)
        self.log_u[way, rows] = log_u.float()
        return log_u

    def _scales(self, way: int, rows: Tensor | None, scale: Tensor) -> Tensor:
        """1/t: of all pairs, or of each row, [n, 1]."""
        return scale

    def _adapt(self, way: int, rows: Tensor, scale: Tensor, slack: Tensor) -> None:
        """What else a batch teaches; `slack` is log u_i - mean_j w_ij h_ij / t, [n]."""


class ISogCLR(SogCLR):
    """SogCLR with a temperature for each picture and each title.

        t_i <- clip(t_i - eta v_i)
        v_i <- (1 - m) v_i + m [log u_i + rho - mean_j w_ij h_ij / t_i]

    where w_ij = exp(h_ij / t_i) / u_i: the dual of a ball of radius rho around uniform
    negatives. Frequent kinds of products have many near negatives and get a larger t. Qiu et al.
    (ICML 2023), eq. 7 and algorithm 1; t within [.005, 1], started from the logit scale.

    Buffers: `t` (0 where a pair was not seen yet) and `v`, float32 [2, pairs], besides SogCLR's.
    """

    t: Tensor
    v: Tensor

    def __init__(
        self,
        pairs: int,
        gamma: float = 0.8,
        rho: float = 2.0,
        rate: float = 0.01,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(pairs, gamma)
        self._rho, self._rate, self._momentum = rho, rate, momentum
        self.register_buffer("t", torch.zeros(2, pairs))
        self.register_buffer("v", torch.zeros(2, pairs))

    def _scales(self, way: int, rows: Tensor | None, scale: Tensor) -> Tensor:
        if rows is None:
            return scale
        t = self.t[way, rows].to(scale.dtype)
        return torch.where(t > 0, 1 / t, scale)[:, None]

    def _adapt(self, way: int, rows: Tensor, scale: Tensor, slack: Tensor) -> None:
        v = torch.lerp(self.v[way, rows].to(slack.dtype), slack + self._rho, self._momentum)
        self.v[way, rows] = v.float()
        self.t[way, rows] = (1 / scale[:, 0] - self._rate * v).clamp(0.005, 1.0).float()
