"""An optimised model as an `Encoder`: its parent's pictures and tokens, other towers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from indexing.ahead import ahead
from indexing.errors import ModelError
from indexing.messages import reason
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEye
from indexing.models.albef.tokenizer import AlbefTokenizer
from indexing.models.clip import TEXT_BATCH, ClipEye, open_tokenizer, unit
from indexing.models.optimized.exporting import ENDS, IDS, PIXELS, Ends
from indexing.models.optimized.folder import VOCABULARY, OptimizedConfig, read_config
from indexing.models.optimized.runtimes import Feeds, Floats, Run, Streams, runtime
from indexing.models.protocol import Parent
from indexing.models.text import TextTokenizer, by_length
from indexing.processor import has_bfloat16

if TYPE_CHECKING:
    from PIL.Image import Image

    from indexing.models.protocol import Vectors

Ready = TypeVar("Ready", Run, Streams)


class OptimizedEncoder:
    """Runs the graphs of a folder, on the CPU.

    Ranges of int8 are those of the calibration and not of a batch, so vectors do not depend on
    what is beside them.
    """

    device = "cpu"

    def __init__(
        self,
        name: str,
        config: OptimizedConfig,
        eye: ClipEye | AlbefEye,
        tokenizer: TextTokenizer,
        picture: Callable[[], Run],
        pictures: Callable[[], Streams],
        text: Callable[[], Run],
    ) -> None:
        """`picture`, `pictures` and `text` make their graphs ready: that of one batch of pictures
        at a time, that of several, and that of texts."""
        self.name = name
        self.config = config
        self.dim = config.parent.dim
        self.image_size = eye.image_size
        self.fingerprint = config.fingerprint
        passed = config.gate is not None and config.gate.passed
        self.parent = Parent(config.parent.fingerprint, passed)
        self.tokenizer = tokenizer
        self._eye = eye
        self._load_picture, self._load_pictures, self._load_text = picture, pictures, text

    # Made ready when first asked for: a search by words needs no graph of pictures.

    @cached_property
    def _picture(self) -> Run:
        return self._load_picture()

    @cached_property
    def _pictures(self) -> Streams:
        return self._load_pictures()

    @cached_property
    def _text(self) -> Run:
        return self._load_text()

    def preprocess(self, picture: Image) -> Tensor:
        return self._eye.preprocess(picture)

    def embed_pixels(self, pixels: Tensor) -> Vectors:
        if not len(pixels):
            return np.zeros((0, self.dim), np.float32)
        return unit(torch.from_numpy(self._picture({PIXELS: pixels.numpy()})))

    def embed_batches(self, batches: Iterable[Tensor]) -> Iterator[Vectors]:
        """The vectors of batches of pictures, in order; several batches at a time."""
        run, at_once = self._pictures

        def embed(pixels: Tensor) -> Vectors:
            return unit(torch.from_numpy(run({PIXELS: pixels.numpy()})))

        with ThreadPoolExecutor(at_once, thread_name_prefix="encode") as pool:
            yield from ahead(pool, embed, batches, at_once + 1)

    def embed_images(self, pictures: Sequence[Image]) -> Vectors:
        if not pictures:
            return np.zeros((0, self.dim), np.float32)
        return self.embed_pixels(torch.stack([self.preprocess(picture) for picture in pictures]))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        parts = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(texts), TEXT_BATCH):
            ids = self.tokenizer(texts[start : start + TEXT_BATCH])
            parts.append(unit(self._embed(ids, last_tokens(ids, self.config.ends, self.tokenizer))))
        return np.concatenate(parts)

    def _embed(self, ids: Tensor, ends: Tensor | None) -> Tensor:
        if ends is None:
            return torch.from_numpy(self._text(text_feed(ids, None)))
        return by_length(
            ends, lambda part: torch.from_numpy(self._text(text_feed(ids[part], ends[part])))
        )


def last_tokens(ids: Tensor, how: Ends, tokenizer: TextTokenizer) -> Tensor | None:
    """The place of each text's last token, int64 [n]; None where towers take texts whole."""
    if how == "whole":
        return None
    if how == "argmax":
        return ids.argmax(-1)
    if how == "padding":
        mask: Tensor = tokenizer.mask(ids)  # type: ignore[attr-defined]
        return mask.sum(1) - 1
    return (ids == how).int().argmax(-1)


def text_feed(ids: Tensor, ends: Tensor | None) -> Feeds:
    """Token ids as a text graph takes them, cut to the longest text."""
    if ends is None:
        return {IDS: ids.numpy()}
    length = int(ends.max()) + 1
    return {IDS: ids[:, :length].contiguous().numpy(), ENDS: ends.numpy()}


def load_optimized(
    folder: Path, *, name: str | None = None, device: str | None = None
) -> OptimizedEncoder:
    """Opens the folder of an optimised model.

    Raises:
        ModelError: A file is missing or was changed. Its graphs are made ready when they are first
            asked for, and raise it where they cannot be run here.
        MissingDependencyError: Its runtime is not installed.
    """
    if device not in (None, "cpu"):
        raise ModelError(f"{folder} runs on the CPU and not on {device}: give its parent for that")
    config = read_config(folder)
    module = runtime(config.runtime)
    floats: Floats = config.floats if has_bfloat16() else "float32"
    try:
        eye: ClipEye | AlbefEye
        tokenizer: TextTokenizer
        if "vision_width" in config.model:
            sizes = AlbefConfig.model_validate(config.model)
            eye, tokenizer = AlbefEye(sizes.image_size), AlbefTokenizer(folder / VOCABULARY, sizes)
        else:
            eye = ClipEye(config.model["preprocess_cfg"])
            tokenizer, _ = open_tokenizer(folder, config.model)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"{folder} cannot be loaded: {reason(error)}") from error

    def ready(load: Callable[[Path, Floats, int], Ready], side: str) -> Callable[[], Ready]:
        return lambda: _ready(load, folder / f"{side}{module.SUFFIX}", floats)

    return OptimizedEncoder(
        name or str(folder.resolve()), config, eye, tokenizer,
        ready(module.load, "picture"), ready(module.load_streams, "picture"),
        ready(module.load, "text"),
    )  # fmt: skip


def _ready(load: Callable[[Path, Floats, int], Ready], path: Path, floats: Floats) -> Ready:
    try:
        return load(path, floats, torch.get_num_threads())
    except RuntimeError as error:
        raise ModelError(f"{path} cannot be run: {reason(error)}") from error
