"""The two towers of an encoder as ONNX graphs, which every runtime here starts from.

A picture graph takes `pixels`, float32 [n, 3, h, w]. A text graph takes `ids`, int64
[n, length], and `ends`, int64 [n], the place of each text's last token; texts are cut to the
longest of the batch, and with token pruning its masks are part of the graph. Towers that look
at padding take `ids` alone, and whole. Both give float32 [n, dim], not normalised. n and
length are free.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from indexing.errors import MissingDependencyError, ModelError
from indexing.messages import reason
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.albef.reading import Reader
from indexing.models.clip import ClipEncoder
from indexing.models.optimized.folder import Ends
from indexing.models.optimized.runtimes import ENDS, IDS, PIXELS
from indexing.models.protocol import Encoder
from indexing.models.pruned_text import PrunedText
from indexing.models.text import last_state, pooling, pools_end_of_text, projected

FEATURES = "features"

_OPSET = 18
_TEXTS = 3  # of the example that a graph is drawn by
_LENGTH = 5


@dataclass(frozen=True)
class Exported:
    """Both graphs, as files."""

    picture: Path
    text: Path
    ends: Ends


def export_towers(encoder: Encoder, folder: Path, *, folded: bool = True) -> Exported:
    """Writes the graphs of an encoder, whose model is on the CPU, into `folder`. Unless `folded`
    the model's parameters are in them as they are, under their names after `model.`.

    Raises:
        ModelError: The encoder is neither CLIP nor ALBEF, or has a tower that no graph can be
            drawn of.
        MissingDependencyError: onnx or onnxscript is not installed.
    """
    encoder = exportable(encoder)
    albef = isinstance(encoder, AlbefEncoder)
    ends: Ends = "padding" if albef else _ends(encoder.model)
    picture = _AlbefPicture(encoder.model) if albef else _ClipPicture(encoder.model)
    text: nn.Module
    if isinstance(encoder, AlbefEncoder):
        text = _AlbefText(encoder)
    else:
        text = _ClipWhole(encoder.model) if ends == "whole" else _ClipText(encoder)
    exported = Exported(folder / "picture.onnx", folder / "text.onnx", ends)
    free = torch.export.Dim.DYNAMIC
    pixels = torch.zeros(2, 3, encoder.image_size, encoder.image_size)
    _export(encoder.name, picture, {PIXELS: (pixels, {0: free})}, exported.picture, folded)
    ids = encoder.tokenizer(["a"] * _TEXTS)
    feeds: dict[str, tuple[Tensor, dict[int, Any]]] = {IDS: (ids, {0: free})}
    if ends != "whole":
        length = min(_LENGTH, ids.shape[1])
        feeds = {
            IDS: (ids[:, :length].contiguous(), {0: free, 1: free}),
            ENDS: (torch.arange(length - _TEXTS, length).clamp_min(0), {0: free}),
        }
    _export(encoder.name, text, feeds, exported.text, folded)
    return exported


def exportable(encoder: Encoder) -> ClipEncoder | AlbefEncoder:
    """The encoder, if it is of a kind that can be exported. Raises ModelError."""
    if isinstance(encoder, (ClipEncoder, AlbefEncoder)):
        return encoder
    raise ModelError(
        f"{encoder.name} is no model of torch, CLIP or ALBEF, so it cannot be optimised: give "
        "builtin, a model folder that training wrote, an open_clip name or albef:PATH"
    )


def _ends(model: Any) -> Ends:
    if not pools_end_of_text(model):
        return "whole"
    if pooling(model) == "argmax":
        return "argmax"
    return int(model.text_eos_id if hasattr(model, "text_eos_id") else model.text.eos_id)


class _ClipPicture(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(pixels)
        return features.float()


class _ClipWhole(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        features: Tensor = self.model.encode_text(ids)
        return features.float()


class _ClipText(nn.Module):
    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self.model = encoder.model
        self.pruning = encoder.pruning

    def forward(self, ids: Tensor, ends: Tensor) -> Tensor:
        if self.pruning is not None:
            return PrunedText(self.model, self.pruning).embed_cut(ids, ends).float()
        tower = getattr(self.model, "text", self.model)
        return projected(tower, last_state(tower, ids, ends)).float()


class _AlbefPicture(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.vision_proj(self.model.visual_encoder(pixels)[:, 0])
        return features


class _AlbefText(nn.Module):
    def __init__(self, encoder: AlbefEncoder) -> None:
        super().__init__()
        self.model = encoder.model
        self.pruning = encoder.pruning

    def forward(self, ids: Tensor, ends: Tensor) -> Tensor:
        states = Reader(self.model, self.pruning).read_cut(ids, ends)
        features: Tensor = self.model.text_proj(states.x[:, 0])
        return features


def _export(
    name: str,
    tower: nn.Module,
    feeds: dict[str, tuple[Tensor, dict[int, Any]]],
    path: Path,
    folded: bool,
) -> None:
    """One graph; `feeds` are examples of its inputs, with which of their sides are free."""
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                tower.eval(),
                tuple(example for example, _ in feeds.values()),
                dynamo=True,
                dynamic_shapes=tuple(free for _, free in feeds.values()),
                input_names=list(feeds),
                output_names=[FEATURES],
                opset_version=_OPSET,
                optimize=folded,
                verbose=False,
            )
            assert program is not None  # with dynamo there always is one
            last = program.model.graph.outputs[0].producer()
            if last is not None:
                last.name = FEATURES  # as OpenVINO calls it, whatever its name was
            program.save(str(path))
    except ImportError as error:
        raise MissingDependencyError(
            f"to optimise a model {error.name} is needed: pip install 'shoplens[openvino]' or "
            "'shoplens[onnx]'"
        ) from error
    except Exception as error:  # whatever a tower of somebody else's does under tracing
        raise ModelError(f"{name} cannot be exported: {reason(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
