from __future__ import annotations

import pytest

from indexing.errors import IndexPlanError
from indexing.plan import SMALL, Plan, default_factory, parse_size, plan_index, size_text


def test_small_catalogs_are_exact_and_large_ones_compressed() -> None:
    assert plan_index(SMALL - 1, 512).type == "exact"
    large = plan_index(1_000_000, 512)
    assert (large.type, large.factory) == ("approximate", "PCAR256,IVF256,PQ128x4fs")
    assert large.recall == 0.99
    assert large.bytes_per_vector == 72  # 128 codes of 4 bits, and 8 bytes of number
    assert large.memory == 72_000_000
    assert large.disk == 72_000_000 + 2_048_000_000


@pytest.mark.parametrize(
    ("count", "dim", "factory"),
    [
        (60_000, 256, "PCAR256,IVF64,PQ128x4fs"),
        (60_000, 49, "PCAR48,IVF64,PQ24x4fs"),
        (10_000_000, 768, "PCAR384,IVF1024,PQ192x4fs"),
        (1000, 1024, "PCAR512,IVF8,PQ256x4fs"),
    ],
)
def test_the_compressed_index_suits_count_and_length(count: int, dim: int, factory: str) -> None:
    assert default_factory(count, dim) == factory
    assert Plan.approximate(factory, count, dim).factory == factory


def test_memory_that_is_too_small_for_exact_gives_codes() -> None:
    assert plan_index(40_000, 512).type == "exact"
    assert plan_index(40_000, 512, memory=10**9).type == "exact"
    small = plan_index(1_000_000, 512, recall=0.99, memory=400 * 10**6)
    assert small.type == "approximate"
    assert small.build_memory <= 400 * 10**6


def test_wishes_that_exclude_each_other_name_the_nearest_choice() -> None:
    with pytest.raises(IndexPlanError, match=r"give --recall 0\.999 or --memory 2082MB"):
        plan_index(1_000_000, 512, recall=1, memory=10**9)
    with pytest.raises(IndexPlanError, match=r"50 MB is allowed: give --memory \d+MB$"):
        plan_index(1_000_000, 512, memory=50 * 10**6)
    needed = plan_index(1_000_000, 512).build_memory
    assert plan_index(1_000_000, 512, memory=needed).type == "approximate"
    with pytest.raises(IndexPlanError):
        plan_index(1_000_000, 512, memory=needed - 1)


def test_complete_recall_is_exact_search() -> None:
    assert plan_index(1_000_000, 512, recall=1).type == "exact"
    assert plan_index(1_000_000, 512, recall=0.95).recall == 0.95
    for recall in (0.0, 1.5, -1.0):
        with pytest.raises(IndexPlanError, match="give a share"):
            plan_index(1000, 8, recall=recall)


@pytest.mark.parametrize("factory", ["nonsense", "PQ7", "IDMap,Flat", "LSH", "IVF0x,Flat"])
def test_indexes_that_cannot_serve_are_refused_with_examples(factory: str) -> None:
    with pytest.raises(IndexPlanError, match=f"index '{factory}' .*: try Flat, SQ8"):
        plan_index(1000, 512, factory=factory)


@pytest.mark.parametrize(
    ("factory", "size"),
    [
        ("Flat", 2048),
        ("SQ8", 512),
        ("IVF16,PQ64", 72),
        ("HNSW32", 2048 + 256 + 16),
        ("PQ64x4fs,Refine(SQ8)", 544),
    ],
)
def test_bytes_a_vector_are_those_of_the_codes(factory: str, size: int) -> None:
    assert Plan.approximate(factory, 1000, 512).bytes_per_vector == size


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("512 mb", 512 * 10**6), ("1.5g", 1_500_000_000), ("900", 900)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4 XB", "0", "4,5GB"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(IndexPlanError, match="such as 4GB or 512MB"):
        parse_size(text)


def test_plans_say_what_they_take() -> None:
    assert "exact" in str(Plan.exact(10, 8))
    text = str(plan_index(1_000_000, 512))
    assert "PCAR256,IVF256,PQ128x4fs" in text
    assert "72 bytes a vector, 72 MB in memory" in text
    assert [size_text(size) for size in (5, 7200, 1.3e9, 74e6)] == [
        *("5 B", "7.2 KB", "1.3 GB", "74 MB")
    ]
