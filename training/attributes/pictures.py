"""The picture side: patches of a frozen tower, made once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from indexing.catalog.product import ProductImage
from indexing.embed import Progress, VectorCache, embed_pictures
from indexing.errors import TrainingError
from indexing.models.clip import ClipEncoder
from indexing.models.cma_clip.towers import picture_tokens
from indexing.models.protocol import Pixels
from training.images import Rows, report_left_out


class FrozenPatches:
    """What a picture tower that does not change makes of pictures.

    Each goes through the tower once, not once an epoch. The patches are kept under `folder` as
    float16, read from disk as they are needed; a run that was stopped finds them there.

    Raises:
        TrainingError: No picture can be read.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        pictures: Sequence[ProductImage],
        folder: Path,
        progress: Progress | None = None,
    ) -> None:
        tower = _PatchEncoder(encoder)
        cache = VectorCache(folder / tower.fingerprint[:16], tower.dim)
        embedded = embed_pictures(pictures, len(pictures), tower, cache, progress=progress)
        report_left_out(embedded.failures, pictures)
        keys = embedded.keys
        self.usable = np.array([key is not None for key in keys], bool)
        if not self.usable.any():
            raise TrainingError("nothing to train on: none of the pictures can be read")
        self._places = np.cumsum(self.usable) - 1
        self._shape = (tower.tokens, encoder.dim)
        self._patches = _mapped(
            [key for key in keys if key is not None],
            cache,
            folder / f"{tower.fingerprint[:16]}-{_digest(keys)}.npy",
            tower.dim,
        )

    def batches(self, batches: Sequence[Rows]) -> Iterator[tuple[Rows, Tensor]]:
        """For each batch its rows that could be read, and their patches as `picture_tokens`
        gives them, float32 [m, 1 + patches, dim]."""
        for batch in batches:
            rows = batch[self.usable[batch]]
            patches = self._patches[self._places[rows]].astype(np.float32)
            yield rows, torch.from_numpy(patches).view(len(rows), *self._shape)


def _digest(keys: Sequence[bytes | None]) -> str:
    return hashlib.sha256(b"".join(key or b"-" for key in keys)).hexdigest()[:16]


def _mapped(keys: Sequence[bytes], cache: VectorCache, path: Path, dim: int) -> NDArray[np.float16]:
    """The patches in the order of the pictures, float16 [n, dim], mapped."""
    whole = (len(keys), dim)
    if path.exists():
        known: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        if known.shape == whole and known.dtype == np.float16:
            return known
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    written = np.lib.format.open_memmap(temporary, "w+", np.float16, whole)
    for start in range(0, len(keys), 256):
        written[start : start + 256] = cache.gather(keys[start : start + 256])
    written.flush()
    temporary.replace(path)
    mapped: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


class _PatchEncoder:
    """A picture tower's patches, flattened, in the shape of an encoder."""

    def __init__(self, encoder: ClipEncoder) -> None:
        self._encoder = encoder
        self.name = f"{encoder.name} by patches"
        self.image_size = encoder.image_size
        blank = torch.zeros(1, 3, encoder.image_size, encoder.image_size)
        self.tokens = int(self._tokens(blank).shape[1])
        self.dim = self.tokens * encoder.dim
        digest = hashlib.sha256(repr(sorted(encoder.config["preprocess_cfg"].items())).encode())
        for key, value in encoder.model.visual.state_dict().items():
            digest.update(key.encode() + value.cpu().numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        self.preprocess = encoder.preprocess

    def embed_pixels(self, pixels: Pixels) -> NDArray[np.float32]:
        found: NDArray[np.float32] = (
            self._tokens(torch.from_numpy(pixels)).flatten(1).float().cpu().numpy()
        )
        return found

    def embed_images(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        return self.embed_pixels(np.stack([self.preprocess(picture) for picture in pictures]))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise NotImplementedError("a picture tower reads no texts")

    def _tokens(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return picture_tokens(self._encoder.model, pixels.to(self._encoder.device))
