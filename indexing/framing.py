"""From what a picture tower sees back to the picture: letterbox, centre crop and squash undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from indexing.models.pictures import Size, placed


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in what a tower sees: (x, y, width, height) in fractions of the
    latter. It reaches beyond 0..1 where the tower's crop cuts it off."""

    x: float
    y: float
    width: float
    height: float

    def heat(self, cells: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
        """A map of the tower's cells as one of the picture, float32 [height, width] of `size`.

        Bilinear between the cells' centres; 0 where the tower does not see the picture.

        Args:
            cells: float32 [rows, columns], evenly over what the tower sees.
        """
        across = self.x + self.width * (np.arange(size[0]) + 0.5) / size[0]
        down = self.y + self.height * (np.arange(size[1]) + 0.5) / size[1]
        places = np.stack(np.meshgrid(2 * across - 1, 2 * down - 1), axis=-1).astype(np.float32)
        drawn: NDArray[np.float32] = functional.grid_sample(
            torch.from_numpy(cells.astype(np.float32))[None, None],
            torch.from_numpy(places)[None],
            padding_mode="border",  # half a cell at the edge lies beyond the last centre
            align_corners=False,
        )[0, 0].numpy()
        seen = ((down >= 0) & (down <= 1))[:, np.newaxis] & (across >= 0) & (across <= 1)
        return np.where(seen, drawn, np.float32(0))


def whole_frame(size: Size, image_size: int) -> Frame:
    """Of a tower that squashes the whole picture, put on white where it is a sliver."""
    shown, canvas = placed(size, image_size)
    x, y = (canvas[0] - shown[0]) // 2, (canvas[1] - shown[1]) // 2
    return Frame(x / canvas[0], y / canvas[1], shown[0] / canvas[0], shown[1] / canvas[1])


def frame_of(preprocess_cfg: Mapping[str, Any], size: Size, image_size: int) -> Frame:
    """Where a picture of this size lies in what open_clip's preprocessing makes of it.

    Args:
        preprocess_cfg: As in a model's config.json; `resize_mode` is shortest where it is not
            given, and `size` one number or (height, width).
    """
    wanted = preprocess_cfg["size"]
    high, wide = wanted if isinstance(wanted, (tuple, list)) else (wanted, wanted)
    inner = whole_frame(size, image_size)
    canvas = placed(size, image_size)[1]
    mode = preprocess_cfg.get("resize_mode") or "shortest"
    if mode == "squash":
        return inner
    if mode == "shortest" and high == wide:  # torchvision's Resize, which cuts fractions off
        least = min(canvas)
        resized = int(high * canvas[0] / least), int(high * canvas[1] / least)
    else:
        ratios = (canvas[0] / wide, canvas[1] / high)
        ratio = max(ratios) if mode == "longest" else min(ratios)
        resized = round(canvas[0] / ratio), round(canvas[1] / ratio)
    left, top = _start(resized[0], wide), _start(resized[1], high)
    return Frame(
        (left + inner.x * resized[0]) / wide,
        (top + inner.y * resized[1]) / high,
        inner.width * resized[0] / wide,
        inner.height * resized[1] / high,
    )


def _start(length: int, wanted: int) -> int:
    """Where a side begins that is padded or cropped to `wanted` pixels in its middle."""
    return (wanted - length) // 2 if length <= wanted else -round((length - wanted) / 2)
