"""From the graphs of an encoder to a folder that `load_encoder` opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexing.durable import sha256_of
from indexing.errors import ModelError
from indexing.messages import reason
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.clip import ClipEncoder
from indexing.models.clip_tokenizer import CLIP_TOKENIZER, write_clip_tokenizer
from indexing.models.optimized.encoder import last_tokens, text_feed, token_ids
from indexing.models.optimized.exporting import Exported
from indexing.models.optimized.folder import VOCABULARY, OptimizedConfig, ParentRecord, write_config
from indexing.models.optimized.runtimes import (
    PIXELS,
    Feeds,
    Floats,
    Precision,
    RuntimeName,
    missing,
    runtime,
)
from indexing.models.protocol import Pixels
from indexing.models.tokenizers import TOKENIZER

SIDES = ("picture", "text")


@dataclass(frozen=True)
class Examples:
    """Inputs of each graph that ranges are taken from."""

    picture: list[Feeds] = field(default_factory=list)
    text: list[Feeds] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """How a model is made of its graphs.

    Attributes:
        floats: the type of what is not int8.
        kept: nodes of each graph that stay in floats.
    """

    runtime: RuntimeName
    int8: bool
    floats: Floats = "float32"
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def precision(self) -> Precision:
        """What users call it."""
        if self.int8:
            return "int8"
        return "bf16" if self.floats == "bfloat16" else "fp32"


def examples_of(
    encoder: ClipEncoder | AlbefEncoder, exported: Exported, pixels: Sequence[Pixels],
    titles: Sequence[str],
) -> Examples:  # fmt: skip
    """Preprocessed pictures, float32 [3, h, w] each, and titles, one by one."""
    texts = []
    for title in titles:
        ids = token_ids(encoder.tokenizer, [title])
        texts.append(text_feed(ids, last_tokens(ids, exported.ends, encoder.tokenizer)))
    return Examples([{PIXELS: one[None]} for one in pixels], texts)


def make_model(
    encoder: ClipEncoder | AlbefEncoder,
    exported: Exported,
    recipe: Recipe,
    examples: Examples,
    folder: Path,
) -> OptimizedConfig:
    """Writes the optimised model of `encoder` into a folder of its own, made anew, without a card
    and a gate.

    Raises:
        ModelError: A graph cannot be quantised.
        MissingDependencyError: A library is not installed.
    """
    module = runtime(recipe.runtime)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for side in SIDES:
            source, target = getattr(exported, side), folder / f"{side}{module.SUFFIX}"
            if recipe.int8:
                kept = recipe.kept.get(side, ())
                module.quantise(source, target, getattr(examples, side), kept)
            else:
                module.convert(source, target)
    except ModuleNotFoundError as error:
        raise missing(recipe.runtime, error) from error
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{encoder.name} cannot be brought to {recipe.runtime}: {reason(error)}"
        ) from error
    model: dict[str, object]
    if isinstance(encoder, AlbefEncoder):
        shutil.copyfile(encoder.tokenizer.vocab_file, folder / VOCABULARY)
        model = encoder.config.model_dump(mode="json")
    else:
        if encoder.tokenizer_file is not None:
            shutil.copyfile(encoder.tokenizer_file, folder / TOKENIZER)
        else:
            write_clip_tokenizer(encoder.tokenizer, folder / CLIP_TOKENIZER)
        model = json.loads(json.dumps(encoder.config, default=list))
    config = OptimizedConfig(
        runtime=recipe.runtime,
        precision=recipe.precision,
        versions=module.versions(),
        floats=recipe.floats,
        kept=recipe.kept,
        calibration={side: len(getattr(examples, side)) for side in SIDES if recipe.int8},
        ends=exported.ends,
        parent=ParentRecord(name=encoder.name, fingerprint=encoder.fingerprint, dim=encoder.dim),
        model=model,
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    )
    write_config(folder, config)
    return config
