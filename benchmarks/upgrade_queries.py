"""What a model upgrade is judged by: the user's own queries, or those that a catalog holds."""

from __future__ import annotations

import csv
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from indexing.errors import BenchmarkError
from indexing.messages import printable, shown
from indexing.store import OpenIndex
from indexing.titles import normalise_title

MOST = 1_000  # queries of a catalog's own
_FIELDS = ("query", "image", "product_id")


@dataclass(frozen=True)
class Query:
    """A text or a picture file, and the products that are right.

    `hidden` is a picture's SHA-256 that may not be an answer: the query itself.
    """

    text: str | None
    image: Path | None
    right: frozenset[str]
    hidden: str | None = None


def read_queries(file: Path) -> list[Query]:
    """Queries of a CSV file with the columns product_id and query (a text) or image (a file
    beside it), a row for each right product.

    Of a `.jsonl` file, as `shoplens serve --feedback-file` writes it, those lines count whose
    query is a text alone and whose action is not "bad".

    Raises BenchmarkError for a file that cannot be read or that has other columns, and for
    a row without query or product.
    """
    if file.suffix == ".jsonl":
        return read_feedback(file)
    right: dict[tuple[str, str], set[str]] = defaultdict(set)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            named = set(rows.fieldnames or ())
            if "product_id" not in named or not named & {"query", "image"}:
                raise BenchmarkError(
                    f"{shown(file)} has the columns {', '.join(sorted(named)) or 'none'}: give "
                    "product_id and query, image or both"
                )
            for number, row in enumerate(rows, 2):
                text, image, product = ((row.get(name) or "").strip() for name in _FIELDS)
                if not product or not (text or image):
                    raise BenchmarkError(
                        f"{shown(file)}, line {number} has no query or no product_id: fill it in "
                        "or remove it"
                    )
                right[text, image].add(product)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchmarkError(f"{shown(file)} cannot be read: {error}") from error
    if not right:
        raise BenchmarkError(f"{shown(file)} holds no queries: give a row for each right product")
    return [
        Query(text or None, file.parent / image if image else None, frozenset(products))
        for (text, image), products in right.items()
    ]


def read_feedback(file: Path) -> list[Query]:
    """The texts that people asked with and the products that they took; see `read_queries`."""
    right: dict[str, set[str]] = defaultdict(set)
    number = 0
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                event = json.loads(line)
                query, product = event["query"], event["product_id"]
                alone = not (event.get("image_sha256") or event.get("like") or event.get("minus"))
                if query and alone and event["action"] != "bad":
                    right[query].add(product)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{shown(file)}, line {number} is no feedback of `shoplens serve`: {error}"
        ) from error
    if not right:
        raise BenchmarkError(
            f"{shown(file)} holds no text that somebody found something with: collect more"
        )
    return [Query(text, None, frozenset(products)) for text, products in right.items()]


def own_queries(index: OpenIndex) -> list[Query]:
    """Up to MOST queries that a catalog answers by itself: further pictures of its products,
    each taken out of the answers, or titles where there are no further pictures.

    Raises BenchmarkError where it has neither.
    """
    images, products = index.images, index.products
    mains = set(images.product[images.main].tolist())
    further = [
        Query(None, images.path(row), frozenset([products.id_of(owner)]), images.sha256[row])
        for row, owner in enumerate(images.product.tolist())
        if not images.main[row] and owner in mains and images.path(row) is not None
    ]
    titled: dict[str, set[str]] = defaultdict(set)
    for row, title in enumerate(products.column("title")):
        if title and normalise_title(title):
            titled[normalise_title(title)].add(products.id_of(row))
    found = further or [Query(title, None, frozenset(ids)) for title, ids in titled.items()]
    if not found:
        raise BenchmarkError(
            f"{printable(str(index.folder))} has neither titles nor further pictures to compare "
            "models by: give queries with --qrels"
        )
    return random.Random(0).sample(found, min(MOST, len(found)))
