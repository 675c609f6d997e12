"""MML-TP with ALBEF on real titles; halves, test set and kinds of words are as in `fashion.py`.

ALBEF has no locked tower, so pictures are small: an untrained model learns from the first half
of the training titles, and the arms from 6,000 pairs of the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.pruning import albef_toy
from benchmarks.pruning.albef_arms import kept_words, train_albef_arm
from benchmarks.pruning.fashion import Lexicon, held_out_pairs, kept_by_kind, training_pairs
from benchmarks.pruning.runs import Result
from indexing.catalog import read_catalog
from indexing.catalog.product import ProductImage
from indexing.images import read_image
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.models.albef.weights import load_albef
from training.albef.new import write_word_pieces
from training.albef.train import train_albef
from training.data import Pairs
from training.validation import first_hit_ranks, recall_at

Rows = NDArray[np.int64]
SIZE = 48  # pixels of a side; the pictures have 60 x 80
PAIRS = 6000  # of an arm
START = albef_toy.START.model_copy(update={"epochs": 10})
CONFIG = START.model_copy(update={"epochs": 5, "learning_rate": 1e-3, "hardening": 0.0})
SECOND = CONFIG.model_copy(update={"epochs": 2, "learning_rate": 5e-4})
_FILES = ("first", "second", "test")


def prepare(data: Path, work: Path) -> None:
    """Writes the start of all arms to `work`, and all pictures, small."""
    parts = _parts(data)
    encoder = _new(parts["first"], work)
    for name in _FILES:
        file = work / f"{name}.npy"
        if not file.exists():
            _write_pixels(encoder, parts[name].pictures, file)
    images = StoredImages(encoder, work / "first.npy", 0)
    train_albef(encoder, parts["first"], images, None, None, None, START)
    encoder.save(work / "start", card="# The start of the experiment on real titles\n")


def run_arm(arm: str, seed: int, share: float, data: Path, work: Path) -> Result:
    """Fine-tunes and measures one arm; plain values. Seeds take other pairs of the half."""
    torch.set_num_threads(1)
    parts = _parts(data)
    lexicon = Lexicon.of(read_catalog(data / "fashion/catalog.csv"))
    second = arm.startswith("second ")
    encoder = load_albef(work / (f"standard-{seed}" if second else "start"))
    rows = np.random.default_rng(seed).permutation(len(parts["second"]))[:PAIRS]
    images = StoredImages(encoder, work / "second.npy", seed, rows)
    pairs = parts["second"].take(rows)
    train_albef_arm(
        arm.removeprefix("second "),
        encoder,
        pairs,
        images,
        (SECOND if second else CONFIG).model_copy(update={"seed": seed}),
        share=share,
        visual=lexicon.visible,
    )
    if arm == "standard":
        encoder.save(work / f"standard-{seed}", card=f"# Arm {arm}, seed {seed}\n")
    found = measure(encoder, parts["test"], StoredImages(encoder, work / "test.npy", None), lexicon)
    if encoder.pruning is not None:
        sample = images.pixels(np.arange(2000))
        found["share"] = _kept(encoder, pairs.titles[:2000], sample, lexicon)["all"]
    return {"arm": arm, "seed": seed, **found}


def measure(encoder: AlbefEncoder, test: Pairs, images: StoredImages, lexicon: Lexicon) -> Result:
    """Unseen title -> picture."""
    blocks = np.array_split(np.arange(len(test)), 20)
    with torch.inference_mode():
        vectors = [encoder.model.encode_image(images.pixels(block)) for block in blocks]
    gallery = torch.cat(vectors).numpy()
    _, first = np.unique(test.keys, return_index=True)
    titles = [test.titles[row] for row in first]
    ranks = first_hit_ranks(encoder.embed_texts(titles), gallery, test.keys[first], test.keys)
    found: Result = {f"title R@{k}": recall for k, recall in recall_at(ranks).items()}
    if encoder.pruning is not None:
        found["kept"] = _kept(encoder, titles, images.pixels(first), lexicon)
    return found


class StoredImages:
    """Pictures in a file, uint8 [n, 3, SIZE, SIZE]; half of them are mirrored in an epoch.

    Args:
        seed: of what is mirrored; None: nothing.
        rows: which pictures of the file; None: all.
    """

    def __init__(
        self, encoder: AlbefEncoder, file: Path, seed: int | None, rows: Rows | None = None
    ) -> None:
        self._encoder = encoder
        self._pictures = np.load(file, mmap_mode="r")
        self._rows = np.arange(len(self._pictures)) if rows is None else rows
        self._seed = seed
        self._mean = torch.tensor(encoder.mean).view(3, 1, 1)
        self._std = torch.tensor(encoder.std).view(3, 1, 1)

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, Tensor]]:
        for number, rows in enumerate(batches):
            pixels = self.pixels(rows)
            if self._seed is not None:
                drawn = np.random.default_rng([self._seed, epoch, number]).random(len(rows))
                mirrored = torch.from_numpy(drawn < 0.5)[:, None, None, None]
                pixels = torch.where(mirrored, pixels.flip(3), pixels)
            yield rows, pixels

    def pixels(self, rows: Rows) -> Tensor:
        """float32 [n, 3, SIZE, SIZE], as the encoder preprocesses pictures."""
        pictures = torch.from_numpy(self._pictures[self._rows[rows]]).float() / 255
        return (pictures - self._mean) / self._std

    def embed(self, images: Tensor) -> Tensor:
        return self._encoder.model.encode_image(images)

    def before(self, images: Tensor) -> Tensor:
        raise NotImplementedError("the experiment keeps no similarities")


def _new(pairs: Pairs, work: Path) -> AlbefEncoder:
    vocab_file = work / "vocab.txt"
    pieces = write_word_pieces(pairs.titles, vocab_file)
    config = AlbefConfig(
        **{"image_size": SIZE, "patch_size": 12, "vision_width": 64, "vision_layers": 3},
        **{"vision_heads": 4, "vocab_size": pieces, "text_width": 64, "text_layers": 4},
        **{"text_heads": 4, "text_intermediate": 256, "fusion_layer": 2, "max_positions": 40},
        **{"embed_dim": 64, "max_text_length": 32},
    )
    return new_encoder(config, vocab_file, seed=0)


def _parts(data: Path) -> dict[str, Pairs]:
    products = list(read_catalog(data / "fashion/catalog.csv"))
    first, second = (training_pairs(products, second_half=half) for half in (False, True))
    return {"first": first, "second": second, "test": held_out_pairs(products)}


def _write_pixels(encoder: AlbefEncoder, pictures: Sequence[ProductImage], file: Path) -> None:
    mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
    stored = np.empty((len(pictures), 3, SIZE, SIZE), np.uint8)
    for row, picture in enumerate(pictures):
        if picture.path is None:
            raise FileNotFoundError(picture.location)
        decoded = read_image(picture.path, at_least=SIZE)
        pixels = torch.from_numpy(encoder.preprocess(decoded))
        shown = pixels * std[:, None, None] + mean[:, None, None]
        stored[row] = (shown * 255).round().clamp(0, 255).byte().numpy()
    np.save(file, stored)


def _kept(
    encoder: AlbefEncoder, titles: Sequence[str], pixels: Tensor, lexicon: Lexicon
) -> dict[str, float]:
    return kept_by_kind(kept_words(encoder, titles, pixels), lexicon)
