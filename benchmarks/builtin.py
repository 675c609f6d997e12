"""The figures of the `builtin` encoder's card: `python -m benchmarks.builtin --data FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.statistics import cluster_bootstrap
from indexing.catalog import read_catalog
from indexing.catalog.product import ProductImage
from indexing.images import read_image
from indexing.malloc import keep_freed_memory
from indexing.models import Encoder, load_encoder
from indexing.models.clip import ClipEncoder
from training.builtin import TEST_SEED, is_test_title
from training.images import TrunkEncoder
from training.split import normalise_title, position
from training.validation import first_hit_ranks

FASHION_GALLERY = 5000
Ranks = tuple[NDArray[np.float64], NDArray[np.int64]]


def fashion_titles(encoder: Encoder, data: Path) -> Ranks:
    """Title -> picture over 5,000 held-out products; any product of the title is right.

    Returns the rank of the first right answer of each distinct title, and the title's number.
    """
    held_out = [p for p in read_catalog(data / "fashion/catalog.csv") if is_test_title(p.title)]
    held_out.sort(key=lambda product: (position(product.title, TEST_SEED), product.id))
    gallery = held_out[:FASHION_GALLERY]
    numbers: dict[str, int] = {}
    keys = np.array([numbers.setdefault(normalise_title(p.title), len(numbers)) for p in gallery])
    vectors = embed(encoder, [product.images[0] for product in gallery])
    _, first = np.unique(keys, return_index=True)
    queries = encoder.embed_texts([gallery[row].title for row in first])
    return first_hit_ranks(queries, vectors, keys[first], keys), keys[first]


def grocery_photos(encoder: Encoder, data: Path) -> Ranks:
    """Test phone photo -> the 81 iconic pictures; the photo's own product is right.

    Returns the rank of each photo's product, and the product's number.
    """
    photos: list[ProductImage] = []
    owners: list[int] = []
    icons: list[ProductImage] = []
    for number, product in enumerate(read_catalog(data / "grocery/catalog.jsonl")):
        for image in product.images:
            if image.location.startswith("images/iconic"):
                icons.append(image)
            elif image.location.startswith("images/test/"):
                photos.append(image)
                owners.append(number)
    keys = np.array(owners)
    ranks = first_hit_ranks(
        embed(encoder, photos), embed(encoder, icons), keys, np.arange(len(icons))
    )
    return ranks, keys


def embed(encoder: Encoder, images: list[ProductImage]) -> NDArray[np.float32]:
    """Unit vectors of pictures, float32 [n, d]."""
    parts = []
    for start in range(0, len(images), 16):
        pictures = [
            read_image(image.path, at_least=encoder.image_size)
            for image in images[start : start + 16]
            if image.path is not None
        ]
        parts.append(encoder.embed_images(pictures))
    vectors = np.concatenate(parts)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def measure(
    data: Annotated[Path, typer.Option(help="Folder with fashion/ and grocery/.")],
    model: Annotated[str, typer.Option(help="The model to measure.")] = "builtin",
    backbone: Annotated[
        str, typer.Option(help="A model folder whose bare picture tower is measured as well.")
    ] = "",
) -> None:
    """Measure a model on held-out fashion titles and grocery photos, with 95% intervals."""
    keep_freed_memory()
    table = Table("what", "queries", "R@1", "R@5", "R@10")

    def add(name: str, ranks: NDArray[np.float64], clusters: NDArray[np.int64]) -> None:
        hits = [(ranks <= k).astype(np.float64) for k in (1, 5, 10)]
        cells = [str(cluster_bootstrap(hit, clusters)) for hit in hits]
        table.add_row(name, str(len(ranks)), *cells)

    encoder = load_encoder(model)
    add(f"{model}: fashion title -> picture", *fashion_titles(encoder, data))
    add(f"{model}: grocery photo -> iconic", *grocery_photos(encoder, data))
    if backbone:
        start = load_encoder(backbone)
        if isinstance(start, ClipEncoder):
            frozen = TrunkEncoder(start)
            add("untrained: fashion title -> picture", *fashion_titles(start, data))
            add("frozen backbone: grocery photo -> iconic", *grocery_photos(frozen, data))
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(measure)
