"""The gradient of a batch of any size, on any number of devices, in the memory of a chunk.

Gradient caching (Gao et al., RepL4NLP 2021): a contrastive loss looks at all embeddings of a
batch at once, but each embedding depends on its own picture or title alone. So all are
computed first, a chunk at a time and without a graph; then the loss and its gradient on the
embeddings; then each chunk once more, with a graph that takes its part of that gradient back
to the weights. What comes out is the gradient of the whole batch. A batch of one chunk keeps
its graph, and nothing is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from indexing.errors import TrainingError
from indexing.models.clip import ClipEncoder
from training.config import Precision, TrainConfig
from training.data import Pairs, units
from training.distributed import Ranks
from training.images import ImageSide
from training.losses import PairLoss
from training.losses.batch import upcast
from training.texts import TextSide, hide_words

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """What came of a batch; over all processes. `parts` are losses that `loss` sums up.

    Where `loss` is not finite there are no gradients, and `suspects` are the rows whose
    embeddings are not finite either; in all other cases the rows of the batch.
    """

    loss: float
    penalty: float
    kept: float | None
    gradient_norm: float
    suspects: Rows
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Embedded:
    """A chunk: unit vectors [n, dim] of its pictures and titles."""

    images: Tensor
    texts: Tensor
    penalty: Tensor
    kept: float | None


@dataclass(frozen=True)
class _Share:
    """What this process has of a batch: rows, their pictures, token ids [n, length]."""

    rows: Rows
    pictures: Tensor
    ids: Tensor
    epoch: int
    step: int


class BatchGradients:
    """Leaves the gradients of batches in `.grad` of the optimizer's parameters.

    Raises:
        TrainingError: Words are to be hidden, and the model has no token for unknown ones.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        pairs: Pairs,
        images: ImageSide,
        texts: TextSide,
        loss: PairLoss,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        ranks: Ranks,
    ) -> None:
        self._model = encoder.model
        self._device = torch.device(encoder.device)
        self._dim = encoder.dim
        self._tokens = encoder.tokenizer(pairs.titles)
        unknown_id = getattr(encoder.tokenizer, "unknown_id", None)
        if config.word_dropout and unknown_id is None:
            raise TrainingError(
                f"{encoder.name} has no token for unknown words: leave out word dropout"
            )
        self._unknown_id: int = unknown_id or 0
        self._keys = torch.from_numpy(pairs.keys)
        unit = units(pairs)[0]
        # Pairs linked by product or picture, though not by title, are no negatives either.
        self._units = None if _alike(unit, pairs.keys) else torch.from_numpy(unit)
        self._images = images
        self._texts = texts
        self._loss = loss
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._config = config
        self._ranks = ranks
        self._half = wants_bfloat16(config.precision, self._device)

    def __call__(
        self, rows: Rows, pictures: Tensor, counts: Sequence[int], *, epoch: int, step: int
    ) -> Outcome:
        """Sets the gradients, unless the loss is not finite.

        Args:
            rows, pictures: this process's share, as an ImageSide gives it.
            counts: how many pairs each process has, in rank order; at least one in all.
            epoch, step: from 0; steps count over all epochs.
        """
        config, ranks, total = self._config, self._ranks, sum(counts)
        share = _Share(rows, pictures, self._shown(rows, epoch), epoch, step)
        size = config.chunk or max(1, len(rows))
        parts = [slice(at, min(at + size, len(rows))) for at in range(0, len(rows), size)]
        whole = len(parts) == 1
        with torch.set_grad_enabled(whole):
            chunks = [self._embed(share, part, number) for number, part in enumerate(parts)]

        images = self._gathered([chunk.images for chunk in chunks], counts).requires_grad_()
        texts = self._gathered([chunk.texts for chunk in chunks], counts).requires_grad_()
        everyone = ranks.gather(torch.from_numpy(rows).to(self._device), counts).cpu()
        before = None
        if config.keep_similarities or self._loss.needs_teacher:
            before = self._gathered([self._images.before(pictures[part]) for part in parts], counts)
        loss = self._scored(images, texts, everyone, before, step)
        if config.keep_similarities and before is not None:
            loss = loss + config.keep_similarities * similarity_loss(images, before)
        penalty, kept = self._averages(chunks, total)
        value = loss.item() + penalty
        if not math.isfinite(value):
            return Outcome(value, penalty, kept, math.nan, _broken(images, texts, everyone))

        self._clear()
        loss.backward()  # type: ignore[no-untyped-call]
        if not ranks.first:  # scale and bias: the same in each process, and added up below
            self._clear()
        start = sum(counts[: ranks.rank])
        for number, part in enumerate(parts):
            chunk = chunks[number] if whole else self._embed(share, part, number)
            mine = slice(start + part.start, start + part.stop)
            _backward(chunk, _gradient(images)[mine], _gradient(texts)[mine], total)
        ranks.sum_gradients(self._parameters)
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        return Outcome(value, penalty, kept, norm.item(), everyone.numpy())

    def _shown(self, rows: Rows, epoch: int) -> Tensor:
        """Token ids of the titles, some words hidden."""
        ids, config = self._tokens[rows], self._config
        if not config.word_dropout:
            return ids
        return hide_words(ids, rows, config.word_dropout, self._unknown_id, config.seed, epoch)

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _gathered(self, parts: list[Tensor], counts: Sequence[int]) -> Tensor:
        """[n, dim] over all processes, without gradient."""
        none = torch.zeros(0, self._dim, device=self._device)
        return self._ranks.gather(torch.cat([none, *parts]), counts)

    def _embed(self, share: _Share, part: slice, number: int) -> _Embedded:
        """A chunk through both towers; the same when it is called again."""
        seeds = [self._config.seed, share.step, self._ranks.rank, number]
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        ids = share.ids[part].to(self._device)
        # A context of its own each time: autocast keeps weights that it has cast, and those
        # cast without a graph would have no gradient.
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            images = self._images.embed(share.pictures[part])
            texts = self._texts(ids, share.rows[part], share.epoch)
        return _Embedded(
            functional.normalize(upcast(images), dim=-1),
            functional.normalize(upcast(texts.embeddings), dim=-1),
            texts.penalty,
            texts.kept,
        )

    def _scored(
        self, images: Tensor, texts: Tensor, rows: Tensor, before: Tensor | None, step: int
    ) -> Tensor:
        keys, ignore = self._keys[rows].to(self._device), None
        if self._units is not None:
            unit = self._units[rows].to(self._device)
            linked = unit[:, None] == unit[None, :]
            ignore = linked & (keys[:, None] != keys[None, :])
        loss: Tensor = self._loss(
            images,
            texts,
            self._model.logit_scale.exp(),
            logit_bias=self._model.logit_bias if self._loss.initial_bias is not None else None,
            image_pid=keys,
            text_pid=keys,
            sample_idx=rows.to(self._device),
            ignore=ignore,
            teacher_image=before if self._loss.needs_teacher else None,
            step=step,
        )["loss"]
        return loss

    def _averages(self, chunks: list[_Embedded], total: int) -> tuple[float, float | None]:
        """Penalty and kept share of the batch, each title counting the same."""
        sums = [0.0, 0.0, 0.0]
        for chunk in chunks:
            sums[0] += len(chunk.texts) * chunk.penalty.item()
            if chunk.kept is not None:
                sums[1] += len(chunk.texts) * chunk.kept
                sums[2] += len(chunk.texts)
        penalty, kept, known = self._ranks.total(sums)
        return penalty / total, kept / known if known else None


def similarity_loss(embeddings: Tensor, before: Tensor) -> Tensor:
    """Mean squared change of the cosines between the pictures of a batch.

    Relational distillation (Park et al., CVPR 2019, with cosines for distances): what the
    tower found alike before training stays alike, whatever the space is turned into.

    Args:
        embeddings: unit vectors [n, d]; before: unit vectors [n, e] of the same pictures.
    """
    return (embeddings @ embeddings.T - before @ before.T).square().mean()


def wants_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether the towers run in bfloat16: `auto` does so on a GPU that has it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def _backward(chunk: _Embedded, images: Tensor, texts: Tensor, total: int) -> None:
    """Takes gradients on a chunk's embeddings, and its share of the penalty, to the weights."""
    share = torch.full_like(chunk.penalty, len(images) / total)
    ends = [(chunk.images, images), (chunk.texts, texts), (chunk.penalty, share)]
    trained = [(end, gradient) for end, gradient in ends if end.requires_grad]
    if trained:
        torch.autograd.backward([end for end, _ in trained], [gradient for _, gradient in trained])


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _broken(images: Tensor, texts: Tensor, rows: Tensor) -> Rows:
    """The rows whose embeddings are not finite; all where there are none."""
    broken = ~(images.isfinite().all(1) & texts.isfinite().all(1)).cpu()
    found: Rows = (rows[broken] if broken.any() else rows).numpy()
    return found


def _alike(units: Rows, keys: Rows) -> bool:
    """Whether no unit has two keys."""
    return len(np.unique(np.stack([units, keys]), axis=1).T) == len(np.unique(units))
