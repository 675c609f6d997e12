"""Rows of sources joined to products: what counts once, in which order, and URLs as files."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.esci import official
from benchmarks.esci.pictures import Paths, Pictures, collect
from benchmarks.esci.sources import SCHEMA

IDS = pa.array(["A", "B", "C"])
Row = tuple[Any, ...]


def batch(rows: list[Row]) -> pa.RecordBatch:
    table = [dict(zip(SCHEMA.names, row, strict=True)) for row in rows]
    return pa.RecordBatch.from_pylist(table, schema=SCHEMA)


def collected(rows: list[Row], keep_urls: bool = False) -> tuple[Pictures, Paths]:
    return collect([batch(rows)] if rows else [], IDS, keep_urls)


def listed(pictures: Pictures, paths: Paths) -> list[Row]:
    names = paths.names.to_pylist()
    columns = pictures.product.tolist(), pictures.main.tolist(), pictures.path.tolist()
    return [(product, main, names[path]) for product, main, path in zip(*columns, strict=True)]


def test_order_is_product_main_rank_path() -> None:
    rows = [
        ("B", False, 1, "z", None),
        ("A", False, 0, "c", None),
        ("A", True, 5, "d", None),
        ("B", False, 1, "y", None),
        ("B", False, 0, "x", None),
    ]
    found = listed(*collected(rows))
    assert found == [
        (0, True, "d"),
        (0, False, "c"),
        (1, False, "x"),
        (1, False, "y"),
        (1, False, "z"),
    ]


def test_named_twice_is_once_main_if_any_says_so_with_the_lowest_rank() -> None:
    rows = [
        ("A", False, 1, "one", None),
        ("A", False, 4, "two", None),
        ("A", False, 0, "two", None),
        ("A", True, 9, "three", None),
        ("A", False, 3, "three", None),
    ]
    pictures, paths = collected(rows)
    assert listed(pictures, paths) == [(0, True, "three"), (0, False, "two"), (0, False, "one")]
    assert pictures.counts.named == 3
    assert pictures.counts.repeated == 2


def test_each_row_is_counted_once() -> None:
    rows = [
        (None, False, 0, None, None),
        (None, False, 0, "x", None),
        ("X", True, 0, "x", None),
        ("X", True, 0, None, None),
        ("A", True, 0, None, "P"),
        ("A", True, 0, "a", "P"),
        ("A", True, 0, "a", "P"),
    ]
    counts = collected(rows)[0].counts
    assert counts.rows == 7
    assert (counts.unreadable, counts.other_products, counts.without_picture) == (2, 2, 1)
    assert (counts.repeated, counts.named) == (1, 1)


def test_families_stay_even_of_rows_without_a_picture() -> None:
    pictures, _ = collected([("B", True, 0, None, "P"), ("X", True, 0, "x", "Q")])
    assert (pictures.member.tolist(), pictures.family.to_pylist()) == ([1], ["P"])


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("https://m.media-amazon.com/images/I/81Q8KloKI1L._SY385_.jpg", "81Q8KloKI1L._SY385_.jpg"),
        ("http://x.org/a%2Bb.jpg?size=3#top", "a+b.jpg"),
        ("HTTPS://x.org/a/", "a"),
        ("https://x.org/..%2Fb.jpg", "b.jpg"),
        ("https://x.org", ""),
        ("https://[x", "https://[x"),
        ("folder/http://x.jpg", "folder/http://x.jpg"),
    ],
)
def test_a_url_stands_for_the_file_of_its_last_part(url: str, file: str) -> None:
    _, paths = collected([("A", True, 0, url, None)])
    assert paths.names.to_pylist() == [file]
    assert paths.web.tolist() == [url[:4].lower() == "http"]


def test_of_urls_with_one_file_the_first_is_fetched() -> None:
    rows = [
        ("A", True, 0, "https://y.org/a.jpg", None),
        ("B", True, 0, "https://x.org/a.jpg", None),
        ("B", True, 0, "b.jpg", None),
    ]
    pictures, paths = collected(rows, keep_urls=True)
    assert listed(pictures, paths) == [(0, True, "a.jpg"), (1, True, "a.jpg"), (1, True, "b.jpg")]
    assert paths.urls.to_pylist() == ["https://x.org/a.jpg", None]
    assert paths.web.tolist() == [True, False]


def test_no_rows_at_all() -> None:
    for keep_urls in (False, True):
        pictures, paths = collected([], keep_urls)
        assert (len(paths), pictures.counts.named, len(pictures.family)) == (0, 0, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["A", "B", "C", "X", None]),
            st.booleans(),
            st.integers(0, 3),
            st.sampled_from(["a", "b", "https://x.org/c", None]),
            st.none(),
        )
    ),
    st.integers(1, 4),
    st.randoms(),
)
def test_neither_order_nor_batches_matter(rows: list[Row], size: int, rng: random.Random) -> None:
    shuffled = rng.sample(rows, len(rows))
    batches = [batch(shuffled[i : i + size]) for i in range(0, len(rows), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "CHUNK", 3)
        again = collect(batches, IDS, keep_urls=True)
    once = collected(rows, keep_urls=True)
    assert listed(*again) == listed(*once)
    assert again[0].counts == once[0].counts
    assert again[1].urls.to_pylist() == once[1].urls.to_pylist() if len(once[1]) else True
