"""An optimised model as an `Encoder`: its parent's pictures and tokens, other towers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexing.ahead import ahead
from indexing.errors import ModelError
from indexing.messages import reason
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.eye import AlbefEye
from indexing.models.albef.tokenizer import AlbefTokenizer
from indexing.models.clip_eye import ClipEye
from indexing.models.clip_tokenizer import CLIP_TOKENIZER, ClipTokenizer
from indexing.models.optimized.folder import VOCABULARY, Ends, OptimizedConfig, read_config
from indexing.models.optimized.runtimes import (
    ENDS,
    IDS,
    PIXELS,
    Feeds,
    Floats,
    Run,
    Runtime,
    Streams,
    runtime,
)
from indexing.models.protocol import Parent, Pixels, Vectors
from indexing.models.tokenizers import TOKENIZER, PieceTokenizer, TextTokenizer, open_tokenizer
from indexing.processor import has_bfloat16, usable_threads

if TYPE_CHECKING:
    from PIL.Image import Image

Ready = TypeVar("Ready", Run, Streams)
Ids = NDArray[np.int64]

_READ = 4096  # texts whose tokens are in memory at a time
_TEXTS = 64  # that go through the tower together


@dataclass(frozen=True)
class Graphs:
    """Files picture.* and text.* in a folder."""

    folder: Path
    runtime: Runtime
    floats: Floats

    def ready(self, load: Callable[[Path, Floats, int], Ready], side: str) -> Ready:
        """One of them as a method of the runtime makes it ready. Raises ModelError."""
        path = self.folder / f"{side}{self.runtime.SUFFIX}"
        try:
            return load(path, self.floats, usable_threads())
        except RuntimeError as error:
            raise ModelError(f"{path} cannot be run: {reason(error)}") from error


class GraphEncoder:
    """Runs the two graphs of an encoder, on the CPU.

    Ranges of int8 are those of the calibration and not of a batch, so vectors do not depend on
    what is beside them.
    """

    device = "cpu"

    def __init__(
        self,
        name: str,
        fingerprint: str,
        dim: int,
        ends: Ends,
        eye: ClipEye | AlbefEye,
        tokenizer: Callable[[], TextTokenizer],
        graphs: Graphs,
    ) -> None:
        """`tokenizer` opens it."""
        self.name = name
        self.fingerprint = fingerprint
        self.dim = dim
        self.image_size = eye.image_size
        self._ends = ends
        self._open_tokenizer = tokenizer
        self._eye = eye
        self._graphs = graphs

    # Made ready when first asked for: a search by words needs no graph of pictures, and one of
    # open_clip's tokenizers brings torch with it.

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return self._open_tokenizer()

    @cached_property
    def _picture(self) -> Run:
        return self._graphs.ready(self._graphs.runtime.load, "picture")

    @cached_property
    def _pictures(self) -> Streams:
        return self._graphs.ready(self._graphs.runtime.load_streams, "picture")

    @cached_property
    def _text(self) -> Run:
        return self._graphs.ready(self._graphs.runtime.load, "text")

    def preprocess(self, picture: Image) -> Pixels:
        return self._eye.preprocess(picture)

    def embed_pixels(self, pixels: Pixels) -> Vectors:
        if not len(pixels):
            return np.zeros((0, self.dim), np.float32)
        return _unit(self._picture({PIXELS: pixels}))

    def embed_batches(self, batches: Iterable[Pixels]) -> Iterator[Vectors]:
        """The vectors of batches of pictures, in order; several batches at a time."""
        run, at_once = self._pictures

        def embed(pixels: Pixels) -> Vectors:
            return _unit(run({PIXELS: pixels}))

        with ThreadPoolExecutor(at_once, thread_name_prefix="encode") as pool:
            yield from ahead(pool, embed, batches, at_once + 1)

    def embed_images(self, pictures: Sequence[Image]) -> Vectors:
        if not pictures:
            return np.zeros((0, self.dim), np.float32)
        return self.embed_pixels(np.stack([self.preprocess(picture) for picture in pictures]))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        parts = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(texts), _READ):
            parts.append(self._embed(texts[start : start + _READ]))
        return np.concatenate(parts)

    def _embed(self, texts: Sequence[str]) -> Vectors:
        ids = token_ids(self.tokenizer, texts)
        ends = last_tokens(ids, self._ends, self.tokenizer)
        found = np.zeros((len(ids), self.dim), np.float32)
        # Texts of like length go together: each is padded to the longest beside it.
        order = np.arange(len(ids)) if ends is None else np.argsort(ends, kind="stable")
        for start in range(0, len(ids), _TEXTS):
            part = order[start : start + _TEXTS]
            found[part] = self._text(text_feed(ids[part], None if ends is None else ends[part]))
        return _unit(found)


class OptimizedEncoder(GraphEncoder):
    """What `shoplens optimize` wrote: another encoder than its `parent`."""

    def __init__(self, name: str, config: OptimizedConfig, *parts: Any) -> None:
        super().__init__(name, config.fingerprint, config.parent.dim, config.ends, *parts)
        self.config = config
        passed = config.gate is not None and config.gate.passed
        self.parent = Parent(config.parent.fingerprint, passed)


def token_ids(tokenizer: TextTokenizer, texts: Sequence[str]) -> Ids:
    """What a tokenizer makes of texts, int64 [n, length]; without torch where it can."""
    if isinstance(tokenizer, PieceTokenizer):
        return tokenizer.ids(texts)
    found: Ids = tokenizer(texts).numpy()
    return found


def last_tokens(ids: Ids, how: Ends, tokenizer: TextTokenizer) -> Ids | None:
    """The place of each text's last token, int64 [n]; None where towers take texts whole."""
    if how == "whole":
        return None
    ends: Ids
    if how == "argmax":
        ends = ids.argmax(-1)
    elif isinstance(tokenizer, AlbefTokenizer):
        ends = (ids != tokenizer.pad_id).sum(1) - 1
    else:
        ends = (ids == how).argmax(-1)
    return ends


def text_feed(ids: Ids, ends: Ids | None) -> Feeds:
    """Token ids as a text graph takes them, cut to the longest text."""
    if ends is None:
        return {IDS: ids}
    length = int(ends.max()) + 1
    return {IDS: np.ascontiguousarray(ids[:, :length]), ENDS: ends}


def _unit(features: NDArray[np.float32]) -> Vectors:
    """[n, dim] as unit vectors; what is nothing stays nothing."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Vectors = features / np.maximum(lengths, np.float32(1e-12))
    return unit


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
        opened: TextTokenizer | None = None
        if "vision_width" in config.model:
            sizes = AlbefConfig.model_validate(config.model)
            eye, opened = AlbefEye(sizes.image_size), AlbefTokenizer(folder / VOCABULARY, sizes)
        else:
            eye = ClipEye(config.model["preprocess_cfg"])
            if (folder / TOKENIZER).is_file():
                opened, _ = open_tokenizer(folder, config.model)
            elif (folder / CLIP_TOKENIZER).is_file():
                length = int(config.model["model_cfg"]["text_cfg"]["context_length"])
                opened = ClipTokenizer(folder / CLIP_TOKENIZER, length)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"{folder} cannot be loaded: {reason(error)}") from error

    return OptimizedEncoder(
        name or str(folder.resolve()), config, eye,
        lambda: opened or open_tokenizer(folder, config.model)[0],
        Graphs(folder, module, floats),
    )  # fmt: skip
