"""The picture side of training: a locked tower seen once, or an open one seen each time."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from indexing.catalog.product import ProductImage
from indexing.embed import Progress, VectorCache, embed_pictures
from indexing.errors import ImageError, TrainingError
from indexing.images import read_image
from indexing.models.clip import ClipEncoder
from indexing.models.protocol import Encoder, Pixels
from training.encoders import TrainedEncoder

Rows = NDArray[np.int64]
logger = logging.getLogger(__name__)


class ImageSide(Protocol):
    """Hands out pictures by row and turns them into embeddings that carry gradients."""

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, Tensor]]:
        """For each batch, in order: its rows that could be read, and what `embed` takes for
        them. Both are empty where none could be read."""

    def embed(self, images: Tensor) -> Tensor:
        """float [n, dim], not normalised."""

    def before(self, images: Tensor) -> Tensor:
        """Unit vectors [n, dim] of what the tower made of these pictures before training."""


class FrozenVectors:
    """What an encoder that does not change makes of pictures.

    Each picture goes through it once, not once an epoch; what comes out is kept on disk under
    `folder`, so that a stopped run does not start over. Pictures are seen without augmentation.

    Attributes:
        usable: bool [n], which pictures can be read.
        features: float32 [m, dim], of those.

    Raises:
        TrainingError: No picture can be read.
    """

    def __init__(
        self,
        encoder: Encoder,
        pictures: Sequence[ProductImage],
        folder: Path,
        progress: Progress | None = None,
    ) -> None:
        cache = VectorCache(folder / encoder.fingerprint[:16], encoder.dim)
        embedded = embed_pictures(pictures, len(pictures), encoder, cache, progress=progress)
        report_left_out(embedded.failures, pictures)
        self.usable = np.array([key is not None for key in embedded.keys], bool)
        if not self.usable.any():
            raise TrainingError("nothing to train on: none of the pictures can be read")
        self._places = np.cumsum(self.usable) - 1
        self.features = torch.from_numpy(
            cache.gather([key for key in embedded.keys if key is not None])
        )

    def of(self, rows: Rows) -> Tensor:
        """The vectors of usable pictures by their numbers, float32 [m, dim]."""
        return self.features[self._places[rows]]

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, Tensor]]:
        for batch in batches:
            rows = batch[self.usable[batch]]
            yield rows, self.of(rows)


class LockedImages(FrozenVectors):
    """The picture tower stays as it is, all but its last projection; see `FrozenVectors`.

    Raises:
        TrainingError: The tower has no last projection that can be told apart, or no
            picture can be read.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        pictures: Sequence[ProductImage],
        folder: Path,
        progress: Progress | None = None,
    ) -> None:
        self._visual = encoder.model.visual
        self._device = encoder.device
        self._before = copy.deepcopy(last_projection(self._visual)).requires_grad_(False)
        super().__init__(TrunkEncoder(encoder), pictures, folder, progress)

    def embed(self, images: Tensor) -> Tensor:
        embeddings: Tensor = last_projection(self._visual)(images.to(self._device))
        return embeddings

    def before(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return functional.normalize(self._before(images.to(self._device)), dim=-1)


class TrunkEncoder:
    """A picture tower without its last projection, in the shape of an encoder."""

    def __init__(self, encoder: ClipEncoder) -> None:
        visual = encoder.model.visual
        self._encoder = encoder
        self.name = f"{encoder.name} without projection"
        self.image_size = encoder.image_size
        self.dim = int(last_projection(visual).in_features)
        digest = hashlib.sha256(repr(sorted(encoder.config["preprocess_cfg"].items())).encode())
        for key, value in visual.trunk.state_dict().items():
            digest.update(key.encode() + value.cpu().numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        self.preprocess = encoder.preprocess

    def embed_pixels(self, pixels: Pixels) -> NDArray[np.float32]:
        visual = self._encoder.model.visual
        with torch.inference_mode():
            features: Tensor = visual.trunk(torch.from_numpy(pixels).to(self._encoder.device))
        return features.float().cpu().numpy()

    def embed_images(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        return self.embed_pixels(np.stack([self.preprocess(picture) for picture in pictures]))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise NotImplementedError("a picture tower reads no texts")


def last_projection(visual: Any) -> nn.Linear:
    """The linear layer behind a timm picture tower.

    Raises:
        TrainingError: The tower is of another kind.
    """
    head = getattr(visual, "head", None)
    projection = getattr(head, "proj", None)
    if not hasattr(visual, "trunk") or not isinstance(projection, nn.Linear):
        raise TrainingError(
            "--lock-image needs a timm picture tower with a linear projection; "
            "train this model without it"
        )
    return projection


class OpenImages:
    """Every picture is decoded and sent through the whole tower each time.

    Args:
        augment: seed of random crops and mirroring; None shows pictures as search does.
        remember: keep the tower as it is now, for `before`.
    """

    def __init__(
        self,
        encoder: TrainedEncoder,
        pictures: Sequence[ProductImage],
        *,
        augment: int | None,
        remember: bool = False,
    ) -> None:
        self._encoder = encoder
        self._before: Any = None
        if remember:
            self._before = copy.deepcopy(encoder.model).eval().requires_grad_(False)
        self._pictures = pictures
        self._seed = augment
        self.usable = np.ones(len(pictures), bool)
        self._mean = torch.tensor(encoder.mean).view(3, 1, 1)
        self._std = torch.tensor(encoder.std).view(3, 1, 1)

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, Tensor]]:
        pool = ThreadPoolExecutor(thread_name_prefix="decode")
        ahead: deque[tuple[Rows, list[Future[Tensor | None]]]] = deque()
        try:
            for batch in batches:
                rows = batch[self.usable[batch]]
                ahead.append((rows, [pool.submit(self._load, int(r), epoch) for r in rows]))
                if len(ahead) == 2:  # the next batch is decoded while this one trains
                    yield self._loaded(*ahead.popleft())
            while ahead:
                yield self._loaded(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self._encoder.model.encode_image(images.to(self._encoder.device))
        return features

    def before(self, images: Tensor) -> Tensor:
        if self._before is None:
            raise TrainingError("pictures that are not remembered have no similarities to keep")
        with torch.no_grad():
            features = self._before.encode_image(images.to(self._encoder.device))
        return functional.normalize(features.float(), dim=-1)

    def _loaded(self, rows: Rows, futures: list[Future[Tensor | None]]) -> tuple[Rows, Tensor]:
        pictures = [future.result() for future in futures]
        readable = np.array([picture is not None for picture in pictures], bool)
        self.usable[rows[~readable]] = False
        blank = torch.empty(0, 3, self._encoder.image_size, self._encoder.image_size)
        shown = [picture for picture in pictures if picture is not None]
        return rows[readable], torch.stack(shown) if shown else blank

    def _load(self, row: int, epoch: int) -> Tensor | None:
        picture = self._pictures[row]
        if picture.path is None:
            return None
        size = self._encoder.image_size
        try:
            decoded = read_image(picture.path, at_least=size)
        except ImageError as error:
            logger.warning("left out of training: %s: %s", picture.location, error)
            return None
        if self._seed is None:
            return torch.from_numpy(self._encoder.preprocess(decoded))
        # Its own random numbers for each picture and epoch: threads cannot reorder them.
        cropped = random_crop(decoded, size, np.random.default_rng([self._seed, epoch, row]))
        pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).float() / 255
        return (pixels - self._mean) / self._std


def random_crop(picture: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Between 70% and all of the area, 3:4 to 4:3 in shape, mirrored half of the time."""
    share, shape = rng.uniform(0.7, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    width = min(1.0, float(np.sqrt(share * shape))) * picture.width
    height = min(1.0, float(np.sqrt(share / shape))) * picture.height
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
    box = (left, top, left + width, top + height)
    cropped = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cropped


def report_left_out(failures: dict[int, str], pictures: Sequence[ProductImage]) -> None:
    """Says which pictures cannot be used, and why."""
    for number, reason in failures.items():
        logger.warning("left out of training: %s: %s", pictures[number].location, reason)
