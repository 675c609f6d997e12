"""The shops and the queries that `python -m benchmarks.answers` measures with."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.datasets import FASHION_GALLERY
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.catalog.product import ProductImage
from indexing.embed import Progress, VectorCache, embed_pictures
from indexing.match_queries import Queries, title_queries
from indexing.models.protocol import Encoder
from indexing.store import OpenIndex, open_index
from indexing.titles import normalise_title, position
from training.builtin import TEST_SEED, is_test_title

_ICONS, _TRAIN, _TEST = "images/iconic", "images/train/", "images/test/"


@dataclass(frozen=True)
class Shop:
    """An index, and queries that had no part in its calibration."""

    name: str
    index: OpenIndex
    queries: Queries


def grocery_shops(data: Path, work: Path, encoder: Encoder, progress: Progress) -> list[Shop]:
    """Phone photos of the test part, asked of the iconic pictures alone and of these together
    with the photos of the training part."""
    source = data / "grocery/catalog.jsonl"
    products = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    photos = [
        (number, ProductImage(location=image["path"], path=source.parent / image["path"]))
        for number, product in enumerate(products)
        for image in product["images"]
        if image["path"].startswith(_TEST)
    ]
    cache = VectorCache(work / "grocery-photos" / encoder.fingerprint[:16], encoder.dim)
    pictures = [picture for _, picture in photos]
    embedded = embed_pictures(pictures, len(pictures), encoder, cache, progress=progress)
    kept = [number for number, key in enumerate(embedded.keys) if key is not None]
    keys = [key for key in embedded.keys if key is not None]
    vectors, owners = cache.gather(keys), np.array([photos[number][0] for number in kept])
    shops = []
    for name, parts in (("icons", (_ICONS,)), ("icons and photos", (_ICONS, _TRAIN))):
        lines = [
            json.dumps({**product, "images": _chosen(product["images"], parts)})
            for product in products
        ]
        path = work / f"grocery-{name.replace(' ', '-')}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        index = _index(path, source.parent, encoder, progress)
        asked = Queries("photos", vectors, owners, np.full(len(owners), -1))
        shops.append(Shop(f"grocery, {name}", index, asked))
    return shops


def fashion_shop(data: Path, work: Path, encoder: Encoder, progress: Progress) -> Shop:
    """5,000 products whose titles `builtin` has not seen, asked for by the titles that had no
    part in the calibration."""
    with (data / "fashion/catalog.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        held_out = [row for row in reader if is_test_title(row["title"])]
        names = reader.fieldnames or ()
    held_out.sort(key=lambda row: (position(row["title"], TEST_SEED), row["id"]))
    path = work / "fashion.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(held_out[:FASHION_GALLERY])
    index = _index(path, data / "fashion", encoder, progress)
    titles = index.products.column("title").tolist()
    used = {normalise_title(titles[p]) for p in title_queries(titles, encoder).products}
    first: dict[str, int] = {}
    for product, title in enumerate(titles):
        if normalise_title(title) not in used:
            first.setdefault(normalise_title(title), product)
    products = np.array(list(first.values()), np.int64)
    vectors = encoder.embed_texts([titles[product] for product in products])
    queries = Queries("titles", vectors, products, np.full(len(products), -1))
    return Shop("fashion, titles", index, queries)


def _chosen(images: Sequence[dict[str, str]], parts: tuple[str, ...]) -> list[dict[str, str]]:
    return [image for image in images if image["path"].startswith(parts)]


def _index(catalog: Path, root: Path, encoder: Encoder, progress: Progress) -> OpenIndex:
    folder = catalog.with_suffix("")
    build_index(read_catalog(catalog, images_root=root), encoder, folder, progress=progress)
    return open_index(folder, encoder=encoder)
