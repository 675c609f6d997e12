"""Groups against plain union-find, and parts that only a border can move."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.esci.groups import (
    TEST,
    TRAIN,
    VALIDATION,
    assign,
    components,
    group_products,
    join,
)
from benchmarks.esci.manifest import PictureCounts
from benchmarks.esci.pictures import Pictures
from benchmarks.esci.scan import Facts
from benchmarks.esci.selection import Selection

SIZE = 30
EDGES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)))


def plain_components(size: int, edges: list[tuple[int, int]]) -> list[int]:
    parent = list(range(size))

    def find(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for a, b in edges:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    return [find(node) for node in range(size)]


@given(EDGES)
def test_components_are_those_of_union_find(edges: list[tuple[int, int]]) -> None:
    a, b = (np.array([edge[side] for edge in edges], np.int64) for side in (0, 1))
    assert components(SIZE, a, b).tolist() == plain_components(SIZE, edges)


def test_a_long_chain_in_any_order_is_one_component() -> None:
    order = np.random.default_rng(0).permutation(5000)
    assert set(components(5000, order[:-1], order[1:]).tolist()) == {0}


@given(st.lists(st.integers(0, 5)))
def test_join_connects_equal_keys_and_no_others(keys: list[int]) -> None:
    nodes = np.arange(len(keys))
    a, b = join(nodes, np.array(keys, np.int64))
    root = components(len(keys), a, b).tolist()
    assert root == [keys.index(key) for key in keys]


def grouped(
    ids: list[str],
    titles: list[str],
    files: list[list[int]] | None = None,
    families: list[tuple[int, str]] | None = None,
) -> list[int]:
    """Groups of products with the files of these numbers."""
    files = files or [[2 * i, 2 * i + 1] for i in range(len(ids))]
    flat = [file for own in files for file in own]
    facts = Facts(len(flat))
    for row, file in enumerate(flat):
        facts.sha256[row] = np.frombuffer(hashlib.sha256(bytes([file])).digest(), np.uint8)
    counts = PictureCounts(
        rows=0, unreadable=0, other_products=0, without_picture=0, repeated=0, named=0
    )
    rows = np.arange(len(ids), dtype=np.int32)
    starts = np.cumsum([0, *map(len, files)])
    product = np.repeat(rows, np.diff(starts)).astype(np.int32)
    path = np.arange(len(flat), dtype=np.int32)
    selection = Selection(product, path, rows, starts, 0, 0, counts)
    member = np.array([row for row, _ in families or []], np.int32)
    family = pa.array([name for _, name in families or []], pa.string())
    pictures = Pictures(product, path == 0, path, counts, member, family)
    return group_products(pa.array(ids), pa.array(titles), selection, pictures, facts).tolist()


def test_titles_join_whatever_their_case_and_punctuation() -> None:
    assert grouped(list("abcd"), ["Red Mug", "blue", "red  mug!", "Blue mug"]) == [0, 1, 0, 3]


def test_titles_without_a_letter_join_nothing() -> None:
    assert grouped(list("abc"), ["!!!", "???", "!!!"]) == [0, 1, 2]


def test_a_file_in_common_joins_and_so_does_a_chain() -> None:
    files = [[1, 2], [3, 4], [5, 2], [4, 5], [6, 7]]
    assert grouped(list("abcde"), list("vwxyz"), files) == [0, 0, 0, 0, 4]


def test_families_join_and_a_product_can_give_its_name() -> None:
    families = [(0, "P"), (2, "P"), (3, "b"), (4, "elsewhere")]
    assert grouped(list("abcde"), list("vwxyz"), None, families) == [0, 1, 0, 1, 4]


IDS = [f"P{number:04d}" for number in range(400)]


def parts(
    ids: list[str], root: list[int], seed: int = 0, test: int = 90, val: int = 30
) -> list[int]:
    return assign(pa.array(ids), np.array(root), seed, test, val).tolist()


def sizes(found: list[int]) -> list[int]:
    return [found.count(part) for part in (TEST, VALIDATION, TRAIN)]


def test_single_products_fill_the_quotas_exactly() -> None:
    assert sizes(parts(IDS, list(range(400)))) == [90, 30, 280]


@given(st.lists(st.integers(0, 20), min_size=60, max_size=60), st.integers(0, 3))
def test_a_group_is_in_one_part_and_quotas_are_passed_by_one_group(
    groups: list[int], seed: int
) -> None:
    root = [groups.index(group) for group in groups]
    found = parts(IDS[:60], root, seed, test=20, val=10)
    for group in set(root):
        assert len({part for part, own in zip(found, root, strict=True) if own == group}) == 1
    largest = max(map(root.count, root))
    test, validation, _ = sizes(found)
    assert 20 <= test < 20 + largest
    assert min(10, 60 - test) <= validation < 10 + largest


def test_groups_go_in_the_order_of_their_hash() -> None:
    found = parts(IDS, list(range(400)), seed=7)
    hashes = [hashlib.blake2b(f"7:{name}".encode(), digest_size=8).digest() for name in IDS]
    order = sorted(range(400), key=hashes.__getitem__)
    assert [found[row] for row in order] == [TEST] * 90 + [VALIDATION] * 30 + [TRAIN] * 280


def test_another_seed_draws_others_and_the_same_seed_the_same() -> None:
    alone = list(range(400))
    assert parts(IDS, alone, seed=1) == parts(IDS, alone, seed=1)
    assert parts(IDS, alone, seed=1) != parts(IDS, alone, seed=2)


@pytest.mark.parametrize("new", ["A", "P0199x", "Z"])
def test_one_product_more_moves_only_what_is_at_the_borders(new: str) -> None:
    before = dict(zip(IDS, parts(IDS, list(range(400))), strict=True))
    ids = sorted([*IDS, new])
    after = dict(zip(ids, parts(ids, list(range(401))), strict=True))
    moved = [(before[name], after[name]) for name in IDS if before[name] != after[name]]
    assert len(moved) <= 2
    assert set(moved) <= {(TEST, VALIDATION), (VALIDATION, TRAIN)}


@pytest.mark.parametrize(
    ("products", "expected"),
    [(711_000, [80_000, 5_000]), (71_000, [8_000, 500]), (3, [1, 1])],
)
def test_by_default_the_paper_s_number_or_its_share(products: int, expected: list[int]) -> None:
    ids = pa.array(np.char.mod("%07d", np.arange(products)))
    found = assign(ids, np.arange(products), 0, None, None)
    assert [int((found == part).sum()) for part in (TEST, VALIDATION)] == expected
