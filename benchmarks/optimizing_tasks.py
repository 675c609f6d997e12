"""What of a catalog an optimised model is made with and measured on.

Two kinds of queries are asked for the products' main pictures: photos, which are their further
pictures or, where too few have some, phone photos made of the main ones; and titles.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.datasets import as_word, main_picture, title_task, views_tasks
from benchmarks.retrieval.task import Links, Side, Task
from indexing.catalog.product import Product, ProductImage
from indexing.errors import BenchmarkError, ImageError
from indexing.images import read_image
from indexing.match_queries import MAX_EACH, MIN_PRODUCTS, can_be_asked
from indexing.phone import SIDE, phone_photo

EXAMPLES = 256  # pictures and titles that ranges of int8 are taken from
_SCREENED = 8  # a first part of the products, one in so many, tells a bad model


@dataclass(frozen=True)
class Material:
    """What is used of a catalog.

    Attributes:
        shown, titles: to take ranges from.
        asked: products to ask for.
        each: photos of each to ask with.
        photos: a folder for phone photos.
    """

    shown: list[ProductImage]
    titles: list[str]
    asked: list[Product]
    each: int
    photos: Path

    @property
    def first(self) -> list[Product]:
        """A part of those to ask for."""
        return self.asked[: max(MIN_PRODUCTS, len(self.asked) // _SCREENED)]

    def tasks(self, products: list[Product]) -> list[Task]:
        """Photos and titles of these products -> their main pictures.

        Raises:
            BenchmarkError: They have no titles.
        """
        several = [product for product in products if len(product.images) > 1]
        views = None
        if len(several) >= MIN_PRODUCTS:
            with suppress(BenchmarkError):  # they are all the same
                views = views_tasks([_with_views(product, self.each) for product in products])[0]
        self.photos.mkdir(exist_ok=True)
        return [
            views or _photo_task(products, self.each, self.photos),
            title_task(products, name="titles", title="title → main picture"),
        ]


def gather(products: Sequence[Product], queries: int, work: Path) -> Material:
    """Products for about so many queries of each kind, where the catalog has as many, and
    examples of others where there are enough. Phone photos will be written below `work`.

    Raises:
        BenchmarkError: The catalog has too few pictures.
    """
    able = [product for product in products if main_picture(product).path is not None]
    if len(able) < MIN_PRODUCTS:
        raise BenchmarkError(
            f"the catalog has {len(able)} products with a picture file: at least {MIN_PRODUCTS} "
            "are needed to measure what a model loses"
        )
    random.Random(0).shuffle(able)
    asked, others = able[:queries], able[queries:][:EXAMPLES]
    examples = others if len(others) == EXAMPLES else asked[-EXAMPLES:]
    return Material(
        shown=[main_picture(product) for product in examples],
        titles=[product.title for product in examples if can_be_asked(product.title)],
        asked=asked,
        each=max(1, min(MAX_EACH, queries // len(asked))),
        photos=work / "photos",
    )


def _with_views(product: Product, each: int) -> Product:
    """A product with its main picture and `each` others at most."""
    main = main_picture(product)
    others = [image for image in product.images if image is not main]
    return product.model_copy(update={"images": (main, *others[:each])})


def _photo_task(products: Sequence[Product], each: int, photos: Path) -> Task:
    """Phone photos of main pictures -> these pictures."""
    mains = [main_picture(product) for product in products]
    made: list[ProductImage] = []
    owners: list[int] = []
    for number in range(each):
        for owner, picture in enumerate(mains):
            file = photos / f"{owner}-{number}.png"
            with suppress(ImageError):
                if not file.exists():
                    _make_photo(picture, mains, file)
                made.append(ProductImage(location=str(file), path=file, role="additional"))
                owners.append(owner)
    asked = np.array(owners, np.int64)
    ids = [as_word(product.id) for product in products]
    return Task(
        "photos",
        "phone photo, made of the main picture → main picture",
        Side([f"{ids[owner]}/{file.location}" for owner, file in zip(owners, made, strict=True)],
             asked, made),
        Side(ids, np.arange(len(ids)), mains),
        Links.of(np.arange(len(asked)), asked),
        np.ones(len(asked), np.int64),
    )  # fmt: skip


def _make_photo(picture: ProductImage, others: Sequence[ProductImage], file: Path) -> None:
    """Raises ImageError where the picture or what lies behind it cannot be read."""
    rng = random.Random(file.stem)
    behind = rng.choice(others[:MIN_PRODUCTS])
    shown, seen = (read_image(Path(str(one.path)), at_least=SIDE) for one in (picture, behind))
    phone_photo(shown, seen, rng).save(file)
