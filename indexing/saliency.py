"""Which regions of a picture its likeness to a query comes from.

Convolutional towers: Grad-CAM (Selvaraju et al., ICCV 2017), the activations of the last spatial
layer times their mean gradients, summed over channels, where that is positive. Behind a global
mean and a linear layer this is exact: each cell's share in the score to first order. Transformer
towers: relevance through the attentions (`attention_relevance`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexing.attention_relevance import AttentionRecorder, relevance
from indexing.errors import ModelError
from indexing.framing import Frame, frame_of, whole_frame
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.clip import ClipEncoder
from indexing.models.pictures import Size
from indexing.models.protocol import Encoder

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 512  # pixels, of a heat map's longer side

Grid = tuple[int, int]  # rows and columns
Tower = Callable[[Tensor], Tensor]
Score = Callable[[Tensor], Tensor]
CellsOf = Callable[[Tensor, Score], tuple[float, NDArray[np.float32]]]


@dataclass(frozen=True, eq=False)
class Saliency:
    """Where in a picture its likeness to a query lies.

    Attributes:
        score: The cosine of picture and query.
        cells: float32 [rows, columns], none below 0: over what the tower sees of the picture.
        heat: float32 [h, w] from 0 to 1, over the picture itself: its size, or as much smaller
            as makes its longer side LONGEST. 0 where the tower does not see the picture, and
            throughout where no cell speaks for the query.
    """

    score: float
    cells: NDArray[np.float32]
    heat: NDArray[np.float32]


def saliency(encoder: Encoder, picture: Image, query: NDArray[np.float32]) -> Saliency:
    """The regions of an RGB picture that speak for its cosine with a unit vector [dim].

    The model gives the values that it always gives, and no gradient is left in it.

    Raises:
        ModelError: The encoder is neither CLIP nor ALBEF, or its picture tower has neither
            cells of activations nor layers of attention.
    """
    cells_of, device = _cells_of(encoder)
    asked = torch.from_numpy(np.array(query, np.float32)).to(device)
    pixels = torch.from_numpy(encoder.preprocess(picture))[None].to(device)
    score, cells = cells_of(pixels, lambda embedded: _likeness(embedded, asked))
    return Saliency(score, cells, framed(encoder, picture, cells))


def framed(encoder: Encoder, picture: Image, cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map (>= 0) over what the tower sees of a picture as one over the picture, the `heat` of
    `Saliency`."""
    highest = float(cells.max())
    scaled = cells / np.float32(highest) if 0 < highest < math.inf else np.zeros_like(cells)
    scale = min(1.0, LONGEST / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture_frame(encoder, picture.size).heat(scaled, size)


def grad_cam(
    features_of: Tower, head: Tower, pixels: Tensor, score: Score
) -> tuple[float, NDArray[np.float32]]:
    """The score of one picture, and Grad-CAM, float32 [rows, columns], of the layer between
    the two halves of a tower.

    Args:
        features_of: Pixels [1, 3, h, w] to activations [1, channels, rows, columns].
        head: Activations to an embedding [1, dim].
        pixels: float32 [1, 3, h, w].
        score: An embedding [dim] to one number.

    Raises:
        ModelError: That layer has no rows and columns.
    """
    with torch.no_grad():
        features = features_of(pixels)
    if features.dim() != 4:
        raise ModelError(
            f"the picture tower ends in activations of shape {tuple(features.shape)}, not in "
            "rows and columns: Grad-CAM needs those"
        )
    with torch.enable_grad():
        features = features.detach().requires_grad_()
        found = score(head(features)[0])
        (slope,) = torch.autograd.grad(found, features)
    cam = (features.detach() * slope.mean((2, 3), keepdim=True)).sum(1)[0].clamp(min=0)
    return float(found.detach()), cam.float().cpu().numpy()


def attention_cells(
    embed: Tower, grid: Grid, pixels: Tensor, score: Score
) -> tuple[float, NDArray[np.float32]]:
    """The score of one picture, and the relevance of each of its patches, float32 of `grid`.

    Args:
        embed: Pixels [1, 3, h, w] to an embedding [1, dim], through attentions among some
            tokens of its own and then the patches, row by row.
        grid: Rows and columns of patches.

    Raises:
        ModelError: There are no such attentions.
    """
    with torch.enable_grad():
        # The attentions hang on this, so they have a gradient even if all weights are frozen.
        seen = pixels.detach().requires_grad_()
        with AttentionRecorder() as recorder:
            found = score(embed(seen)[0])
        tokens = relevance(found, recorder.found)
    rows, columns = grid
    if len(tokens) < rows * columns:
        raise ModelError(f"the picture tower has {len(tokens)} tokens for {rows} x {columns} cells")
    cells = tokens[len(tokens) - rows * columns :].view(rows, columns)
    return float(found.detach()), cells.float().numpy()


def _likeness(embedding: Tensor, query: Tensor) -> Tensor:
    """The cosine, with the embedding's length held fixed where gradients are taken.

    Then a cell has its share in the cosine. With the length's own gradient it would have what
    it adds beyond the picture as a whole: nothing where picture and query are alike, and on
    real pairs such maps were no better than going from the middle outward.
    """
    embedding = embedding.float()
    cosine: Tensor = embedding @ query / embedding.detach().norm().clamp_min(1e-12)
    return cosine


def picture_frame(encoder: Encoder, size: Size) -> Frame:
    """Where a picture of this size lies in what the encoder's picture tower sees.

    Raises:
        ModelError: The encoder is neither CLIP nor ALBEF.
    """
    if isinstance(encoder, AlbefEncoder):
        return whole_frame(size, encoder.image_size)
    return frame_of(_clip(encoder).config["preprocess_cfg"], size, encoder.image_size)


def _clip(encoder: Encoder) -> ClipEncoder:
    if isinstance(encoder, ClipEncoder):
        return encoder
    raise ModelError(
        f"{encoder.name} is no model of torch, CLIP or ALBEF, so its matches cannot be explained: "
        "give builtin, a model folder that training wrote, an open_clip name or albef:PATH"
    )


def _cells_of(encoder: Encoder) -> tuple[CellsOf, str]:
    """What makes cells, and the device that it works on."""
    if isinstance(encoder, AlbefEncoder):
        grid = (encoder.config.grid, encoder.config.grid)
        model = encoder.model
        halves = (model.visual_encoder, lambda states: states[:, 0], model.vision_proj)
        return partial(attention_cells, partial(_through, halves), grid), encoder.device
    return _clip_cells(_clip(encoder)), _clip(encoder).device


def _clip_cells(encoder: ClipEncoder) -> CellsOf:
    tower = encoder.model.visual
    if hasattr(tower, "layer4") and hasattr(tower, "attnpool"):  # open_clip's ModifiedResNet
        stages = (tower.stem, tower.layer1, tower.layer2, tower.layer3, tower.layer4)
        return partial(grad_cam, partial(_through, stages), tower.attnpool)
    trunk: Any = getattr(tower, "trunk", None)
    if trunk is None and hasattr(tower, "grid_size"):  # open_clip's VisionTransformer
        # CoCa's gives the states of its patches besides.
        halves = (tower, lambda found: found[0] if isinstance(found, tuple) else found)
        return partial(attention_cells, partial(_through, halves), tuple(tower.grid_size))
    if hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "patch_embed"):  # a ViT of timm
        return partial(attention_cells, tower, tuple(trunk.patch_embed.grid_size))
    if hasattr(trunk, "forward_features") and hasattr(trunk, "forward_head"):
        head = partial(_through, (trunk.forward_head, tower.head))
        if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
            return partial(
                grad_cam,
                lambda pixels: trunk.forward_features(pixels).permute(0, 3, 1, 2),
                lambda features: head(features.permute(0, 2, 3, 1)),
            )
        return partial(grad_cam, trunk.forward_features, head)
    raise ModelError(
        f"the picture tower of {encoder.name}, {type(trunk or tower).__name__}, has neither a last "
        "spatial layer nor patches that are known here: its matches cannot be explained"
    )


def _through(stages: Sequence[Callable[[Any], Any]], x: Any) -> Any:
    for stage in stages:
        x = stage(x)
    return x
