"""Model folders without their weights in memory: config.json, and what tells two models apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# What tokenizers without a file are known by: a text with rare and common words.
PROBE = (
    "The Quick brown-fox's 350ml BPA-free T-shirt (pack of 2), caf\u00e9 cr\u00e8me \u2013 size XL!"
)


def fingerprint(
    config: Mapping[str, Any],
    tokenizer_file: Path | None,
    ids: NDArray[np.int64],
    arrays: Mapping[str, NDArray[Any]],
) -> str:
    """Hex SHA-256 over what an encoder's embeddings hang on.

    Args:
        ids: what the tokenizer makes of PROBE, [1, length].
        arrays: the weights as they are computed with, by name.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=list).encode())
    if tokenizer_file is not None:
        digest.update(tokenizer_file.read_bytes())
    digest.update(ids.tobytes())
    for key, value in sorted(arrays.items()):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def invalid(error: ValidationError, *within: str) -> str:
    """The first thing that is wrong with a block of config.json: where, and why."""
    first = error.errors(include_url=False)[0]
    where = ".".join([*within, *map(str, first["loc"])])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
