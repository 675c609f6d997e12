"""What a step of training is timed on: a model, pictures and titles, all of them made up."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexing.catalog.product import ProductImage
from indexing.errors import BenchmarkError
from indexing.messages import reason
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.albef.network import AlbefModel
from indexing.models.albef.tokenizer import AlbefTokenizer
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.pruned_text import text_tower
from indexing.models.text import ends_of_text
from indexing.models.torchvision_repair import import_torchvision
from training.data import Pairs
from training.encoders import TrainedEncoder

STEPS = 2  # timed in a turn, after one that is not
# Titles are about a sixteenth of the arithmetic, as in ViT-B-16; being narrow, more of the time.
TOY: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "layers": 8, "width": 128, "head_width": 32, "patch_size": 16, "image_size": 96,
    },
    "text_cfg": {
        "context_length": 77, "vocab_size": 4096, "width": 64, "heads": 2, "layers": 3,
    },
}  # fmt: skip
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_PICTURES = 1360  # drawn ones at most; larger batches repeat them
_SIGMA = 0.4  # of the logarithm of title lengths: 1 in 20 titles is about twice the usual one

Rows = NDArray[np.int64]


class Numbers:
    """A tokenizer of titles made of numbers, each one a token."""

    def __init__(self, vocabulary: int, context: int) -> None:
        self.vocabulary, self.context = vocabulary, context

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [n, context]: the start, the numbers, the end, which is the highest id, 0s."""
        ids = torch.zeros((len(texts), self.context), dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            words = [int(word) for word in text.split()][: self.context - 2]
            tokens = [self.vocabulary - 2, *words, self.vocabulary - 1]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids


def draw_titles(count: int, mean: float, tokenizer: Numbers) -> list[str]:
    """Titles for a tokenizer; lengths are log-normal around `mean` tokens, start and end
    included, and between 3 and the tokenizer's context."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(math.log(mean) - _SIGMA**2 / 2, _SIGMA, count)
    words = np.clip(np.rint(lengths), 3, tokenizer.context).astype(int) - 2
    return [" ".join(map(str, rng.integers(1, tokenizer.vocabulary - 2, n))) for n in words]


class Pixels:
    """The picture side of training, with all pictures on the device; rows share them."""

    def __init__(self, encoder: TrainedEncoder, pixels: Tensor) -> None:
        self._encoder, self._pixels = encoder, pixels

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, Tensor]]:
        for rows in batches:
            yield rows, torch.from_numpy(rows % len(self._pixels)).to(self._pixels.device)

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self._encoder.model.encode_image(self._pixels[images])
        return features

    def before(self, images: Tensor) -> Tensor:
        raise NotImplementedError("no arm keeps the similarities that pictures had before")


class WholePixels(Pixels):
    """As `Pixels`, but it hands out the pictures themselves, as ALBEF's steps take them."""

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, Tensor]]:
        for rows, places in super().batches(batches, epoch):
            yield rows, self._pixels[places]

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self._encoder.model.encode_image(images)
        return features


class Workload:
    """What all arms train. `model` is an architecture of open_clip; None: a toy.

    Args:
        side: of pictures, in pixels; None: as the architecture has it.
        pairs: how many there are at least; those of the steps that are timed in any case.

    Raises:
        BenchmarkError: open_clip has no such architecture, or it reads no such titles.
        ModelError: Its text tower cannot prune.
    """

    def __init__(
        self,
        model: str | None,
        device: str,
        *,
        batch: int,
        title_tokens: float,
        side: int | None = None,
        pairs: int = 0,
    ) -> None:
        self.name, self.device, self.batch = model or "toy", device, batch
        cfg = TOY if model is None else _architecture(model)
        if side is not None:
            cfg = {**cfg, "vision_cfg": {**cfg["vision_cfg"], "image_size": side}}
        image, text = cfg["vision_cfg"].get("image_size", 224), cfg["text_cfg"]
        side = max(image) if isinstance(image, (tuple, list)) else int(image)
        context = int(text.get("context_length", 77))
        if not 3 <= title_tokens <= context:
            raise BenchmarkError(
                f"titles of {title_tokens:g} tokens: {self.name} reads 3 to {context} tokens"
            )
        torch.manual_seed(0)
        try:
            self._model, self.cfg = create_model(cfg), cfg
        except (TypeError, ValueError, RuntimeError) as error:
            raise BenchmarkError(f"{self.name} cannot be built: {reason(error)}") from error
        self._preprocess = {"size": side, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3}
        self._tokenizer = Numbers(int(text.get("vocab_size", 49408)), context)
        text_tower(self._model)  # says what is wrong with it
        titles = draw_titles(max(pairs, batch * (1 + STEPS)), title_tokens, self._tokenizer)
        ids = self._tokenizer(titles)
        lengths = (ids > 0).sum(1)
        if not torch.equal(ends_of_text(self._model, ids), lengths - 1):
            raise BenchmarkError(f"{self.name} does not read its titles up to their highest token")
        self.mean_tokens, self.most_tokens = float(lengths.float().mean()), int(lengths.max())
        names = [str(number) for number in range(len(titles))]
        pictures = [ProductImage(location=name) for name in names]
        self.pairs = Pairs(pictures, titles, np.arange(len(titles)), names)
        self.pixels = torch.randn((min(batch, _PICTURES), 3, side, side)).to(device)

    def encoder(self) -> ClipEncoder:
        """The same untrained model each time."""
        config = {"model_cfg": self.cfg, "preprocess_cfg": self._preprocess}
        model = copy.deepcopy(self._model)
        return ClipEncoder(self.name, model, self._tokenizer, config, device=self.device)


class AlbefWorkload:
    """ALBEF on the pairs and pictures of a CLIP workload; titles take as many tokens.

    Args:
        base: the base model, but for the size of pictures and titles; else a model like the
            CLIP toy: the same picture encoder and width of text, with three layers of text and
            three of fusion.
        queue: embeddings of earlier batches to keep; the workload has as many pairs.
    """

    def __init__(self, clip: Workload, *, base: bool, queue: int) -> None:
        self.clip, self.queue = clip, queue
        self.config = _like(clip, base)
        # Numbers beyond the vocabulary are unknown to it, and a token each all the same.
        numbers = range(1, self.config.vocab_size - len(_SPECIAL) + 1)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "vocab.txt"
            file.write_text("\n".join([*_SPECIAL, *map(str, numbers)]) + "\n")
            self._tokenizer = AlbefTokenizer(file, self.config)
        torch.manual_seed(0)
        self._model = AlbefModel(self.config)

    def encoder(self) -> AlbefEncoder:
        """The same untrained model each time."""
        model = copy.deepcopy(self._model)
        return AlbefEncoder("ALBEF", model, self._tokenizer, device=self.clip.device)


def _like(clip: Workload, base: bool) -> AlbefConfig:
    side, text = int(clip.pixels.shape[-1]), clip.cfg["text_cfg"]
    context = int(text.get("context_length", 77))
    if base:
        return AlbefConfig(image_size=side, max_text_length=context)
    vision, width = clip.cfg["vision_cfg"], text["width"]
    return AlbefConfig(
        image_size=side, patch_size=vision["patch_size"], vision_width=vision["width"],
        vision_layers=vision["layers"], vision_heads=vision["width"] // vision["head_width"],
        vocab_size=text["vocab_size"], text_width=width, text_layers=6, fusion_layer=3,
        text_heads=text["heads"], text_intermediate=4 * width, embed_dim=clip.cfg["embed_dim"],
        max_positions=context, max_text_length=context,
    )  # fmt: skip


def _architecture(name: str) -> dict[str, Any]:
    """What open_clip knows of an architecture; raises BenchmarkError where that is no use."""
    import_torchvision()
    import open_clip

    cfg: dict[str, Any] | None = open_clip.get_model_config(name)
    if cfg is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise BenchmarkError(f"unknown model architecture {name!r}{hint}")
    if "hf_model_name" in cfg["text_cfg"]:  # to be fetched before it can be found unfit
        raise BenchmarkError(f"{name} has no text tower of open_clip: token pruning needs one")
    return cfg
