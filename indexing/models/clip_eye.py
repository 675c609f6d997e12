"""How open_clip's models take pictures in; without torch and torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from indexing.models.pictures import (
    KeepingRatio,
    Normalised,
    Shortest,
    Size,
    Squashed,
    as_rgb,
    bounded,
    centred,
    resized,
)
from indexing.models.protocol import Pixels

# What open_clip takes where a configuration says nothing.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipEye:
    """What takes pictures in for an open_clip model, by its `preprocess_cfg`."""

    def __init__(self, preprocess_cfg: dict[str, Any]) -> None:
        size = preprocess_cfg["size"]
        self.image_size = int(max(size) if isinstance(size, (tuple, list)) else size)
        self._transform = _transform(preprocess_cfg)

    def preprocess(self, picture: Image.Image) -> Pixels:
        """As of `Encoder`."""
        return self._transform(bounded(picture, self.image_size))


def _transform(preprocess_cfg: dict[str, Any]) -> Callable[[Image.Image], Pixels]:
    """What open_clip's transform does, to the bit, for pictures decoded at any scale and without
    torchvision, which takes a second to import."""
    size = preprocess_cfg["size"]
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    mean, std = preprocess_cfg.get("mean") or _MEAN, preprocess_cfg.get("std") or _STD
    way = preprocess_cfg.get("resize_mode") or "shortest"
    bilinear = preprocess_cfg.get("interpolation") == "bilinear"
    size_of: Callable[[Size], Size]
    if way == "squash":
        size_of = Squashed(width, height)
    elif way == "longest":
        size_of = KeepingRatio(width, height, longest=True)
    elif width == height:
        size_of = Shortest(width)
    else:  # where open_clip does not ask which interpolation is wanted
        size_of, bilinear = KeepingRatio(width, height, longest=False), False
    filter_ = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    normalised = Normalised(mean, std)
    fill = int(preprocess_cfg.get("fill_color") or 0)

    def transform(picture: Image.Image) -> Pixels:
        shown = resized(as_rgb(picture), size_of, filter_)
        return normalised(centred(shown, width, height, fill))

    return transform
