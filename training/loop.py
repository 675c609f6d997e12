"""The training loop: reads top to bottom."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from indexing.errors import TrainingError
from indexing.models.clip import ClipEncoder
from indexing.models.text import embed_tokens
from training.checkpoint import Run
from training.config import TrainConfig
from training.data import Pairs
from training.images import ImageSide, last_projection
from training.losses.contrastive import multi_positive_info_nce
from training.validation import first_hit_ranks, recall_at

MAX_LOGIT_SCALE = math.log(100)  # CLIP's clamp


@dataclass(frozen=True)
class Epoch:
    """What is known at the end of an epoch; recalls are title -> picture on validation."""

    number: int
    loss: float
    recall_1: float
    recall_5: float
    recall_10: float
    logit_scale: float

    @property
    def recall(self) -> float:
        """Mean of the three, by which epochs are compared: one alone is noisier."""
        return (self.recall_1 + self.recall_5 + self.recall_10) / 3


def train_clip(
    encoder: ClipEncoder,
    pairs: Pairs,
    images: ImageSide,
    validation: Pairs,
    validation_images: ImageSide,
    out: Path,
    config: TrainConfig,
    *,
    on_step: Callable[[int, int, float], None] = lambda done, total, loss: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Fine-tunes the towers of `encoder` with multi-positive InfoNCE.

    `out` gets the best epoch by mean validation Recall@1/5/10 as a model folder, and `last/`
    the last epoch with what is needed to go on after a stop: started again with the same
    settings and data, the run continues at the next epoch with the same losses.

    Raises:
        TrainingError: A loss is not finite; the catalog is smaller than a batch; or `out`
            holds a run of other settings.
    """
    model = encoder.model
    steps_per_epoch = len(pairs) // config.batch_size
    if steps_per_epoch == 0:
        raise TrainingError(
            f"{len(pairs)} pairs do not fill a batch of {config.batch_size}: use a smaller batch"
        )
    identity = _identity(encoder, pairs, validation)
    unknown_id = getattr(encoder.tokenizer, "unknown_id", None)
    if config.word_dropout and unknown_id is None:
        raise TrainingError(
            f"{encoder.name} has no token for unknown words: leave out word dropout"
        )
    tokens = encoder.tokenizer(pairs.titles)
    keys = torch.from_numpy(pairs.keys)
    if config.lock_image:
        model.visual.requires_grad_(False)
        last_projection(model.visual).requires_grad_(True)
    optimizer = torch.optim.AdamW(
        _groups(model, config.weight_decay), lr=config.learning_rate, fused=True
    )
    total = steps_per_epoch * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, total))
    run = Run(out, encoder, optimizer, schedule, config, identity)
    history = [Epoch(**epoch) for epoch in run.load()]
    for number in range(len(history), config.epochs):
        order = np.random.default_rng([config.seed, number]).permutation(len(pairs))
        batches = np.split(order[: steps_per_epoch * config.batch_size], steps_per_epoch)
        torch.manual_seed(config.seed * 100_003 + number)
        _train_mode(model)
        losses = []
        for step, (rows, pictures) in enumerate(images.batches(batches, number)):
            image_embeddings = functional.normalize(images.embed(pictures).float(), dim=-1)
            shown = hide_words(tokens[rows], config.word_dropout, unknown_id or 0)
            text_embeddings = functional.normalize(
                embed_tokens(model, shown.to(encoder.device)).float(), dim=-1
            )
            batch_keys = keys[rows].to(encoder.device)
            loss = multi_positive_info_nce(
                image_embeddings,
                text_embeddings,
                model.logit_scale.exp(),
                image_keys=batch_keys,
                text_keys=batch_keys,
            )
            if config.keep_similarities:
                kept = similarity_loss(image_embeddings, images.before(pictures))
                loss = loss + config.keep_similarities * kept
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} at epoch {number}, batch {step} "
                    f"(first title: {pairs.titles[rows[0]]!r}): lower the learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
            losses.append(loss.item())
            on_step(number * steps_per_epoch + step + 1, total, losses[-1])
        if not losses:
            raise TrainingError("none of the pictures can be read: check the images folder")
        model.eval()
        recall = validate(encoder, validation, validation_images)
        scale = float(model.logit_scale.detach().exp())
        epoch = Epoch(number, float(np.mean(losses)), recall[1], recall[5], recall[10], scale)
        history.append(epoch)
        if epoch.recall >= max(past.recall for past in history):
            run.save_best(history)
        run.save(history)
        on_epoch(epoch)
    return history


def validate(encoder: ClipEncoder, pairs: Pairs, images: ImageSide) -> dict[int, float]:
    """Recall@1/5/10 of title -> picture: each distinct title once, all pictures as gallery."""
    everything = np.arange(len(pairs))
    rows, gallery = [], []
    with torch.inference_mode():
        for part, pictures in images.batches(np.array_split(everything, 1 + len(pairs) // 256), 0):
            rows.append(part)
            embeddings = functional.normalize(images.embed(pictures).float(), dim=-1)
            gallery.append(embeddings.cpu().numpy())
    if not rows:
        raise TrainingError("none of the validation pictures can be read")
    keys = pairs.keys[np.concatenate(rows)]
    _, first = np.unique(pairs.keys, return_index=True)
    queries = encoder.embed_texts([pairs.titles[row] for row in first])
    return recall_at(first_hit_ranks(queries, np.concatenate(gallery), pairs.keys[first], keys))


def similarity_loss(embeddings: Tensor, before: Tensor) -> Tensor:
    """Mean squared change of the cosines between the pictures of a batch.

    Relational distillation (Park et al., CVPR 2019, with cosines for distances): what the
    tower found alike before training stays alike, whatever the space is turned into.

    Args:
        embeddings: unit vectors [n, d]; before: unit vectors [n, e] of the same pictures.
    """
    return (embeddings @ embeddings.T - before @ before.T).square().mean()


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only: gains, biases and the logit scale go without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _warm_cosine(step: int, total: int) -> float:
    warm_up = max(1, round(0.05 * total))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def _train_mode(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # A catalog's batches are far narrower than what the statistics were taken from.
            module.eval()


def hide_words(tokens: Tensor, share: float, unknown_id: int) -> Tensor:
    """Tokens with this share of each title's words replaced by `unknown_id`.

    Args:
        tokens: int64 [n, length], `[SOT] words [EOT] 0 0 ...` with the highest id at [EOT].
    """
    if not share:
        return tokens
    place = torch.arange(tokens.shape[1])
    words = (place > 0) & (place < tokens.argmax(-1, keepdim=True))
    return tokens.masked_fill(words & (torch.rand(tokens.shape) < share), unknown_id)


def _identity(encoder: ClipEncoder, *parts: Pairs) -> str:
    """Hex SHA-256 of what a run starts from: the model, the titles and the pictures' names."""
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for pairs in parts:
        for picture, title in zip(pairs.pictures, pairs.titles, strict=True):
            digest.update(f"{picture.location}\0{title}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
