"""MML-TP with ALBEF on drawn products; what is asked, and of what, is as in `toy.py`.

A second stage goes on from the model of the arm `standard` of its seed, for a few epochs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pruning.albef_arms import kept_words, train_albef_arm
from benchmarks.pruning.toy import (
    PUBLIC,
    TEST,
    TRAIN,
    DrawnImages,
    as_pairs,
    as_pixels,
    kept_by_kind,
    recalls,
    visible,
)
from benchmarks.pruning.toy_data import CONTEXT, SIZE, WORDS, ToyProducts, draw_products
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.models.albef.weights import load_albef
from training.albef.config import AlbefTraining
from training.albef.train import train_albef

START = AlbefTraining(
    epochs=40,
    batch_size=250,
    learning_rate=2e-3,
    warm_up=0.1,
    momentum=0.95,
    queue_size=2000,
    hardening=1.0,
    preset="standard",
)
CONFIG = START.model_copy(update={"epochs": 30, "learning_rate": 1e-3, "hardening": 0.0})
SECOND = CONFIG.model_copy(update={"epochs": 10, "learning_rate": 5e-4})
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_start(folder: Path) -> None:
    """Writes the model that all arms start from."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_file = folder / "vocab.txt"
    pieces = dict.fromkeys(piece for word in WORDS for piece in re.split("-", word))
    vocab_file.write_text("\n".join([*_SPECIAL, *pieces]) + "\n")
    config = AlbefConfig(
        **{"image_size": SIZE, "patch_size": 8, "vision_width": 48, "vision_layers": 2},
        **{"vision_heads": 4, "vocab_size": len(_SPECIAL) + len(pieces), "text_width": 48},
        **{"text_layers": 4, "text_heads": 4, "text_intermediate": 192, "fusion_layer": 2},
        **{"max_positions": 48, "embed_dim": 64, "max_text_length": CONTEXT + 4},
    )
    encoder = new_encoder(config, vocab_file, seed=0)
    products = draw_products(PUBLIC, 1, views=2, captions=True)
    pictures = products.pictures.reshape(-1, *products.pictures.shape[2:])
    pairs = as_pairs([title for title in products.titles for _ in range(2)])
    train_albef(encoder, pairs, DrawnImages(encoder, pictures, 0), None, None, None, START)
    encoder.save(folder, card="# The start of the toy experiment of token pruning with ALBEF\n")


def run_arm(arm: str, seed: int, share: float, start: Path) -> dict[str, Any]:
    """Fine-tunes and measures one arm on the catalog of one seed; plain values."""
    torch.set_num_threads(1)  # models this small are slower on several
    second = arm.startswith("second ")
    encoder = load_albef(_first_stage(start, seed) if second else start)
    products = draw_products(TRAIN, 100 + seed, views=2)
    views = np.random.default_rng(seed).integers(0, 2, TRAIN)  # on white, or on a ground
    pictures = products.pictures[np.arange(TRAIN), views]
    train_albef_arm(
        arm.removeprefix("second "),
        encoder,
        as_pairs(products.titles),
        DrawnImages(encoder, pictures, seed),
        (SECOND if second else CONFIG).model_copy(update={"seed": seed}),
        share=share,
        visual=visible,
    )
    if arm == "standard":
        encoder.save(_first_stage(start, seed), card=f"# Arm {arm}, seed {seed}\n")
    test = draw_products(TEST, 2, views=3)
    found: dict[str, Any] = recalls(encoder, test, oracle=arm == "oracle")
    if encoder.pruning is not None:
        found["kept"] = _kept(encoder, test)
        found["share"] = _kept(encoder, ToyProducts(pictures[:, None], products.titles, []))["all"]
    return {"arm": arm, "seed": seed, **found}


def _first_stage(start: Path, seed: int) -> Path:
    return start.parent / f"standard-{seed}"


def _kept(encoder: AlbefEncoder, products: ToyProducts) -> dict[str, float]:
    pixels = as_pixels(products.pictures[:, 0])
    return kept_by_kind(kept_words(encoder, products.titles, pixels))
