"""Catalogs as retrieval tasks: one line of DATASETS each.

`grocery` and `fashion` are read from a folder that holds `grocery/catalog.jsonl` and
`fashion/catalog.csv`; any other catalog becomes a benchmark through its own pictures
(`views_tasks`) or titles (`title_task`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np

from benchmarks.esci.groups import components, join
from benchmarks.retrieval.task import Ints, Links, Side, Task, matching
from indexing.catalog import read_catalog
from indexing.catalog.product import Product, ProductImage
from indexing.durable import sha256_of
from indexing.errors import BenchmarkError
from indexing.messages import shown
from indexing.titles import normalise_title, position
from training.builtin import TEST_SEED, is_test_title

logger = logging.getLogger(__name__)

FASHION_GALLERY = 5000


def fashion(data: Path) -> list[Task]:
    """Title -> picture over 5,000 held-out products; every product of the title is right."""
    held_out = [p for p in read_catalog(data / "fashion/catalog.csv") if is_test_title(p.title)]
    held_out.sort(key=lambda product: (position(product.title, TEST_SEED), product.id))
    return [
        title_task(
            held_out[:FASHION_GALLERY],
            name="fashion-title",
            title="fashion, title → picture",
            note=f"{FASHION_GALLERY:,} products whose titles `builtin` has not seen. Text search "
            "reads category, type, color and usage, as the title is the query itself.",
        )
    ]


def grocery(data: Path) -> list[Task]:
    """Phone photo -> the 81 iconic pictures, and phone photo -> other photos of the product.

    Raises:
        BenchmarkError: The folder holds another catalog.
    """
    photos: list[tuple[int, ProductImage]] = []
    icons: list[tuple[int, ProductImage]] = []
    products = list(read_catalog(data / "grocery/catalog.jsonl"))
    for number, product in enumerate(products):
        for image in product.images:
            if image.location.startswith("images/iconic"):
                icons.append((number, image))
            elif image.location.startswith("images/test/"):
                photos.append((number, image))
    if not photos or [number for number, _ in icons] != list(range(len(products))):
        raise BenchmarkError(
            f"{shown(data / 'grocery')} is not the grocery data set: each product has one picture "
            "in images/iconic there, and photos in images/test"
        )
    owners = np.array([number for number, _ in photos])
    categories = [product.category for product in products]
    asked = Side(
        [as_word(image.location) for _, image in photos],
        owners,
        [image for _, image in photos],
        categories=[categories[number] for number in owners],
    )
    every = np.arange(len(products))
    gallery = Side(
        [as_word(product.id) for product in products],
        every,
        [image for _, image in icons],
        categories=categories,
    )
    same = owners[:, np.newaxis] == owners
    np.fill_diagonal(same, False)
    numbers = np.arange(len(photos))
    return [
        _plain(
            "grocery-photo-icon", "grocery, phone photo → iconic picture", asked, gallery,
            Links(numbers, owners),
        ),
        _plain(
            "grocery-photo-photo", "grocery, phone photo → other photos of the product", asked,
            asked, Links.of(*np.nonzero(same)), removed=Links(numbers, numbers),
            note="All photos of a product were taken on the same shelves.",
        ),
    ]  # fmt: skip


DATASETS: dict[str, Callable[[Path], list[Task]]] = {"fashion": fashion, "grocery": grocery}


def title_task(products: Sequence[Product], *, name: str, title: str, note: str = "") -> Task:
    """Each distinct title once -> the main pictures of all products that carry it.

    The gallery's texts are what the shop says besides the titles, where it says more.

    Raises:
        BenchmarkError: No product has a title.
    """
    products = [product for product in products if normalise_title(product.title)]
    if not products:
        raise BenchmarkError("no product has a title: there is nothing to ask for")
    numbers: dict[str, int] = {}
    keys = np.array([numbers.setdefault(normalise_title(p.title), len(numbers)) for p in products])
    _, first = np.unique(keys, return_index=True)
    rows = np.argsort(keys, kind="stable")
    queries = Side(
        [f"title-{as_word(products[row].id)}" for row in first],
        np.arange(len(first)),
        texts=[products[row].title for row in first],
        categories=[products[row].category for row in first],
    )
    words = [_other_words(product) for product in products]
    gallery = Side(
        [as_word(product.id) for product in products],
        keys,
        [main_picture(product) for product in products],
        words if any(words) else None,
    )
    return _plain(name, title, queries, gallery, Links.of(keys[rows], rows), note=note)


def views_tasks(products: Iterable[Product]) -> list[Task]:
    """A catalog's own pictures as a benchmark: further picture -> the product's main picture,
    and picture -> the product's other pictures.

    Products with one picture are in the gallery and ask nothing. Pictures of the same bytes
    within a product count once, and those that are no files to read are left out, with a
    warning that counts them; products of one title, or that share a picture, are neither
    right nor wrong for each other.

    Raises:
        BenchmarkError: No product has two different pictures that are files.
    """
    ids: list[str] = []
    names: list[str] = []
    categories: list[str] = []
    pictures: list[list[tuple[str, ProductImage]]] = []
    missing = 0
    for product in products:
        own: dict[str, ProductImage] = {}
        for image in sorted(product.images, key=lambda image: image.role != "main"):
            key = _content(image)
            if key is None:
                missing += 1
            else:
                own.setdefault(key, image)
        if own:
            ids.append(as_word(product.id))
            names.append(normalise_title(product.title))
            categories.append(product.category)
            pictures.append(list(own.items()))
    if missing:
        logger.warning("%d pictures are left out: they are no files that can be read", missing)
    if all(len(own) < 2 for own in pictures):
        raise BenchmarkError(
            "no product has two different pictures: --views needs a catalog with several "
            "pictures a product, in files"
        )
    groups = _groups(names, pictures)
    owners = np.repeat(np.arange(len(ids)), [len(own) for own in pictures])
    mains = np.cumsum([0] + [len(own) for own in pictures[:-1]])
    everything = Side(
        [f"{name}/{place}" for name, own in zip(ids, pictures, strict=True)
         for place in range(len(own))],
        owners,
        [image for own in pictures for _, image in own],
        categories=[categories[owner] for owner in owners],
    )  # fmt: skip
    further = np.setdiff1d(np.arange(len(owners)), mains)
    asked, gallery = everything.take(further), everything.take(mains)
    several = np.flatnonzero(np.bincount(owners)[owners] > 1)
    from_several = everything.take(several)
    siblings = matching(owners[several], owners)
    own_row = siblings.row == several[siblings.query]
    return [
        _plain(
            "views-aux-main", "further picture → main picture of the product", asked, gallery,
            Links(np.arange(len(further)), owners[further]),
            duplicates=between_products(
                matching(groups[asked.products], groups), owners[further], None
            ),
        ),
        _plain(
            "views-all-pairs", "picture → each other picture of the product", from_several,
            everything, Links(siblings.query[~own_row], siblings.row[~own_row]),
            removed=Links(siblings.query[own_row], siblings.row[own_row]), trials=True,
            duplicates=between_products(
                matching(groups[owners[several]], groups[owners]), owners[several], owners
            ),
        ),
    ]  # fmt: skip


def main_picture(product: Product) -> ProductImage:
    """The picture that says it is the main one, or else the first."""
    return next((image for image in product.images if image.role == "main"), product.images[0])


def _content(image: ProductImage) -> str | None:
    """Hex SHA-256 of a picture's file, None where there is none to read."""
    with suppress(OSError):
        return None if image.path is None else sha256_of(image.path)
    return None


def _plain(
    name: str,
    title: str,
    queries: Side,
    gallery: Side,
    right: Links,
    *,
    removed: Links | None = None,
    duplicates: Links | None = None,
    trials: bool = False,
    note: str = "",
) -> Task:
    """A task whose judged answers are all right."""
    return Task(
        name, title, queries, gallery, right, np.ones(len(right), np.int64),
        removed=removed or Links(), duplicates=duplicates or Links(), trials=trials, note=note,
    )  # fmt: skip


def _groups(names: list[str], pictures: list[list[tuple[str, ProductImage]]]) -> Ints:
    """The first product of each product's group: those of one title or with a shared picture."""
    products = np.arange(len(names))
    titled = np.array([bool(name) for name in names])
    owners = np.repeat(products, [len(own) for own in pictures])
    hashes = np.array([key for own in pictures for key, _ in own])
    edges = [join(owners, hashes), join(products[titled], np.array(names)[titled])]
    a, b = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    return components(len(names), a, b)


def between_products(links: Links, asked: Ints, offered: Ints | None) -> Links:
    """The links between different products; `offered` None: row i is product i."""
    other = asked[links.query] != (links.row if offered is None else offered[links.row])
    return Links(links.query[other], links.row[other])


def _other_words(product: Product) -> str:
    """What the shop says of a product besides its title."""
    parts = [product.category, product.brand, product.description, *product.attributes.values()]
    return " ".join(part for part in parts if part)


def as_word(text: str) -> str:
    """An id as one word, as TREC files need it."""
    return quote(text, safe="/:+,=@~!$&'()*;", encoding="utf-8", errors="surrogateescape")
