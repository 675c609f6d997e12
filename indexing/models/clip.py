"""CLIP-style dual encoders: any open_clip model, and the folders that training writes.

A model folder holds

    config.json         model_cfg and preprocess_cfg as open_clip understands them; pruning, a
                        `Pruning`, where the text tower was trained with token pruning
    model.safetensors   weights, float32 or float16, and pruning.delta, always float32
    tokenizer.json      absent where the model reads CLIP's own byte-pair tokens
    README.md           the model card
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from indexing.errors import ModelError
from indexing.messages import reason
from indexing.models.clip_eye import ClipEye
from indexing.models.config_file import CONFIG, WEIGHTS
from indexing.models.folder import (
    DELTA,
    fingerprint_of,
    read_pruning,
    with_pruning,
    write_model,
)
from indexing.models.protocol import Pixels, Vectors
from indexing.models.pruned_text import PrunedText
from indexing.models.text import embed_tokens
from indexing.models.token_pruning import TokenPruning
from indexing.models.tokenizers import TOKENIZER, TextTokenizer, open_tokenizer
from indexing.models.torchvision_repair import import_torchvision

TEXT_BATCH = 256


class ClipEncoder:
    """An open_clip model with its own preprocessing and tokenizer, as an `Encoder`.

    `model` is the open_clip module itself (training works on it); `config` what its folder's
    config.json says, pruning apart; `pruning` the masks of its text tower, None for none.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: TextTokenizer,
        config: dict[str, Any],
        *,
        device: str = "cpu",
        tokenizer_file: Path | None = None,
        pruning: TokenPruning | None = None,
    ) -> None:
        """Raises ModelError where the text tower cannot be pruned so."""
        self.name = name
        self.model = model.eval().to(device)
        if any(isinstance(module, torch.nn.Conv2d) for module in model.modules()):
            # Convolutions on a CPU are 2-3 times faster in this layout; values are the same.
            self.model.to(memory_format=torch.channels_last)
        self.tokenizer = tokenizer
        self.config = config
        self.device = device
        self.tokenizer_file = tokenizer_file
        self.pruning = pruning
        if pruning is not None:
            PrunedText(self.model, pruning.to(device))
        self._eye = ClipEye(config["preprocess_cfg"])

    @property
    def dim(self) -> int:
        return int(self.config["model_cfg"]["embed_dim"])

    @property
    def image_size(self) -> int:
        return self._eye.image_size

    @property
    def mean(self) -> tuple[float, ...]:
        """What is taken off red, green and blue, of 0 to 1."""
        return tuple(self.config["preprocess_cfg"]["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """What red, green and blue are divided by then."""
        return tuple(self.config["preprocess_cfg"]["std"])

    @property
    def fingerprint(self) -> str:
        # Computed anew each time: training changes the weights of the model that is held.
        return fingerprint_of(
            with_pruning(self.config, self.pruning),
            self.tokenizer_file,
            self.tokenizer,
            self._tensors(),
        )

    def preprocess(self, picture: Image.Image) -> Pixels:
        return self._eye.preprocess(picture)

    def embed_pixels(self, pixels: Pixels) -> Vectors:
        with torch.inference_mode():
            return unit(self.model.encode_image(torch.from_numpy(pixels).to(self.device)))

    def embed_images(self, pictures: Sequence[Image.Image]) -> Vectors:
        if not pictures:
            return np.zeros((0, self.dim), np.float32)
        return self.embed_pixels(np.stack([self.preprocess(picture) for picture in pictures]))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        parts = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(texts), TEXT_BATCH):
            ids = self.tokenizer(texts[start : start + TEXT_BATCH]).to(self.device)
            with torch.inference_mode():
                embedded = (
                    embed_tokens(self.model, ids)
                    if self.pruning is None
                    else PrunedText(self.model, self.pruning).embed(ids)
                )
            parts.append(unit(embedded))
        return np.concatenate(parts)

    def save(self, folder: Path, *, card: str, half: bool = False) -> None:
        """Writes a model folder that `load_encoder` opens.

        Args:
            card: text of the model card.
            half: store weights as float16 (half the size; read back as float32). Thresholds
                stay float32: they end between scores that float16 cannot tell apart.
        """
        write_model(
            folder,
            with_pruning(self.config, self.pruning),
            self._tensors(),
            {} if self.tokenizer_file is None else {TOKENIZER: self.tokenizer_file},
            card=card,
            half=half,
        )

    def _tensors(self) -> dict[str, Tensor]:
        """What a folder's model.safetensors holds."""
        state: dict[str, Tensor] = self.model.state_dict()
        return state if self.pruning is None else {**state, DELTA: self.pruning.delta}


def load_folder(folder: Path, *, name: str | None = None, device: str = "cpu") -> ClipEncoder:
    """Opens a model folder.

    Raises:
        ModelError: A file is missing or does not fit the others.
    """
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise ModelError(f"{folder} is not a model folder: it has no {file}")
    # Whole, so that an index finds its model from wherever it is searched.
    name = name or str(folder.resolve())
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model = create_model(config["model_cfg"])
        state = load_file(folder / WEIGHTS)
        pruning = read_pruning(config.pop("pruning", None), state.pop(DELTA, None))
        model.load_state_dict({key: _as_computed(value) for key, value in state.items()})
        tokenizer, tokenizer_file = open_tokenizer(folder, config)
        return ClipEncoder(
            name, model, tokenizer, config,
            device=device, tokenizer_file=tokenizer_file, pruning=pruning,
        )  # fmt: skip
    except KeyError as error:
        raise ModelError(f"{folder} cannot be loaded: config.json has no {error}") from error
    except (TypeError, ValueError, OSError, RuntimeError, SafetensorError, ModelError) as error:
        raise ModelError(f"{folder} cannot be loaded: {reason(error)}") from error


def _as_computed(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def create_model(model_cfg: dict[str, Any]) -> Any:
    """An open_clip model of this configuration, untrained (no weights are fetched)."""
    import_torchvision()
    from open_clip.model import CLIP, CustomTextCLIP

    options = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    vision_cfg = dict(options.pop("vision_cfg"))
    if "timm_model_name" in vision_cfg:
        vision_cfg["timm_model_pretrained"] = False
    custom = model_cfg.get("custom_text") or "hf_model_name" in model_cfg["text_cfg"]
    return (CustomTextCLIP if custom else CLIP)(vision_cfg=vision_cfg, **options)


def load_open_clip(name: str, *, device: str = "cpu") -> ClipEncoder:
    """Opens `ARCH/PRETRAINED` or `hf-hub:ORG/REPO` through open_clip.

    PRETRAINED is a tag that open_clip knows or a weights file. Weights that are not in the
    local cache are fetched: naming such a model asks for it.

    Raises:
        ModelError: The name is unknown or the weights cannot be had.
    """
    import_torchvision()
    import open_clip

    if name.startswith("hf-hub:"):
        architecture, pretrained, quick_gelu = name, None, False
    else:
        architecture, _, pretrained = name.partition("/")
        quick_gelu = _quick_gelu(architecture, pretrained)
    try:
        model_cfg = open_clip.get_model_config(architecture)
        model = open_clip.create_model(
            architecture, pretrained, require_pretrained=True, force_quick_gelu=quick_gelu
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    except (
        OSError,
        RuntimeError,
        ValueError,
        ImportError,
        UnpicklingError,
        SafetensorError,
    ) as error:
        raise ModelError(
            f"model {name!r} cannot be loaded: {reason(error)}. "
            "Where there is no network, give ARCH/WEIGHTS_FILE or a model folder"
        ) from error
    if quick_gelu:
        model_cfg["quick_gelu"] = True
    config = {
        "model_cfg": model_cfg,
        "preprocess_cfg": dict(model.visual.preprocess_cfg),
        "tokenizer": architecture,
    }
    return ClipEncoder(name, model, tokenizer, config, device=device)


def _quick_gelu(architecture: str, pretrained: str) -> bool:
    """Whether these weights want QuickGELU; open_clip only warns when the names disagree.

    Raises:
        ModelError: The architecture is unknown.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    config = open_clip.get_model_config(architecture)
    if config is None:
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(f"unknown model architecture {architecture!r}{hint}")
    tag = get_pretrained_cfg(architecture, pretrained)
    return bool(tag.get("quick_gelu", False) or config.get("quick_gelu", False))


def unit(features: Tensor) -> Vectors:
    """What a tower gives, [n, dim], as unit vectors."""
    return functional.normalize(features.float(), dim=-1).cpu().numpy()
