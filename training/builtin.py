"""Makes the weights of the `builtin` encoder: `python -m training.builtin --data FOLDER`.

FOLDER holds the catalogs `fashion` (35,317 Myntra products), `grocery` (81 products with
phone photos) and `clothing` (5,096 phone photos), as `fashion/catalog.csv` and so on. A
drawn catalog joins them, of another seed than the demo's, so that the encoder can read the
demo's pictures. The seed is fixed. What is measured stays out of training: the fashion
titles below TEST_SHARE and grocery's `val` and `test` photos.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from indexing.catalog import read_catalog
from indexing.catalog.product import Product
from indexing.demo import write_demo_catalog
from indexing.malloc import keep_freed_memory
from indexing.models import BUILTIN
from indexing.models.clip import ClipEncoder, load_folder
from indexing.titles import position
from training.config import TrainConfig
from training.data import read_pairs
from training.images import LockedImages, last_projection
from training.run import claim, run_clip
from training.seed_model import make_seed_model, start_projection

TEST_SHARE = 0.15
TEST_SEED = 1  # another than the run's, whose validation titles would all be test titles
CATALOGS = ("fashion/catalog.csv", "grocery/catalog.jsonl", "clothing/catalog.csv")
CONFIG = TrainConfig(
    epochs=10,
    batch_size=512,
    learning_rate=1e-3,
    weight_decay=0.05,
    validation_share=0.03,
    lock_image=True,
    keep_similarities=200,
    word_dropout=0.1,
    seed=0,
)
DRAWN_PRODUCTS, DRAWN_SEED = 2000, 1
SAMPLE = 8000  # pictures that the first projection is taken from


def is_test_title(title: str) -> bool:
    """Whether a fashion title is kept for measuring."""
    return position(title, TEST_SEED) < TEST_SHARE


def training_products(data: Path, work: Path, without: str = "") -> Iterator[Product]:
    """The products that `builtin` learns from, but those of the catalog `without`.

    The drawn catalog is written below `work`.
    """
    yield from read_catalog(write_demo_catalog(work / "drawn", DRAWN_PRODUCTS, DRAWN_SEED))
    for name in CATALOGS:
        if without and name.startswith(without):
            continue
        for product in read_catalog(data / name):
            if name.startswith("fashion") and is_test_title(product.title):
                continue
            shown = tuple(
                image
                for image in product.images
                if not image.location.startswith(("images/test/", "images/val/"))
            )
            if shown:
                yield product.model_copy(update={"images": shown})


def make_builtin(
    data: Annotated[Path, typer.Option(help="Folder with fashion/, grocery/ and clothing/.")],
    work: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("runs/builtin"),
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = BUILTIN,
    without: Annotated[str, typer.Option(help="A catalog to leave out, to measure on it.")] = "",
) -> None:
    """Train the builtin encoder, and write it as float16 beside its model card."""
    keep_freed_memory()
    products = list(training_products(data, work, without))
    seed_folder = work / "seed"
    if not (seed_folder / "model.safetensors").exists():
        make_seed_model(seed_folder, seed=CONFIG.seed)
    start = load_folder(seed_folder)
    pictures = read_pairs([products]).pictures
    sample = random.Random(CONFIG.seed).sample(pictures, min(SAMPLE, len(pictures)))
    run = work / "run"
    claim(run)
    features = LockedImages(start, sample, run / "features").features
    start_projection(last_projection(start.model.visual), features)
    run_clip(start, [products], run, CONFIG)
    # The last epoch, not the best: the schedule has come to rest there, and a thousand
    # validation titles cannot tell the epochs before it apart.
    last: ClipEncoder = load_folder(run / "last")
    card = out / "README.md"
    last.save(out, card=card.read_text(encoding="utf-8") if card.exists() else "", half=True)


if __name__ == "__main__":
    typer.run(make_builtin)
