"""The checkpoints of ALBEF and LAVIS, and our own folders, as one kind of model.

What the files differ in:

    weights         under `model`, `state_dict` or at the top; .pth, .pt or .safetensors
    text encoder    `text_encoder.bert.*` with `cls.*`, or its parts without `bert.` (retrieval)
    token types     row 0 is added to every token (ALBEF), or there are none (LAVIS, ours)
    training state  momentum copies and queues, which are left out
    heads           `itm_head.*`, `text_encoder.cls.*` and `temp` may be missing
"""

from __future__ import annotations

import json
import logging
import math
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from indexing.errors import ModelError
from indexing.messages import one_line, reason
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import DECODER, ITM, WORDS, AlbefEncoder
from indexing.models.albef.network import AlbefModel
from indexing.models.albef.tokenizer import AlbefTokenizer
from indexing.models.albef.vision import resized_positions
from indexing.models.config_file import CONFIG, WEIGHTS, invalid
from indexing.models.folder import DELTA, read_pruning

logger = logging.getLogger(__name__)

_SHOWN = 8  # names that a message lists
_OPTIONAL = (ITM, "text_encoder.cls.", "temp")  # a checkpoint may be without all of a group
_POSITIONS = "text_encoder.bert.embeddings.position_embeddings.weight"
_TOKEN_TYPES = "text_encoder.bert.embeddings.token_type_embeddings.weight"
_PATCHES = "visual_encoder.pos_embed"
_BIAS = "text_encoder.cls.predictions.bias"
_DECODER_BIAS = "text_encoder.cls.predictions.decoder.bias"
# Momentum copies, queues, and the places that BERT counts.
_LEFT_OUT = re.compile(
    r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\."
    r"|(\w+_)?queue(_\w+)?$|.*\bposition_ids$"
)


def is_albef_folder(folder: Path) -> bool:
    """Whether a folder's config.json has an ALBEF model's sizes."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "vision_width" in config


def load_albef(path: Path, *, name: str | None = None, device: str = "cpu") -> AlbefEncoder:
    """Opens a checkpoint, or a folder with one, and what lies beside it.

    Beside the weights lies BERT's vocab.txt and, for other sizes than the base model's, a
    config.json with those of `AlbefConfig`. Without it the image size is that of the
    checkpoint's positions; with it positions are resized. Heads that are missing are as in an
    untrained model.

    Args:
        name: by default `albef:` and the whole path, so that an index finds its model from
            wherever it is searched.

    Raises:
        ModelError: A file is missing, cannot be read or does not fit the others.
    """
    file = _weights_file(path)
    vocab_file = file.parent / "vocab.txt"
    if not vocab_file.is_file():
        raise ModelError(
            f"{file.parent} has no vocab.txt: put that of bert-base-uncased beside {file.name}"
        )
    given = _read_config(file.parent / CONFIG)
    block = given.pop("pruning", None) if given else None
    tensors = _named(_read(file), file)
    name = name or f"albef:{path.absolute()}"
    try:
        pruning = read_pruning(block, tensors.pop(DELTA, None))
        config = _base(tensors) if given is None else AlbefConfig.model_validate(given)
        tokenizer = AlbefTokenizer(vocab_file, config)
        has_match = any(key.startswith(ITM) for key in tensors)
        model = _filled(config, tensors, given is not None)
        encoder = AlbefEncoder(name, model, tokenizer, device=device, pruning=pruning)
    except ValidationError as error:
        raise ModelError(f"{file} cannot be loaded: {CONFIG} has {invalid(error)}") from error
    except (ValueError, ModelError) as error:
        raise ModelError(f"{file} cannot be loaded: {one_line(str(error))}") from error
    encoder.has_match = has_match
    if tokenizer.vocab_size < config.vocab_size:
        logger.warning(
            "%s has %d tokens and the model %d: is it the one that the model was trained with?",
            vocab_file, tokenizer.vocab_size, config.vocab_size,
        )  # fmt: skip
    return encoder


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(f"albef:{path} does not exist: give a checkpoint or a folder with one")
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    kinds = (".pth", ".pt", ".safetensors")
    found = sorted(file.name for file in path.iterdir() if file.suffix in kinds)
    if len(found) != 1:
        named = f" ({_listed(found)})" if found else ""
        raise ModelError(
            f"{path} has {len(found)} files of weights{named}: it must have one "
            ".pth, .pt or .safetensors, or name a file as albef:FILE"
        )
    return path / found[0]


def _read_config(path: Path) -> dict[str, Any] | None:
    """The sizes beside a checkpoint, if there are any."""
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {reason(error)}") from error
    if isinstance(config, dict) and "vision_width" in config:
        return config
    # It may well be that of bert-base-uncased, which comes with the vocabulary.
    logger.warning("%s has no vision_width: it is not an ALBEF model's, and is not used", path)
    return None


def _read(file: Path) -> dict[str, Any]:
    """What a file holds by name, wherever in the file that is."""
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        # Mapped where the format allows it: more than half of ALBEF.pth is never looked at.
        mapped = zipfile.is_zipfile(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {reason(error)}") from error
    except Exception as error:
        raise ModelError(f"{file} cannot be read: {_refusal(error)}") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no weights by name: give the state_dict of a model")
    return {str(key): value for key, value in content.items()}


def _refusal(error: Exception) -> str:
    """Why torch would not read a file."""
    needed = re.search(r"([\w.]+) was not an allowed global", str(error))
    if needed:
        return (
            f"it needs {needed[1]}, and what is not plain tensors could run code. If you trust "
            "it, save its weights alone: "
            "torch.save(torch.load(FILE, weights_only=False)['model'], NEW)"
        )
    if "TorchScript" in str(error):
        return "it is a TorchScript program: give the state_dict of the model"
    return "it is not a checkpoint of torch, or not whole"


def _named(found: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """What of a checkpoint is of use, under our names."""
    tensors = {
        re.sub(r"^text_encoder\.(embeddings|encoder)\.", r"text_encoder.bert.\1.", key): value
        for key, value in found.items()
        if not _LEFT_OUT.match(key)
    }
    other = [key for key, value in tensors.items() if not _is_weight(value)]
    if other:
        raise ModelError(
            f"{file} has what is no tensor of floating-point numbers: {_listed(other)}"
        )
    positions, types = tensors.get(_POSITIONS), tensors.get(_TOKEN_TYPES)
    if positions is not None and types is not None and types[:1].shape == positions[:1].shape:
        tensors[_POSITIONS] = positions.float() + tensors.pop(_TOKEN_TYPES)[:1].float()
    if _DECODER_BIAS in tensors:  # one tensor with the other in the official module
        tensors[_BIAS] = tensors.pop(_DECODER_BIAS)
    if DECODER in tensors and WORDS in tensors and _same(tensors[DECODER], tensors[WORDS]):
        del tensors[DECODER]
    return tensors


def _is_weight(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout is torch.strided
        and value.device.type == "cpu"
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _base(tensors: Mapping[str, Tensor]) -> AlbefConfig:
    """The base model, for pictures of the size that a checkpoint has positions for."""
    base = AlbefConfig()
    grid = _grid(tensors.get(_PATCHES))
    return base if grid is None else AlbefConfig(image_size=grid * base.patch_size)


def _grid(positions: Tensor | None) -> int | None:
    """Patches along a side; None where they are no square."""
    if positions is None or positions.dim() != 3 or positions.shape[1] < 2:
        return None
    grid = math.isqrt(positions.shape[1] - 1)
    return grid if grid**2 == positions.shape[1] - 1 else None


def _filled(config: AlbefConfig, tensors: dict[str, Tensor], sizes_given: bool) -> AlbefModel:
    """A model with these weights, in float32. Raises ValueError where they do not fit."""
    if _grid(tensors.get(_PATCHES)) not in (None, config.grid):
        tensors[_PATCHES] = resized_positions(tensors[_PATCHES].float(), config.grid)
    with torch.device("meta"):  # without weights: they would take seconds to draw
        model = AlbefModel(config)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    absent = tuple(
        group for group in _OPTIONAL if not any(key.startswith(group) for key in tensors)
    )
    missing = [key for key in shapes if key not in tensors and key != DECODER]
    complaints = [
        *(
            f"{key} is {list(value.shape)} and not {list(shapes[key])}"
            for key, value in tensors.items()
            if key in shapes and value.shape != shapes[key]
        ),
        *(f"no {key}" for key in missing if not key.startswith(absent)),
        *(f"unknown {key}" for key in tensors if key not in shapes),
    ]
    if complaints:
        advice = (
            "does config.json have its sizes?"
            if sizes_given
            else "other sizes than the base model's need a config.json beside it"
        )
        raise ValueError(f"{_listed(complaints)} ({advice})")
    state = {
        key: torch.empty(shape, dtype=torch.float32).copy_(tensors[key])
        for key, shape in shapes.items()
        if key in tensors
    }
    if bad := [key for key, value in state.items() if not _is_finite(value)]:
        raise ValueError(f"numbers that are not finite in {_listed(bad)}")
    if absent:
        fresh = _untrained(config)
        state.update((key, fresh[key]) for key in missing)
    model.load_state_dict(state, strict=False, assign=True)
    if DECODER not in state:
        language = model.text_encoder
        language.cls.predictions.decoder.weight = language.bert.embeddings.word_embeddings.weight
    return model


def _is_finite(value: Tensor) -> bool:
    # Both are nan where any number is: ten times faster than to look at each.
    return all(map(math.isfinite, value.aminmax()))


def _untrained(config: AlbefConfig) -> dict[str, Tensor]:
    """The heads of an untrained model, always the same; they hang on no number of layers."""
    small = config.model_copy(update={"vision_layers": 1, "text_layers": 2, "fusion_layer": 1})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AlbefModel(small).state_dict()


def _listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are; fit for a message."""
    every = list(names)
    more = f"; and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return one_line("; ".join(every[:_SHOWN])) + more
