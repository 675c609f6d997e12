"""A tiny model and a catalog of coloured pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn import functional

from indexing.catalog.product import ProductImage
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.tokenizers import FolderTokenizer
from training.data import Pairs

COLOURS = ["red", "green", "blue", "yellow", "black", "white", "cyan", "magenta"]
NOISE = ["new", "best", "sale", "pack", "free", "gift"]
CONVOLUTIONAL = {"timm_model_name": "mobilenetv2_035", "timm_pool": "avg", "timm_proj": "linear"}
TRANSFORMER = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, on a busy machine many times so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_encoder(folder: Path, vision: dict[str, Any], layers: int = 1) -> ClipEncoder:
    """A tiny picture tower and a tiny text tower, always with the same weights."""
    words = ["[PAD]", "[UNK]", *COLOURS, *NOISE, "[SOT]", "[EOT]"]
    size = len(words)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[SOT] $A [EOT]", special_tokens=[("[SOT]", size - 2), ("[EOT]", size - 1)]
    )
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    text = {"context_length": 8, "vocab_size": size, "width": 16, "heads": 2, "layers": layers}
    config = {
        "model_cfg": {"embed_dim": 8, "vision_cfg": {**vision, "image_size": 32}, "text_cfg": text},
        "preprocess_cfg": {"size": 32, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    torch.manual_seed(0)
    model = create_model(config["model_cfg"])
    return ClipEncoder("tiny", model, FolderTokenizer(file, 8), config, tokenizer_file=file)


@pytest.fixture
def encoder(tmp_path: Path, request: pytest.FixtureRequest) -> ClipEncoder:
    """With a convolutional picture tower, or the one that a test asks for."""
    return make_encoder(tmp_path, getattr(request, "param", CONVOLUTIONAL))


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    """Plain pictures titled by their colour: three shades of each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures, titles, keys = [], [], []
    for key, colour in enumerate(COLOURS):
        for shade in range(3):
            path = folder / f"{colour}{shade}.png"
            Image.new("RGB", (32 + shade, 32), colour).save(path)
            pictures.append(ProductImage(location=path.name, path=path))
            titles.append(colour)
            keys.append(key)
    return Pairs(pictures, titles, np.array(keys), [f"p{n}" for n in range(len(titles))])


Rows = NDArray[np.int64]


@dataclass
class Pixels:
    """A picture side in memory: float32 [n, 3, 32, 32]. Rows in `unreadable` are left out."""

    encoder: ClipEncoder | AlbefEncoder
    pixels: Tensor
    unreadable: tuple[int, ...] = ()

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, Tensor]]:
        for batch in batches:
            rows = batch[~np.isin(batch, self.unreadable)]
            yield rows, self.pixels[rows]

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder.model.encode_image(images)
        return features

    def before(self, images: Tensor) -> Tensor:
        return functional.normalize(images.flatten(1)[:, :8] + 0.1, dim=-1)


def noisy_pairs(count: int = 24) -> tuple[Pairs, Tensor]:
    """Colours with words that no picture shows, and their pixels; no files are needed."""
    rng = np.random.default_rng(0)
    titles, pixels, keys = [], [], []
    for number in range(count):
        colour = COLOURS[number % len(COLOURS)]
        words = [colour, *rng.choice(NOISE, int(rng.integers(0, 5)), replace=False)]
        titles.append(" ".join(rng.permutation(words)))
        rgb = torch.tensor(ImageColor.getrgb(colour)[:3]) / 127.5 - 1
        noise = torch.from_numpy(rng.normal(0, 0.1, (3, 32, 32)).astype(np.float32))
        pixels.append(rgb.view(3, 1, 1) + noise)
        keys.append(number)
    pictures = [ProductImage(location=f"{number}.png") for number in range(count)]
    products = [f"p{number}" for number in range(count)]
    return Pairs(pictures, titles, np.array(keys), products), torch.stack(pixels)


@dataclass
class Tiny:
    """What it takes to train on pictures in memory: 24 of them, with noisy titles."""

    folder: Path

    def __post_init__(self) -> None:
        self.pairs, self.pixels = noisy_pairs()

    def encoder(self) -> ClipEncoder:
        """A transformer on both sides, the text's of two layers; always the same weights."""
        return make_encoder(self.folder, TRANSFORMER, layers=2)

    def images(self, encoder: ClipEncoder, unreadable: tuple[int, ...] = ()) -> Pixels:
        return Pixels(encoder, self.pixels, unreadable)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


@dataclass
class TinyAlbef:
    """As `Tiny`, with an ALBEF model of two text and two fusion layers.

    Its dropout is off, but where a test asks for it: chunks and processes draw their own.
    """

    folder: Path
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.pairs, self.pixels = noisy_pairs()

    def encoder(self) -> AlbefEncoder:
        """Always with the same weights."""
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *COLOURS, *NOISE]
        vocab_file = self.folder / "vocab.txt"
        vocab_file.write_text("\n".join(pieces) + "\n")
        config = AlbefConfig(
            image_size=32, patch_size=16, vision_width=16, vision_layers=1, vision_heads=2,
            vocab_size=len(pieces), text_width=16, text_layers=4, text_heads=2,
            text_intermediate=32, fusion_layer=2, max_positions=10, embed_dim=8,
            max_text_length=8,
        )  # fmt: skip
        encoder = new_encoder(config, vocab_file, seed=0)
        for module in encoder.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = self.dropout
        return encoder

    def images(self, encoder: AlbefEncoder, unreadable: tuple[int, ...] = ()) -> Pixels:
        return Pixels(encoder, self.pixels, unreadable)


@pytest.fixture
def tiny_albef(tmp_path: Path) -> TinyAlbef:
    return TinyAlbef(tmp_path)
