"""A split as retrieval tasks: picture -> picture of the test products, and query -> picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.datasets import as_word, between_products
from benchmarks.esci.manifest import IMAGES, PRODUCTS, QUERIES, read_split
from benchmarks.retrieval.task import Ints, Links, Side, Task, matching
from indexing.catalog.locations import ImageRoot
from indexing.catalog.product import ProductImage

# Gains in percent (Reddy et al. 2022): qrels hold whole numbers. The released evaluator of
# ESCI swaps those of S and C in one of its scripts.
GRADES = {"E": 100, "S": 10, "C": 1, "I": 0}


def esci_tasks(folder: Path, images_root: Path) -> list[Task]:
    """The tasks of a split that `shoplens bench esci-split` wrote; a split without queries has
    those by pictures only.

    Raises:
        BenchmarkError: The folder holds no whole split.
    """
    read_split(folder)
    test = [("part", "=", "test")]
    products = pq.read_table(
        folder / PRODUCTS, columns=["product_id", "title", "group"], filters=test
    )
    images = pq.read_table(folder / IMAGES, columns=["product_id", "rank", "path"], filters=test)
    ids = products["product_id"].combine_chunks()
    group = products["group"].combine_chunks().dictionary_encode().indices.to_numpy()
    group = group.astype(np.int64)
    owner = pc.index_in(images["product_id"], ids).to_numpy().astype(np.int64)
    rank = images["rank"].to_numpy()
    root = ImageRoot(images_root)
    names = [as_word(product_id) for product_id in images["product_id"].to_pylist()]
    everything = Side(
        [f"{name}/{place}" for name, place in zip(names, rank.tolist(), strict=True)],
        owner,
        [
            ProductImage(location=path, path=root.locate(path))
            for path in images["path"].to_pylist()
        ],
    )
    gallery = everything.take(np.flatnonzero(rank == 0))
    return [
        _aux_to_main(everything.take(np.flatnonzero(rank > 0)), gallery, group),
        _all_pairs(everything, group),
        *_queries(folder, ids, products["title"].to_pylist(), gallery),
    ]


def _aux_to_main(asked: Side, gallery: Side, group: Ints) -> Task:
    right = matching(asked.products, gallery.products)
    same_group = matching(group[asked.products], group[gallery.products])
    return Task(
        "esci-aux-main", "ESCI, further picture → main picture", asked, gallery, right,
        np.ones(len(right), np.int64),
        duplicates=between_products(same_group, asked.products, gallery.products),
    )  # fmt: skip


def _all_pairs(pictures: Side, group: Ints) -> Task:
    siblings = matching(pictures.products, pictures.products)
    own = siblings.query == siblings.row
    same_group = matching(group[pictures.products], group[pictures.products])
    return Task(
        "esci-all-pairs", "ESCI, picture → each other picture of the product", pictures, pictures,
        Links(siblings.query[~own], siblings.row[~own]), np.ones(int((~own).sum()), np.int64),
        removed=Links(siblings.query[own], siblings.row[own]), trials=True,
        duplicates=between_products(same_group, pictures.products, pictures.products),
    )  # fmt: skip


def _queries(folder: Path, ids: pa.Array, titles: list[str], gallery: Side) -> list[Task]:
    """Shopping queries -> main pictures; E is right, E or S is the lenient figure."""
    judged = pq.read_table(folder / QUERIES).to_pydict()
    if not judged["query_id"]:
        return []
    numbers: dict[int, int] = {}
    texts: list[str] = []
    for query_id, query in zip(judged["query_id"], judged["query"], strict=True):
        if numbers.setdefault(query_id, len(numbers)) == len(texts):
            texts.append(query)
    place = np.full(len(ids), -1)
    place[gallery.products] = np.arange(len(gallery))
    query = np.array([numbers[query_id] for query_id in judged["query_id"]], np.int64)
    row = place[pc.index_in(pa.array(judged["product_id"]), ids).to_numpy()]
    grades = np.array([GRADES[label] for label in judged["label"]], np.int64)
    order = np.lexsort((row, query))
    task = Task(
        "esci-query", "ESCI, shopping query → main picture",
        Side([f"q{query_id}" for query_id in numbers], np.arange(len(texts)), texts=texts),
        Side(gallery.ids, gallery.products, gallery.pictures,
             [titles[product] for product in gallery.products]),
        Links(query[order], row[order]), grades[order], relevant=GRADES["E"], lenient=GRADES["S"],
        note="Products that nobody judged count as wrong, so the figures are lower bounds; "
        "judged nDCG@10 ranks the judged products alone (task 1 of ESCI).",
    )  # fmt: skip
    return [task]
