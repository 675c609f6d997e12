"""MML-TP on drawn products: does the picture tower learn more from cleaned titles?

A small CLIP is trained on plain captions first, as public models are, and then fine-tuned in
each arm on other products with a shop's titles, one picture each. Asked are further views of
unseen products, against their pictures on white. Seeds are other catalogs and other orders;
start and test products are the same for all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.pruning.arms import train_arm, visual_only
from benchmarks.pruning.toy_data import (
    CONTEXT,
    KIND_OF,
    SIZE,
    VISUAL,
    ToyProducts,
    draw_products,
    save_tokenizer,
)
from indexing.catalog.product import ProductImage
from indexing.cleaning import clean
from indexing.models.clip import ClipEncoder, create_model, load_folder
from indexing.models.tokenizers import FolderTokenizer
from training.clip import train_clip
from training.config import TrainConfig
from training.data import Pairs
from training.encoders import TrainedEncoder
from training.validation import first_hit_ranks, recall_at

Rows = NDArray[np.int64]
TRAIN, TEST, PUBLIC = 1500, 600, 4000  # products
START = TrainConfig(epochs=16, batch_size=250, learning_rate=2e-3, warm_up=0.1)
CONFIG = TrainConfig(epochs=44, batch_size=250, learning_rate=1.5e-3, warm_up=0.1)
MASK_STEPS = 160


def make_start(folder: Path) -> None:
    """Writes the model that all arms start from."""
    folder.mkdir(parents=True, exist_ok=True)
    words = save_tokenizer(folder / "tokenizer.json")
    config: dict[str, Any] = {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {
                **{"image_size": SIZE, "patch_size": 8, "width": 48, "layers": 2},
                "head_width": 16,
            },
            "text_cfg": {
                **{"context_length": CONTEXT, "vocab_size": words, "width": 48, "heads": 4},
                "layers": 3,
            },
        },
        "preprocess_cfg": {"size": SIZE, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    torch.manual_seed(0)
    tokenizer = FolderTokenizer(folder / "tokenizer.json", CONTEXT)
    file = folder / "tokenizer.json"
    model = create_model(config["model_cfg"])
    encoder = ClipEncoder("toy", model, tokenizer, config, tokenizer_file=file)
    products = draw_products(PUBLIC, 1, views=2, captions=True)
    pictures = products.pictures.reshape(-1, *products.pictures.shape[2:])
    titles = [title for title in products.titles for _ in range(2)]
    train_clip(
        encoder, as_pairs(titles), DrawnImages(encoder, pictures, 0), None, None, None, START
    )
    encoder.save(folder, card="# The start of the toy experiment of token pruning\n")


def run_arm(arm: str, seed: int, share: float, start: Path) -> dict[str, Any]:
    """Fine-tunes and measures one arm on the catalog of one seed; plain values."""
    torch.set_num_threads(1)  # models this small are slower on several
    encoder = load_folder(start)
    products = draw_products(TRAIN, 100 + seed, views=2)
    views = np.random.default_rng(seed).integers(0, 2, TRAIN)  # on white, or on a ground
    images = DrawnImages(encoder, products.pictures[np.arange(TRAIN), views], seed)
    config = CONFIG.model_copy(update={"seed": seed})
    train_arm(
        arm,
        encoder,
        as_pairs(products.titles),
        images,
        config,
        share=share,
        visual=visible,
        mask_steps=MASK_STEPS,
    )
    found = measure(encoder, draw_products(TEST, 2, views=3), oracle=arm == "oracle")
    if encoder.pruning is not None:
        found["share"] = kept_by_kind(_kept(encoder, products.titles))["all"]
    return {"arm": arm, "seed": seed, **found}


def measure(encoder: ClipEncoder, test: ToyProducts, *, oracle: bool = False) -> dict[str, Any]:
    """`recalls`, and kept shares."""
    found: dict[str, Any] = recalls(encoder, test, oracle=oracle)
    if encoder.pruning is not None:
        found["kept"] = kept_by_kind(_kept(encoder, test.titles))
    return found


def recalls(encoder: TrainedEncoder, test: ToyProducts, *, oracle: bool) -> dict[str, float]:
    """Recall@1/5/10 of other views, titles and clean titles -> picture on white."""
    count, views = test.pictures.shape[:2]
    gallery = embedded(encoder, test.pictures[:, 0])
    asked = embedded(encoder, test.pictures[:, 1:].reshape(-1, *test.pictures.shape[2:]))
    products = np.arange(count)
    titles = visual_only(test.titles, visible) if oracle else test.titles
    queries = {
        "picture": (asked, products.repeat(views - 1)),
        "title": (encoder.embed_texts(titles), products),
        "clean": (encoder.embed_texts(test.clean), products),
    }
    found: dict[str, float] = {}
    for name, (vectors, keys) in queries.items():
        shares = recall_at(first_hit_ranks(vectors, gallery, keys, products))
        found |= {f"{name} R@{k}": share for k, share in shares.items()}
    return found


def kept_by_kind(titles: Iterable[Iterable[tuple[str, bool]]]) -> dict[str, float]:
    """The share of words kept: of each kind, of visual ones, of noise and of all.

    Args:
        titles: each word of each title, and whether it is kept.
    """
    kept: dict[str, list[bool]] = {}
    for words in titles:
        for word, stays in words:
            kind = KIND_OF[word]
            for name in ("all", "visual" if kind in VISUAL else "noise", kind):
                kept.setdefault(name, []).append(stays)
    return {name: float(np.mean(values)) for name, values in sorted(kept.items())}


def _kept(encoder: ClipEncoder, titles: Sequence[str]) -> list[list[tuple[str, bool]]]:
    return [[(word.text, word.kept) for word in words] for words in clean(encoder, titles)]


class DrawnImages:
    """Pictures in memory; each epoch mirrors, moves and lights them anew.

    Args:
        pictures: uint8 [n, SIZE, SIZE, 3].
        remember: keep the tower as it is now, for `before`.
    """

    def __init__(
        self,
        encoder: TrainedEncoder,
        pictures: NDArray[np.uint8],
        seed: int,
        *,
        remember: bool = False,
    ) -> None:
        self._model: Any = encoder.model
        self._pictures, self._seed = pictures, seed
        self._before: Any = None
        if remember:
            self._before = copy.deepcopy(encoder.model).eval().requires_grad_(False)

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, Tensor]]:
        for number, rows in enumerate(batches):
            rng = np.random.default_rng([self._seed, epoch, number])
            yield rows, _augmented(as_pixels(self._pictures[rows]), rng)

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self._model.encode_image(images)
        return features

    def before(self, images: Tensor) -> Tensor:
        if self._before is None:
            raise NotImplementedError("these pictures are not remembered")
        with torch.no_grad():
            return functional.normalize(self._before.encode_image(images), dim=-1)


def _augmented(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of them mirrored, all moved by up to two pixels, each in a light of its own."""
    mirrored = torch.from_numpy(rng.random(len(pixels)) < 0.5)[:, None, None, None]
    pixels = torch.where(mirrored, pixels.flip(3), pixels)
    down, right = (int(shift) for shift in rng.integers(-2, 3, 2))
    light = torch.from_numpy(1 + 0.15 * rng.standard_normal((len(pixels), 1, 1, 1))).float()
    return (torch.roll(pixels, (down, right), (2, 3)) * light).clamp(-1, 1)


def as_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [n, SIZE, SIZE, 3] to float32 [n, 3, SIZE, SIZE] between -1 and 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def embedded(encoder: TrainedEncoder, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    parts = np.array_split(pictures, math.ceil(len(pictures) / 500))
    with torch.inference_mode():
        vectors = [encoder.model.encode_image(as_pixels(part)) for part in parts]
    return functional.normalize(torch.cat(vectors), dim=-1).numpy()


def as_pairs(titles: Sequence[str]) -> Pairs:
    """Each its own product: of equal titles only pictures differ, and all are equally right."""
    numbers: dict[str, int] = {}
    keys = np.array([numbers.setdefault(title, len(numbers)) for title in titles])
    pictures = [ProductImage(location=f"{row}.png") for row in range(len(titles))]
    return Pairs(pictures, list(titles), keys, [str(row) for row in range(len(titles))])


def visible(word: str) -> bool:
    """Whether pictures show a word of the drawn products' titles."""
    return KIND_OF.get(word) in VISUAL
