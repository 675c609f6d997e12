"""A batch through ALBEF's three losses; a `Method` of the training loop.

The keys of the contrastive loss come from the slow copy and carry no gradient, so the batch
can be taken in chunks: first all keys, then a chunk at a time. Hard negatives for matching are
looked for within a chunk, and so within the share of a process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.albef.reading import Reader, States
from training.albef.config import AlbefTraining
from training.albef.losses import (
    UNSEEN,
    Relations,
    contrastive_loss,
    guessing_loss,
    hard_negatives,
    hide_tokens,
)
from training.albef.momentum import NOBODY, Momentum
from training.data import Pairs, units
from training.distributed import Ranks
from training.gradients import Outcome, Rows, wants_bfloat16
from training.losses.mixing import MIXED, mixed_scores

# Token ids of some pairs to those that are read in an epoch (ids, pairs, epoch).
Shown = Callable[[Tensor, Rows, int], Tensor]
TEMPERATURE = (0.001, 0.5)  # the bounds of ALBEF
_UNMIXED = 0.1  # share of the steps before hard negatives are mixed


@dataclass(frozen=True)
class _Chunk:
    """Some pairs of a batch, and what the slow copy makes of them."""

    rows: Rows
    number: int
    pixels: Tensor
    ids: Tensor
    mask: Tensor
    shown: Tensor  # ids with words hidden
    labels: Tensor  # and what these are; UNSEEN elsewhere
    slow_image: Tensor  # states [n, 1 + patches, width]
    slow_images: Tensor  # unit vectors [n, embed_dim]
    slow_texts: Tensor


@dataclass(frozen=True)
class _Keys:
    """What a batch is compared with: the slow copy's batch and queue."""

    images: Tensor  # unit vectors [k, embed_dim]
    texts: Tensor
    pairs: Tensor  # int64 [k], NOBODY where the queue is empty


@dataclass(frozen=True)
class _Losses:
    """Of a chunk; `broken` are its rows whose embeddings are not finite, bool [n]."""

    itc: Tensor
    itm: Tensor
    mlm: Tensor
    penalty: Tensor
    kept: float | None
    broken: Tensor


class AlbefMethod:
    """How ALBEF learns from a batch."""

    def __init__(
        self,
        encoder: AlbefEncoder,
        pairs: Pairs,
        momentum: Momentum,
        optimizer: torch.optim.Optimizer,
        config: AlbefTraining,
        ranks: Ranks,
        steps_of_epoch: int,
        shown: Shown | None = None,
    ) -> None:
        self._encoder = encoder
        self._model = encoder.model
        self._device = torch.device(encoder.device)
        self._tokens = encoder.tokenizer(pairs.titles)
        self._keys = torch.from_numpy(pairs.keys).to(self._device)
        self._units = torch.from_numpy(units(pairs)[0]).to(self._device)
        self._momentum = momentum
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._config = config
        self._ranks = ranks
        self._steps_of_epoch = steps_of_epoch
        self._shown = shown
        self._half = wants_bfloat16(config.precision, self._device)

    def train_mode(self) -> None:
        self._model.train()

    def clamp(self) -> None:
        with torch.no_grad():
            self._model.temp.clamp_(*TEMPERATURE)

    def logit_scale(self) -> float:
        return 1 / float(self._model.temp.detach())

    def __call__(
        self, rows: Rows, pictures: Tensor, counts: Sequence[int], *, epoch: int, step: int
    ) -> Outcome:
        """As of `Method`."""
        config, ranks, total = self._config, self._ranks, sum(counts)
        self._momentum.follow(self._model)
        size = config.chunk or max(1, len(rows))
        parts = [slice(at, at + size) for at in range(0, len(rows), size)]
        chunks = [
            self._chunk(rows[part], number, pictures[part], epoch, step)
            for number, part in enumerate(parts)
        ]
        keys = self._gathered(chunks, rows, counts)
        hidden = [int((chunk.labels != UNSEEN).sum()) for chunk in chunks]
        all_hidden = ranks.total([sum(hidden)])[0]
        self._clear()
        sums, broken = np.zeros(5), [torch.zeros(0, dtype=torch.bool)]
        for chunk, guessed in zip(chunks, hidden, strict=True):
            losses = self._losses(chunk, keys, step)
            # Means over the pairs of the batch, and over its hidden tokens.
            share, of_hidden = len(chunk.rows) / total, guessed / max(1, all_hidden)
            named = (losses.itc, losses.itm, losses.mlm, losses.penalty)
            weights = (share, share, of_hidden, share)
            weighted = [weight * loss for weight, loss in zip(weights, named, strict=True)]
            torch.stack(weighted).sum().backward()  # type: ignore[no-untyped-call]
            sums += [*(part.item() for part in weighted), share * (losses.kept or 0.0)]
            broken.append(losses.broken)
        self._momentum.enqueue(keys.images[:total], keys.texts[:total], keys.pairs[:total])
        itc, itm, mlm, penalty, kept = ranks.total(sums.tolist())
        value = itc + itm + mlm + penalty
        flags = ranks.gather(torch.cat(broken).int().to(self._device), counts).bool().cpu()
        everyone = keys.pairs[:total].cpu()
        suspects: Rows = (everyone[flags] if flags.any() else everyone).numpy()
        norm = math.nan
        if math.isfinite(value):
            ranks.sum_gradients(self._parameters)
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients).item()
        else:
            self._clear()
        pruned = self._encoder.pruning is not None
        parts_of = {"itc": itc, "itm": itm, "mlm": mlm}
        return Outcome(value, penalty, kept if pruned else None, norm, suspects, parts_of)

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _chunk(self, rows: Rows, number: int, pictures: Tensor, epoch: int, step: int) -> _Chunk:
        """The pairs, seen by the slow copy, which follows the masks of the model."""
        ids = self._tokens[rows].to(self._device)
        if self._shown is not None:
            ids = self._shown(ids, rows, epoch)
        mask = self._encoder.tokenizer.mask(ids)
        pixels = pictures.to(self._device)
        slow, pruning = self._momentum.model, self._encoder.pruning
        with torch.no_grad(), self._autocast():
            image = slow.visual_encoder(pixels)
            follow = None
            if pruning is not None:
                self._seed(step, number)
                follow = Reader(self._model, pruning).read(ids, mask)
            texts = Reader(slow, pruning).read(ids, mask, follow=follow)
            images, vectors = slow.image_vectors(image), slow.text_vectors(texts.x)
        shown, labels = self._hidden(rows, ids, mask, epoch)
        return _Chunk(rows, number, pixels, ids, mask, shown, labels, image, images, vectors)

    def _hidden(self, rows: Rows, ids: Tensor, mask: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        config, tokenizer = self._config, self._encoder.tokenizer
        special = torch.tensor([tokenizer.cls_id, tokenizer.sep_id], device=self._device)
        return hide_tokens(
            ids,
            mask & ~torch.isin(ids, special),
            rows,
            config.masked_share,
            tokenizer.mask_id,
            self._model.config.vocab_size,
            config.seed,
            epoch,
        )

    def _gathered(self, chunks: Sequence[_Chunk], rows: Rows, counts: Sequence[int]) -> _Keys:
        none = torch.zeros(0, self._model.config.embed_dim, device=self._device)
        images = torch.cat([none, *(chunk.slow_images for chunk in chunks)])
        texts = torch.cat([none, *(chunk.slow_texts for chunk in chunks)])
        pairs = torch.from_numpy(rows).to(self._device)
        gather, queue = self._ranks.gather, self._momentum
        return _Keys(
            torch.cat([gather(images, counts), queue.image_queue]),
            torch.cat([gather(texts, counts), queue.text_queue]),
            torch.cat([gather(pairs, counts), queue.pairs]),
        )

    def _losses(self, chunk: _Chunk, keys: _Keys, step: int) -> _Losses:
        model, pruning = self._model, self._encoder.pruning
        reader = Reader(model, pruning)
        soft = self._config.distillation * min(1.0, step / self._steps_of_epoch)
        self._seed(step, chunk.number)
        with self._autocast():
            texts = reader.read(chunk.ids, chunk.mask)
            image = model.visual_encoder(chunk.pixels)
            images, vectors = model.image_vectors(image), model.text_vectors(texts.x)
            itc = self._contrastive(chunk, keys, images, vectors, soft, step)
            fused = reader.fuse(texts, image)
            itm = self._matching(reader, chunk, texts, image, fused, images, vectors, step)
            mlm = self._guessing(reader, chunk, image, soft)
        finite = images.isfinite().all(1) & vectors.isfinite().all(1)
        kept = None if pruning is None else float(fused.kept())
        return _Losses(itc, itm, mlm, reader.penalty(fused), kept, ~finite.detach().cpu())

    def _contrastive(
        self, chunk: _Chunk, keys: _Keys, images: Tensor, texts: Tensor, soft: float, step: int
    ) -> Tensor:
        """ITC, with the mean over both directions."""
        relations, temp = self._relations(chunk.rows, keys.pairs), self._model.temp
        to_texts = contrastive_loss(
            _scores(images, keys.texts, temp),
            _scores(chunk.slow_images, keys.texts, temp),
            relations,
            soft,
            self._mixed(images, keys.texts, relations, chunk, step, 0),
        )
        to_images = contrastive_loss(
            _scores(texts, keys.images, temp),
            _scores(chunk.slow_texts, keys.images, temp),
            relations,
            soft,
            self._mixed(texts, keys.images, relations, chunk, step, 1),
        )
        return (to_texts + to_images) / 2

    def _mixed(
        self, vectors: Tensor, keys: Tensor, to: Relations, chunk: _Chunk, step: int, way: int
    ) -> Tensor | None:
        """Scores with mixtures of the hardest keys of other products; None for no mixing yet."""
        config = self._config
        if not config.hard_mixing or step < _UNMIXED * self._steps_of_epoch * config.epochs:
            return None
        seeds = [config.seed, step, self._ranks.rank, chunk.number, way]
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence(seeds).generate_state(1)[0])
        )
        with torch.autocast(vectors.device.type, enabled=False):
            cosines = mixed_scores(
                vectors.float(), keys, ~(to.positive | to.ignored), MIXED, generator
            )
            return cosines / self._model.temp

    def _relations(self, rows: Rows, others: Tensor) -> Relations:
        own, empty = torch.from_numpy(rows).to(self._device), others == NOBODY
        positive = (self._keys[own][:, None] == self._keys[others]) & ~empty
        linked = self._units[own][:, None] == self._units[others]
        return Relations(positive, (linked & ~positive) | empty)

    def _matching(
        self,
        reader: Reader,
        chunk: _Chunk,
        texts: States,
        image: Tensor,
        fused: States,
        images: Tensor,
        vectors: Tensor,
        step: int,
    ) -> Tensor:
        """ITM: each pair, each text with a hard picture, each picture with a hard text."""
        unit = self._units[torch.from_numpy(chunk.rows).to(self._device)]
        alike = unit[:, None] == unit
        temp, hard = self._model.temp.detach(), self._hardness(step)
        to_images = hard * _scores(vectors, chunk.slow_images, temp)
        to_texts = hard * _scores(images, chunk.slow_texts, temp)
        text_rows, wrong_images = hard_negatives(to_images, alike)
        image_rows, wrong_texts = hard_negatives(to_texts, alike)
        states = [fused.x[:, 0]]
        if len(text_rows) + len(image_rows):
            wrong = texts.take(torch.cat([text_rows, wrong_texts]))
            states.append(reader.fuse(wrong, image[torch.cat([wrong_images, image_rows])]).x[:, 0])
        logits = self._model.itm_head(torch.cat(states)).float()
        labels = torch.zeros(len(logits), dtype=torch.int64, device=self._device)
        labels[: len(fused.x)] = 1
        return nn.functional.cross_entropy(logits, labels)

    def _guessing(self, reader: Reader, chunk: _Chunk, image: Tensor, soft: float) -> Tensor:
        """MLM; hidden tokens are not pruned, as there would be nothing left to guess from."""
        if not self._config.masked_share:
            return torch.zeros((), device=self._device)
        shown, labels = chunk.shown, chunk.labels
        hidden = labels != UNSEEN
        texts = reader.read(shown, chunk.mask, exempt=hidden)
        fused = reader.fuse(texts, image)
        labels = labels[:, : fused.x.shape[1]]
        hidden = hidden[:, : fused.x.shape[1]]
        logits = self._model.text_encoder.words(fused.x[hidden])
        slow, pruning = self._momentum.model, self._encoder.pruning
        with torch.no_grad():
            follow = None if pruning is None else fused
            slow_reader = Reader(slow, pruning)
            slow_texts = slow_reader.read(shown, chunk.mask, follow=follow)
            slow_fused = slow_reader.fuse(slow_texts, chunk.slow_image, follow=follow)
            slow_logits = slow.text_encoder.words(slow_fused.x[hidden])
        return guessing_loss(logits, slow_logits, labels[hidden], soft)

    def _hardness(self, step: int) -> float:
        """From 0, where any negative is as likely, to 1."""
        rising = self._config.hardening * self._steps_of_epoch * self._config.epochs
        return min(1.0, step / rising) if rising else 1.0

    def _seed(self, step: int, number: int) -> None:
        """Dropout and negatives depend on the step and the chunk alone."""
        seeds = [self._config.seed, step, self._ranks.rank, number]
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._half)


def _scores(vectors: Tensor, keys: Tensor, temp: Tensor) -> Tensor:
    """Cosines over the temperature, [n, k]; in float32 also under autocast, as bfloat16 rounds
    cosines near 1 by more than a low temperature tells apart."""
    with torch.autocast(vectors.device.type, enabled=False):
        return vectors @ keys.T / temp
