"""What every test may use: a tiny encoder whose answers can be worked out by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image, ImageColor

from indexing.table import IMAGE_SCHEMA, Images

# No test waits on time: a slow machine must not turn an example into a failure.
settings.register_profile("shoplens", deadline=None)
settings.load_profile("shoplens")


class TinyEncoder:
    """Sees a picture as 4 x 4 coloured cells; reads a colour word as that plain picture.

    Vectors are the 48 cell values shifted to [-1, 1] (plus a constant, so that none is
    zero), made unit length. Words that are no colour have no effect.
    """

    name = "tiny"
    dim = 49
    image_size = 4

    def __init__(self, salt: str = "") -> None:
        self.fingerprint = hashlib.sha256(f"tiny{salt}".encode()).hexdigest()
        self.encoded = 0  # pictures that went through the tower

    def preprocess(self, picture: Image.Image) -> torch.Tensor:
        cells = np.asarray(picture.convert("RGB").resize((4, 4), Image.Resampling.BOX))
        return torch.from_numpy(cells.astype(np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()

    def embed_pixels(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        self.encoded += len(pixels)
        flat = np.asarray(pixels, dtype=np.float32).reshape(len(pixels), -1)
        vectors = np.concatenate([flat, np.full((len(flat), 1), 0.5, np.float32)], axis=1)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def embed_images(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        return self.embed_pixels(torch.stack([self.preprocess(picture) for picture in pictures]))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.embed_images([_plain(text) for text in texts])


def _plain(text: str) -> Image.Image:
    colours = [word for word in text.lower().split() if word in ImageColor.colormap]
    mean = np.mean([ImageColor.getrgb(word)[:3] for word in colours] or [(128, 128, 128)], axis=0)
    return Image.new("RGB", (4, 4), (int(mean[0]), int(mean[1]), int(mean[2])))


@pytest.fixture
def tiny_encoder() -> TinyEncoder:
    return TinyEncoder()


@pytest.fixture
def other_encoder() -> TinyEncoder:
    """Same vectors as `tiny_encoder`, another fingerprint."""
    return TinyEncoder("other")


def pictures_of(
    owners: Sequence[int],
    *,
    main: Sequence[bool] | None = None,
    hashes: Sequence[int] | None = None,
) -> Images:
    """The pictures of products, one row an owner: `0.png` and so on, no files, all different."""
    count = len(owners)
    return Images(
        pa.table(
            {
                "product": owners,
                "location": [f"{row}.png" for row in range(count)],
                "path": [None] * count,
                "role": ["main" if yes else "additional" for yes in main or [True] * count],
                "sha256": [f"{row:064x}" for row in range(count)],
                "phash": [0] * count if hashes is None else hashes,
            },
            schema=IMAGE_SCHEMA,
        )
    )
