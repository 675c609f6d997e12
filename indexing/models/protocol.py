"""What an encoder is: pictures and titles to unit vectors in one space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Vectors = NDArray[np.float32]
Pixels = NDArray[np.float32]  # of one picture [3, h, w], or of several [n, 3, h, w]


@dataclass(frozen=True)
class Parent:
    """The encoder that an optimised one was made of.

    Attributes:
        fingerprint: the parent's.
        passed: whether the two were measured to find as much, so that an index by the parent
            may be asked by the optimised one.
    """

    fingerprint: str
    passed: bool


class Encoder(Protocol):
    """A dual encoder. Users subclass nothing: anything with these members will do.

    Embeddings are unit vectors and do not depend on the size or order of the batch
    (cosine >= .99999). An encoder that was made of another one also has a `parent`, and one that
    works on several batches at a time `embed_batches`, see below.
    """

    @property
    def name(self) -> str:
        """The name `load_encoder` was given."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def image_size(self) -> int:
        """Longest side in pixels of what the picture tower sees."""

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over weights, preprocessing and tokenizer."""

    def preprocess(self, picture: Image) -> Pixels:
        """An RGB picture to float32 [3, image_size, image_size]; safe in threads."""

    def embed_pixels(self, pixels: Pixels) -> Vectors:
        """Preprocessed pictures [n, 3, h, w] to float32 [n, dim] unit vectors."""

    def embed_images(self, pictures: Sequence[Image]) -> Vectors:
        """RGB pictures to float32 [n, dim] unit vectors."""

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts to float32 [n, dim] unit vectors."""


def embed_batches(encoder: Encoder, batches: Iterable[Pixels]) -> Iterator[Vectors]:
    """The vectors of batches of preprocessed pictures, in order.

    An encoder with a method of this name works on several of them at a time, and takes some more
    than it has given back.
    """
    several: Callable[[Iterable[Pixels]], Iterator[Vectors]] | None
    several = getattr(encoder, "embed_batches", None)
    return map(encoder.embed_pixels, batches) if several is None else several(batches)


def parent_of(encoder: Encoder) -> Parent | None:
    """What the encoder was made of, if it was made of another one."""
    found: Parent | None = getattr(encoder, "parent", None)
    return found
