"""Model folders as every family of encoders writes them, and what tells two models apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from indexing.durable import write_atomically
from indexing.errors import ModelError
from indexing.models.config_file import CONFIG, PROBE, WEIGHTS, fingerprint, invalid
from indexing.models.token_pruning import Pruning, TokenPruning
from indexing.models.tokenizers import TextTokenizer

DELTA = "pruning.delta"


def fingerprint_of(
    config: Mapping[str, Any],
    tokenizer_file: Path | None,
    tokenizer: TextTokenizer,
    tensors: Mapping[str, Tensor],
) -> str:
    """Hex SHA-256 over what an encoder's embeddings hang on."""
    flat = (value.detach().cpu().contiguous().reshape(-1) for value in tensors.values())
    arrays = [value.view(torch.uint8).numpy() for value in flat]
    ids = tokenizer([PROBE]).numpy()
    return fingerprint(config, tokenizer_file, ids, dict(zip(tensors, arrays, strict=True)))


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, Path],
    *,
    card: str,
    half: bool,
) -> None:
    """Writes a model folder; the weights come last and are all there or not at all.

    Args:
        config: what config.json says.
        tensors: what model.safetensors holds.
        files: copied into the folder under these names.
        card: text of README.md.
        half: store weights as float16. Thresholds stay float32: they end between scores that
            float16 cannot tell apart.

    Raises:
        ModelError: A weight is too large for float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: _stored(key, value, half and key != DELTA) for key, value in tensors.items()}
    for name, source in files.items():
        if source.resolve() != (folder / name).resolve():
            (folder / name).write_bytes(source.read_bytes())
    (folder / CONFIG).write_text(json.dumps(config, indent=2, default=list) + "\n")
    (folder / "README.md").write_text(card)

    def write(path: Path) -> None:
        save_file(weights, path)
        path.chmod(0o644)  # written for its owner alone; other users load models, too

    write_atomically(folder / WEIGHTS, write)


def _stored(key: str, value: Tensor, half: bool) -> Tensor:
    whole = value.detach().cpu()
    # Cloned, as a file cannot hold two tensors that share their memory.
    if not (half and whole.is_floating_point()):
        return whole.contiguous().clone()
    small = whole.half()
    if bool((small.isinf() & whole.isfinite()).any()):
        raise ModelError(f"{key} has values beyond float16: save the model without half")
    return small.contiguous()


def with_pruning(config: Mapping[str, Any], pruning: TokenPruning | None) -> dict[str, Any]:
    """What config.json says of a model with this pruning."""
    if pruning is None:
        return dict(config)
    return {**config, "pruning": pruning.config.model_dump(mode="json")}


def read_pruning(block: Any, delta: Tensor | None) -> TokenPruning | None:
    """The pruning that config.json and model.safetensors tell of; raises ValueError."""
    if block is None:
        if delta is not None:
            raise ValueError(f"model.safetensors has {DELTA} and config.json no pruning")
        return None
    try:
        pruning = TokenPruning(Pruning.model_validate(block))
    except ValidationError as error:
        raise ValueError(f"config.json has {invalid(error, 'pruning')}") from error
    layers = len(pruning.config.base)
    if delta is None:
        raise ValueError(f"config.json has a pruning and model.safetensors no {DELTA}")
    if delta.shape != (layers,) or not bool(delta.isfinite().all()):
        raise ValueError(f"{DELTA} must be {layers} finite numbers, not {delta.tolist()}")
    pruning.delta.data = delta.float()
    return pruning
