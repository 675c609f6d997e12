"""What a stage of CMA-CLIP trains, and from what: one step, one epoch, and its validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexing.catalog.product import ProductImage
from indexing.errors import TrainingError
from indexing.match_record import Mode
from indexing.models.clip import ClipEncoder
from indexing.models.cma_clip.network import CmaNetwork, Inputs
from indexing.models.cma_clip.towers import picture_tokens, text_tokens
from training.attributes.config import AttributesConfig, Stage
from training.attributes.data import UNKNOWN, Examples, Ints
from training.attributes.pictures import FrozenPatches
from training.gradients import wants_bfloat16
from training.images import OpenImages, Rows

Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Side:
    """One side of the data, ready to be read in batches."""

    examples: Examples
    ids: Tensor  # int64 [n, context_length], of the titles
    stripped: Tensor  # the same of the titles without attribute words
    empty: tuple[Tensor, Tensor]  # bool [n], whether a title is blank, whole and stripped

    @classmethod
    def of(cls, examples: Examples, encoder: ClipEncoder) -> Side:
        return cls(
            examples,
            _tokenized(encoder, examples.titles),
            _tokenized(encoder, examples.stripped),
            (_blank(examples.titles), _blank(examples.stripped)),
        )


def class_weights(labels: Ints, classes: Sequence[int], balance: float) -> list[Tensor]:
    """What each class counts, by its number of products to the power of -`balance`, 1 on average
    over products: float32 [classes] for each attribute."""
    found = []
    for place, count in enumerate(classes):
        known = labels[:, place][labels[:, place] != UNKNOWN]
        products = np.maximum(np.bincount(known, minlength=count), 1)
        weight = products.astype(np.float64) ** -balance
        weight *= products.sum() / (weight * products).sum()
        found.append(torch.from_numpy(weight.astype(np.float32)))
    return found


def losses(logits: Sequence[Tensor], labels: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The weighed cross-entropy of each attribute over the rows whose label is known, a scalar
    each; 0 where no label is.

    Args:
        logits: float [n, classes] for each attribute.
        labels: int64 [n, attributes]; UNKNOWN counts for nothing.
        weights: float [classes] for each attribute.
    """
    found = []
    for place, (own, weight) in enumerate(zip(logits, weights, strict=True)):
        target = labels[:, place]
        total = nn.functional.cross_entropy(
            own.float(), target, weight, ignore_index=UNKNOWN, reduction="sum"
        )
        count = weight[target[target != UNKNOWN]].sum()
        found.append(total / count.clamp(min=1e-12))
    return found


class StageRun:
    """What a stage trains, and from what."""

    def __init__(
        self,
        encoder: ClipEncoder,
        network: CmaNetwork,
        stage: Stage,
        config: AttributesConfig,
        sides: tuple[Side, Side],
        weights: list[Tensor],
        patches: Path,
        on_pictures: Callable[[str], Progress | None],
    ) -> None:
        network.to(encoder.device)
        self._encoder, self._network, self._stage, self._config = encoder, network, stage, config
        self._train, self._validation = sides
        self._weights = [weight.to(encoder.device) for weight in weights]
        visual = encoder.model.visual
        self._open_pictures = stage.trained == "all" and not config.lock_image
        self._open_texts = stage.trained == "all"
        encoder.model.requires_grad_(self._open_texts)
        visual.requires_grad_(self._open_pictures)
        network.requires_grad_(stage.trained != "tasks")
        for task in network.tasks:
            task.requires_grad_(True)
        trained = [
            p for part in (encoder.model, network) for p in part.parameters() if p.requires_grad
        ]
        self.optimizer = torch.optim.AdamW(
            trained, lr=stage.learning_rate, weight_decay=config.weight_decay
        )

        def pictures(side: Side, name: str, augment: int | None) -> OpenImages | FrozenPatches:
            own: list[ProductImage] = side.examples.pictures
            if self._open_pictures:
                return OpenImages(encoder, own, augment=augment)
            return FrozenPatches(encoder, own, patches, on_pictures(name))

        self._pictures = pictures(self._train, "train", config.seed if config.augment else None)
        self._held_out = pictures(self._validation, "validate", None)

    def steps(
        self, stage: int, epoch: int, behind: int, per_epoch: int
    ) -> Iterator[tuple[int, float]]:
        """Trains on the batches of an epoch but for the first `behind`; gives each step's number
        and its loss, nan for a batch none of whose pictures can be read."""
        config, examples = self._config, self._train.examples
        order = np.random.default_rng([config.seed, stage, epoch]).permutation(len(examples))
        batches = [part.astype(np.int64) for part in np.array_split(order, per_epoch)][behind:]
        self._train_mode()
        total = per_epoch * self._stage.epochs
        rising = min(config.rising_steps, total // 5)
        patches = _patches(self._pictures, batches, epoch, self._encoder)
        for step, (rows, make) in enumerate(patches, start=behind):
            done = epoch * per_epoch + step
            # Seeded by the step alone, so that a run that was stopped goes on the same.
            seeds = np.random.SeedSequence([config.seed, stage, done])
            torch.manual_seed(int(seeds.generate_state(1)[0]))
            rate = self._stage.learning_rate * min(1.0, (done + 1) / max(1, rising))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            yield step, self._step(rows, make) if len(rows) else float("nan")

    def _step(self, rows: Rows, make: Callable[[], Tensor]) -> float:
        config, device = self._config, torch.device(self._encoder.device)
        half = wants_bfloat16(config.precision, device)
        labels = torch.from_numpy(self._train.examples.labels[rows]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            with torch.set_grad_enabled(self._open_pictures):
                patches = make()
            drawn = torch.rand(len(rows), 2)
            inputs = self._inputs(
                self._train,
                rows,
                patches,
                stripped=drawn[:, 0] < config.hide_words,
                no_text=drawn[:, 1] < config.modality_dropout,
                no_picture=drawn[:, 1] > 1 - config.modality_dropout,
                learns=self._open_texts,
            )
            outputs = self._network(inputs)
        loss = torch.stack(losses(outputs.logits, labels, self._weights)).mean()
        if not bool(loss.isfinite()):
            named = ", ".join(self._train.examples.products[row] for row in rows[:3])
            raise TrainingError(
                f"the loss is {float(loss.detach())} in stage {self._stage.name} (products: "
                f"{named} and others): lower the learning rate"
            )
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return float(loss.detach())

    def _inputs(
        self,
        side: Side,
        rows: Rows,
        patches: Tensor,
        *,
        stripped: Tensor,
        no_text: Tensor,
        no_picture: Tensor,
        learns: bool,
    ) -> Inputs:
        """A batch; `stripped`, `no_text` and `no_picture` are bool [n]."""
        device = patches.device
        places = torch.from_numpy(rows)
        ids = torch.where(stripped[:, None], side.stripped[places], side.ids[places])
        blank = torch.where(stripped, side.empty[1][places], side.empty[0][places])
        missing = no_text | blank
        ids = torch.where(missing[:, None], _tokenized(self._encoder, [""]), ids)
        with torch.set_grad_enabled(learns):
            tokens, ends = text_tokens(self._encoder.model, ids.to(device))
        # Where a title is blank the picture stays: a product without either teaches nothing.
        has_picture = ~no_picture | missing
        return Inputs(
            patches.float(), tokens.float(), ends, has_picture.to(device), (~missing).to(device)
        )

    def accuracy(self) -> tuple[float, ...]:
        """Of each attribute on validation, with picture and title; 0 where no label is known."""
        logits, labels = self.validated("image+text")
        known = labels != UNKNOWN
        right = np.stack([own.argmax(1) for own in logits], axis=1) == labels
        shares = (right & known).sum(axis=0) / np.maximum(1, known.sum(axis=0))
        return tuple(float(share) for share in shares)

    def validated(self, mode: Mode) -> tuple[list[Floats], Ints]:
        """Of the examples of validation that have what the mode asks for: the logits, float32
        [m, classes] for each attribute, and the labels, int64 [m, attributes].

        Logits are those of a natural mix of classes: what their weights have added is taken
        away, the logarithm of each.
        """
        self._encoder.model.eval()
        self._network.eval()
        side, size = self._validation, self._config.batch_size
        blank = side.empty[0].numpy()
        wanted = np.flatnonzero(~blank) if "text" in mode else np.arange(len(blank))
        batches = np.array_split(wanted, max(1, -(-len(wanted) // size)))
        parts = [[np.zeros((0, task.classes), np.float32)] for task in self._network.tasks]
        labels = [np.zeros((0, len(parts)), np.int64)]
        with torch.inference_mode():
            for rows, make in _patches(self._held_out, batches, 0, self._encoder):
                inputs = self._inputs(
                    side,
                    rows,
                    make(),
                    stripped=torch.zeros(len(rows), dtype=torch.bool),
                    no_text=torch.full((len(rows),), mode == "image"),
                    no_picture=torch.full((len(rows),), mode == "text"),
                    learns=False,
                )
                outputs = self._network(inputs)
                for part, own, weight in zip(parts, outputs.logits, self._weights, strict=True):
                    part.append((own.float() - weight.log()).cpu().numpy())
                labels.append(side.examples.labels[rows])
        return [np.concatenate(part) for part in parts], np.concatenate(labels)

    def _train_mode(self) -> None:
        """Only what is trained drops out, and no norm takes statistics of narrow batches."""
        self._encoder.model.train(self._open_texts)
        self._encoder.model.visual.train(self._open_pictures)
        self._network.train()
        if self._stage.trained == "tasks":
            self._network.eval()
            for task in self._network.tasks:
                task.train()
        for module in self._encoder.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _patches(
    pictures: OpenImages | FrozenPatches, batches: Sequence[Rows], epoch: int, encoder: ClipEncoder
) -> Iterator[tuple[Rows, Callable[[], Tensor]]]:
    """For each batch its readable rows, and what makes their patches on the encoder's device."""
    device = encoder.device
    if isinstance(pictures, FrozenPatches):
        for rows, patches in pictures.batches(batches):
            yield rows, partial(patches.to, device)
    else:
        for rows, pixels in pictures.batches(batches, epoch):
            yield rows, partial(picture_tokens, encoder.model, pixels.to(device))


def _tokenized(encoder: ClipEncoder, titles: Sequence[str]) -> Tensor:
    return encoder.tokenizer(list(titles)) if titles else torch.zeros(0, 1, dtype=torch.int64)


def _blank(titles: Sequence[str]) -> Tensor:
    return torch.tensor([not title.strip() for title in titles], dtype=torch.bool)
