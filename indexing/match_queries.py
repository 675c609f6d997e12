"""Queries made from a catalog itself, of which it is known what they look for."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from indexing.ahead import ahead
from indexing.embed import BATCH_SIZE, Progress
from indexing.errors import ImageError, QueryError, ShoplensError
from indexing.images import read_image
from indexing.models.protocol import Encoder, Pixels, embed_batches
from indexing.phone import SIDE, phone_photo
from indexing.processor import usable_cores
from indexing.query_text import check_text
from indexing.segments import VectorRows
from indexing.table import Images
from indexing.titles import normalise_title

MAX_QUERIES = 500  # of one kind
MAX_EACH = 6  # of one product
MIN_PRODUCTS = 50  # below, nothing can be said with any certainty
_SEED = 0

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Titles = Sequence[str | None]  # one a product


class NoQueriesError(Exception):
    """A kind of query cannot be made; the message says why."""


@dataclass(frozen=True)
class Queries:
    """Queries of one kind."""

    how: str  # they were made
    vectors: Floats  # [q, dim], unit
    products: Ints  # [q], what each looks for
    pictures: Ints  # [q], the row of the picture that it is, -1 where it is none of the index


def image_queries(
    images: Images, mains: Ints, vectors: VectorRows, encoder: Encoder, progress: Progress
) -> Queries:
    """Further pictures of products, or phone photos made from main pictures where too few
    products have further ones. Raises NoQueriesError."""
    further = _further_pictures(images, mains)
    if len(further) >= MIN_PRODUCTS:
        rows = np.array(_some_of_each(further), np.int64)
        return Queries("further pictures", vectors[rows], images.product[rows], rows)
    return _crops(images, mains, encoder, progress)


def title_queries(titles: Titles, encoder: Encoder) -> Queries:
    """Titles, each once. Raises NoQueriesError."""
    first: dict[str, int] = {}
    for product, title in enumerate(titles):
        if title is not None and can_be_asked(title):
            first.setdefault(normalise_title(title) or title, product)
    chosen = shuffled(list(first.values()))[:MAX_QUERIES]
    if len(chosen) < MIN_PRODUCTS:
        raise NoQueriesError(f"{len(chosen)} different titles; at least {MIN_PRODUCTS} are needed")
    vectors = embedded(lambda: encoder.embed_texts([titles[product] or "" for product in chosen]))
    products = np.array(chosen, np.int64)
    return Queries("titles", vectors, products, np.full(len(products), -1, np.int64))


def with_titles(queries: Queries, titles: Titles, encoder: Encoder) -> Queries:
    """Picture queries, each together with its product's title. Raises NoQueriesError."""
    kept = np.array([can_be_asked(titles[p] or "") for p in queries.products], np.bool_)
    products = queries.products[kept]
    if len(np.unique(products)) < MIN_PRODUCTS:
        raise NoQueriesError(f"fewer than {MIN_PRODUCTS} products with picture and title")
    words = embedded(lambda: encoder.embed_texts([titles[p] or "" for p in products]))
    both = queries.vectors[kept].astype(np.float64) + words
    lengths = np.linalg.norm(both, axis=1, keepdims=True)
    if lengths.min() < 1e-6:
        raise NoQueriesError("pictures and titles cancel out")
    return Queries(
        f"{queries.how} with titles", (both / lengths).astype(np.float32), products,
        queries.pictures[kept],
    )  # fmt: skip


def _further_pictures(images: Images, mains: Ints) -> dict[int, list[int]]:
    """The pictures of each product besides its main one that are other files than it."""
    further: dict[int, list[int]] = defaultdict(list)
    for row, product in enumerate(images.product.tolist()):
        if images.sha256[row] != images.sha256[mains[product]]:
            further[product].append(row)
    return further


def _some_of_each(rows: dict[int, list[int]]) -> list[int]:
    """Up to MAX_QUERIES of the rows: one of each product, then another of each, and so on."""
    order = shuffled(sorted(rows))
    mixed = {product: shuffled(rows[product]) for product in order}
    rounds = ([p[place] for p in mixed.values() if place < len(p)] for place in range(MAX_EACH))
    return [row for rows_of_round in rounds for row in rows_of_round][:MAX_QUERIES]


def _crops(images: Images, mains: Ints, encoder: Encoder, progress: Progress) -> Queries:
    files = [int(row) for row in mains if row >= 0 and images.path(row) is not None]
    if len(files) < MIN_PRODUCTS:
        raise NoQueriesError(
            f"{len(files)} products with a picture file; at least {MIN_PRODUCTS} are needed"
        )
    each = min(MAX_EACH, -(-MAX_QUERIES // len(files)))
    wanted = [(row, number) for number in range(each) for row in shuffled(files)][:MAX_QUERIES]
    products: list[int] = []

    def made(which: tuple[int, int]) -> list[tuple[int, Pixels]]:
        photos = phone_photos(images, [which], files)
        return [(row, encoder.preprocess(photo)) for row, photo in photos]

    def batches(pool: ThreadPoolExecutor) -> Iterator[Pixels]:
        waiting: list[Pixels] = []
        progress(0, len(wanted))
        for done, found in enumerate(ahead(pool, made, wanted, 2 * BATCH_SIZE), 1):
            for row, pixels in found:
                products.append(int(images.product[row]))
                waiting.append(pixels)
            if len(waiting) == BATCH_SIZE or (waiting and done == len(wanted)):
                yield np.stack(waiting)
                waiting = []
            progress(done, len(wanted))

    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="photo") as pool:
        none = np.zeros((0, encoder.dim), np.float32)
        vectors = embedded(lambda: np.concatenate([none, *embed_batches(encoder, batches(pool))]))
    if len(set(products)) < MIN_PRODUCTS:
        raise NoQueriesError("too few pictures can still be read")
    return Queries(
        "crops", vectors, np.array(products, np.int64), np.full(len(products), -1, np.int64)
    )


def phone_photos(
    images: Images, wanted: Iterable[tuple[int, int]], files: Sequence[int]
) -> Iterator[tuple[int, Image]]:
    """Phone photos made from pictures, each with the row of its picture; without those whose
    files cannot be read any more.

    Args:
        wanted: Rows of pictures, each with the number of the photo of it.
        files: Rows of pictures that may be seen behind.
    """
    for row, number in wanted:
        with suppress(ImageError):  # gone since it was encoded
            rng = random.Random(f"{images.sha256[row]}/{number}")
            shown, behind = (
                read_image(Path(str(images.path(which))), at_least=SIDE)
                for which in (row, rng.choice(files))
            )
            yield row, phone_photo(shown, behind, rng)


def embedded(embed: Callable[[], Floats]) -> Floats:
    """What `embed` gives. Raises NoQueriesError where it fails or gives no finite vectors."""
    try:
        vectors = embed()
    # What an encoder without a text tower raises, or one that a text or picture is too much for.
    except (
        ShoplensError, NotImplementedError, AttributeError, TypeError, ValueError, RuntimeError,
        MemoryError,
    ) as error:  # fmt: skip
        raise NoQueriesError(f"the encoder cannot embed them: {error}") from error
    if not np.isfinite(vectors).all():
        raise NoQueriesError("the encoder gave no finite vectors for them")
    return vectors


def can_be_asked(title: str) -> bool:
    """Whether a search would take it."""
    try:
        check_text("title", title)
    except QueryError:
        return False
    return True


def shuffled(values: Iterable[int]) -> list[int]:
    """The values in an order that depends on their number alone."""
    listed = list(values)
    random.Random(_SEED).shuffle(listed)
    return listed
