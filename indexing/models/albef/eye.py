"""How ALBEF takes pictures in; without torch."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from indexing.models.pictures import Normalised, Squashed, as_rgb, bounded, resized
from indexing.models.protocol import Pixels

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class AlbefEye:
    """What takes pictures in for ALBEF."""

    image_size: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def preprocess(self, picture: Image.Image) -> Pixels:
        """The whole picture, squashed into a square, to float32 [3, image_size, image_size]."""
        size = (self.image_size, self.image_size)
        shown = resized(as_rgb(bounded(picture, self.image_size)), Squashed(*size))
        return Normalised(self.mean, self.std)(shown)
