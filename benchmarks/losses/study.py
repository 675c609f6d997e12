"""One run: a small CLIP fine-tuned with one loss on drawn products, and what it finds then.

The start, the products and the test are those of the drawn experiment of token pruning
(benchmarks/pruning/toy.py): titles with five visual words among fourteen others, and as test
further views of unseen products against their pictures on white.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.pruning.toy import DrawnImages, as_pairs, embedded
from benchmarks.pruning.toy_data import ToyProducts, draw_products
from indexing.durable import replace_bytes
from indexing.models.clip import ClipEncoder, load_folder
from training.clip import train_clip
from training.config import TrainConfig
from training.data import Pairs
from training.losses import LOSSES
from training.validation import first_hit_ranks, recall_at

Floats = NDArray[np.float32]
TRAIN, TEST, VIEWS = 1200, 600, 3  # products; and pictures of each, where there are several
EPOCHS = 21  # of one picture a product; of several a third, so that all see as many pairs
MASK_STEPS = 60
CONFIG = TrainConfig(batch_size=100, learning_rate=3e-3, warm_up=0.1)
VALIDATION_SEED, TEST_SEED = 3, 2


@dataclass(frozen=True)
class Condition:
    """Under what a loss is tried.

    Attributes:
        views: pictures of each product in training.
        pruned: MML-TP's calibrated masks, or whole titles.
    """

    views: int
    pruned: bool


CONDITIONS = {
    "one": Condition(1, pruned=False),
    "several": Condition(VIEWS, pruned=False),
    "one, MML-TP": Condition(1, pruned=True),
    "several, MML-TP": Condition(VIEWS, pruned=True),
}
# A control: losses with a memory hold the logit scale at 10, which alone may be what helps.
HELD, HELD_SCALE = "infonce, scale held", 10.0
TRIED = (*LOSSES, HELD)
ARMS = {f"{loss} / {condition}": (loss, condition) for condition in CONDITIONS for loss in TRIED}


def run_arm(
    arm: str, seed: int, share: float, start: Path, test_seed: int = TEST_SEED
) -> dict[str, Any]:
    """Trains and measures one of ARMS on the catalog of one seed; plain values.

    Args:
        share: of no use here.
        test_seed: of the products that are asked for; never those of training.
    """
    torch.set_num_threads(1)  # models this small are slower on several
    loss, condition = ARMS[arm]
    encoder = train(loss, CONDITIONS[condition], seed, start)
    return {"arm": arm, "seed": seed, **measure(encoder, drawn(TEST, test_seed, start.parent))}


def drawn(count: int, seed: int, work: Path) -> ToyProducts:
    """Drawn products with VIEWS pictures each, kept in `work`, as drawing takes a while."""
    file = work / f"products-{count}-{seed}.npz"
    if not file.exists():
        made = draw_products(count, seed, views=VIEWS)
        with io.BytesIO() as held:
            np.savez(held, pictures=made.pictures, titles=made.titles, clean=made.clean)
            replace_bytes(file, held.getvalue())
    with np.load(file) as kept:
        return ToyProducts(kept["pictures"], kept["titles"].tolist(), kept["clean"].tolist())


def train(loss: str, condition: Condition, seed: int, start: Path) -> ClipEncoder:
    """The model of `start`, fine-tuned."""
    encoder = load_folder(start)
    if loss == HELD:
        loss, scale = "infonce", encoder.model.logit_scale
        scale.data.fill_(math.log(HELD_SCALE))
        scale.requires_grad_(False)
    products = drawn(TRAIN, 100 + seed, start.parent)
    if condition.views == 1:
        chosen = np.random.default_rng(seed).integers(0, VIEWS, TRAIN)  # on white, or on a ground
        pictures, titles = products.pictures[np.arange(TRAIN), chosen], products.titles
    else:
        pictures = products.pictures.reshape(-1, *products.pictures.shape[2:])
        titles = [title for title in products.titles for _ in range(VIEWS)]
    config = CONFIG.model_copy(
        update={
            "loss": loss,
            "views": min(2, condition.views),
            "epochs": EPOCHS // condition.views,
            "seed": seed,
            "preset": "calibrated" if condition.pruned else "standard",
            "mask_steps": MASK_STEPS if condition.pruned else 0,
        }
    )
    images = DrawnImages(encoder, pictures, seed, remember=True)
    train_clip(encoder, _products(titles, condition.views), images, None, None, None, config)
    return encoder


def _products(titles: list[str], views: int) -> Pairs:
    """As `as_pairs`, with the pictures of a product under one id."""
    pairs = as_pairs(titles)
    ids = [str(row // views) for row in range(len(titles))]
    return Pairs(pairs.pictures, pairs.titles, pairs.keys, ids)


def measure(encoder: ClipEncoder, test: ToyProducts) -> dict[str, Any]:
    """Recall@1/5/10 of both tasks with each query's rank, and the shape of the space.

    `picture` asks by another view of a product and `title` by its noisy title, both for its
    picture on white. For the rest see `shape_of`.
    """
    count, views = test.pictures.shape[:2]
    gallery = embedded(encoder, test.pictures[:, 0])
    asked = embedded(encoder, test.pictures[:, 1:].reshape(-1, *test.pictures.shape[2:]))
    titles = encoder.embed_texts(test.titles)
    products = np.arange(count)
    found: dict[str, Any] = shape_of(gallery, titles)
    for name, queries, keys in (
        ("picture", asked, products.repeat(views - 1)),
        ("title", titles, products),
    ):
        ranks = first_hit_ranks(queries, gallery, keys, products)
        found |= {f"{name} R@{k}": hits for k, hits in recall_at(ranks).items()}
        found[f"{name} ranks"] = ranks.tolist()
    return found


def shape_of(pictures: Floats, titles: Floats) -> dict[str, float]:
    """What a space looks like, by unit vectors [n, d] of products' pictures and titles.

    `gap` is the distance between the means of pictures and titles (Liang et al., NeurIPS 2022),
    `separability` the share that a linear classifier tells right as picture or title (Fahim et
    al., arXiv 2405.18570), `alignment` the mean squared distance of pairs, and `uniformity` of
    the pictures log mean exp(-2 d^2) (Wang and Isola, ICML 2020).
    """
    gap = np.linalg.norm(pictures.mean(0) - titles.mean(0))
    alignment = np.square(pictures - titles).sum(1).mean()
    cosines = (pictures @ pictures.T)[np.triu_indices(len(pictures), 1)]
    uniformity = np.log(np.exp(4 * cosines.astype(float) - 4).mean())
    return {
        "gap": float(gap),
        "separability": _separability(pictures, titles),
        "alignment": float(alignment),
        "uniformity": float(uniformity),
    }


def _separability(pictures: Floats, titles: Floats) -> float:
    """By least squares on every other product, asked of the rest; .5 is chance."""
    kinds = np.concatenate([np.ones(len(pictures)), -np.ones(len(titles))])
    rows = np.pad(np.concatenate([pictures, titles]).astype(float), ((0, 0), (0, 1)))
    rows[:, -1] = 1  # what the classifier adds
    asked = np.concatenate([np.arange(len(pictures)), np.arange(len(titles))]) % 2 == 1
    weights = np.linalg.lstsq(rows[~asked], kinds[~asked], rcond=None)[0]
    return float(((rows[asked] @ weights > 0) == (kinds[asked] > 0)).mean())
