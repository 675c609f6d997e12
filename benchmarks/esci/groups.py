"""Products that must not be torn apart, and which part of the benchmark each group goes to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.esci.manifest import PARTS
from benchmarks.esci.pictures import Pictures
from benchmarks.esci.scan import Facts
from benchmarks.esci.selection import Selection
from indexing.titles import normalise_title

TEST, VALIDATION, TRAIN = (PARTS.index(part) for part in ("test", "validation", "train"))
# The paper's 80,000 test products of 710,000, and our validation set, which it has none of.
TEST_PRODUCTS, VALIDATION_PRODUCTS, ALL_PRODUCTS = 80_000, 5_000, 710_000
_BATCH = 1 << 16
Nodes = NDArray[np.int64]
Edges = tuple[Nodes, Nodes]


def group_products(
    ids: Any, titles: Any, selection: Selection, pictures: Pictures, facts: Facts
) -> Nodes:
    """The group of each kept product, named by the first of its products.

    Two products are in one group where they are of one family, share a picture file that
    was kept, or have the same normalised title, and where a chain of such pairs joins them.

    Args:
        ids, titles: pyarrow string arrays of the kept products, sorted by id.

    Returns:
        int64 [n], for each product the smallest row of its group.
    """
    nodes = np.arange(len(ids))
    of_picture = np.repeat(nodes, np.diff(selection.starts))
    shared = facts.sha256[selection.path, :8].copy().view("<u8").ravel()
    hashes = _hashes(titles, normalise_title)
    named = hashes != _hash("")
    edges = [
        join(of_picture, shared) if len(shared) else (nodes[:0], nodes[:0]),
        join(nodes[named], hashes[named]),
        _families(ids, selection, pictures),
    ]
    a, b = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    return components(len(ids), a, b)


def join(nodes: Nodes, keys: NDArray[Any]) -> Edges:
    """Edges that connect nodes with equal keys: a chain through each."""
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    return nodes[order[:-1][same]], nodes[order[1:][same]]


def components(size: int, a: Nodes, b: Nodes) -> Nodes:
    """Connected components: for each of `size` nodes the smallest node of its component.

    In each round every root that has a smaller neighbour is hung below it, and paths are
    shortened to one step; what is left at least halves, so rounds are few.
    """
    root = np.arange(size)
    while len(a):
        low, high = np.minimum(a, b), np.maximum(a, b)
        np.minimum.at(root, high, low)
        while not np.array_equal(above := root[root], root):
            root = above
        a, b = root[a], root[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return root


def assign(
    ids: Any, root: Nodes, seed: int, test: int | None, validation: int | None
) -> NDArray[np.int8]:
    """The part of each product, a row of PARTS, int8 [n].

    Groups are taken in the order of a hash of the seed and of their first product's id, to
    test until there are `test` products, then to validation, and the rest to train. Whether
    a product is added or removed elsewhere hence changes nothing but the borders. None
    takes the paper's number, or where the products are fewer than the paper's its share.
    """
    test = _quota(TEST_PRODUCTS, len(ids)) if test is None else test
    validation = _quota(VALIDATION_PRODUCTS, len(ids)) if validation is None else validation
    roots, group = np.unique(root, return_inverse=True)
    names = ids.take(pa.array(roots))
    order = np.argsort(_hashes(names, lambda name: f"{seed}:{name}"), kind="stable")
    sizes = np.bincount(group)[order]
    before = np.cumsum(sizes) - sizes
    part = np.full(len(roots), TRAIN, np.int8)
    in_test = before < test
    taken = int(sizes[in_test].sum())
    part[order[before < taken + validation]] = VALIDATION
    part[order[in_test]] = TEST
    return part[group]


def _quota(of_paper: int, products: int) -> int:
    share = max(1, round(products * of_paper / ALL_PRODUCTS))
    return min(of_paper, share)


def _families(ids: Any, selection: Selection, pictures: Pictures) -> Edges:
    place = np.full(int(selection.kept.max(initial=-1)) + 1, -1)
    place[selection.kept] = np.arange(len(ids))
    inside = pictures.member < len(place)
    node = place[pictures.member[inside]]
    family = pictures.family.filter(pa.array(inside)).filter(pa.array(node >= 0))
    # A family is often named by one of its products, which may have no row of its own.
    names = family.unique()
    parent = pc.index_in(names, ids)
    nodes = np.append(node[node >= 0], parent.drop_null().to_numpy())
    keys = np.append(pc.index_in(family, names).to_numpy(), np.flatnonzero(parent.is_valid()))
    return join(nodes.astype(np.int64), keys)


def _hashes(texts: Any, form: Callable[[str], str]) -> NDArray[np.uint64]:
    """64 bits of BLAKE2b of each text in the given form, uint64 [n]."""
    hashes = np.empty(len(texts), np.uint64)
    for start in range(0, len(texts), _BATCH):
        part = texts.slice(start, _BATCH).to_pylist()
        hashes[start : start + len(part)] = [_hash(form(text)) for text in part]
    return hashes


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
