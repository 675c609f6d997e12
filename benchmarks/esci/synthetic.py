"""Made-up products and queries of the lengths and the columns of the official files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.esci.official import EXAMPLE_COLUMNS, PRODUCT_COLUMNS
from benchmarks.esci.planted import CASES, OTHER_LOCALES, other_products
from indexing.rendering import COLOURS, KINDS, PATTERNS

ROWS = 1 << 16
JUDGED = 20  # products a query, 20.06 on average in the official file
_DIGITS = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "S1")
_SYLLABLES = ("ba", "ro", "ti", "mel", "sun", "dex", "ver", "lo", "qui", "nar", "pex", "o")
_FILLERS = pa.array([a + b + c for a in _SYLLABLES for b in _SYLLABLES for c in ("", *_SYLLABLES)])
_BLANK_TITLES = (None, "", "  ")
_KINDS, _COLOURS = list(KINDS), list(COLOURS)


def examples_schema() -> pa.Schema:
    """The official schema: nine columns and the index and note that pandas adds."""
    kinds = {pa.int64(): ("int64", "int64"), pa.string(): ("unicode", "object")}

    def column(name: str | None, field_name: str | None, kind: Any) -> dict[str, Any]:
        pandas_type, numpy_type = kinds[kind]
        return {
            "name": name,
            "field_name": field_name,
            "pandas_type": pandas_type,
            "numpy_type": numpy_type,
            "metadata": None,
        }

    index = "__index_level_0__"
    pandas = {
        "index_columns": [index],
        "column_indexes": [column(None, None, pa.string()) | {"metadata": {"encoding": "UTF-8"}}],
        "columns": [column(name, name, kind) for name, kind in EXAMPLE_COLUMNS.items()]
        + [column(None, index, pa.int64())],
        "creator": {"library": "pyarrow", "version": "9.0.0"},
        "pandas_version": "1.5.1",
    }
    fields = [*EXAMPLE_COLUMNS.items(), (index, pa.int64())]
    return pa.schema(fields, metadata={"pandas": json.dumps(pandas)})


@dataclass(frozen=True)
class Looks:
    """What each product looks like, by which it is drawn and named: rows of KINDS and so on."""

    kind: NDArray[np.int64]
    colour: NDArray[np.int64]
    second: NDArray[np.int64]
    pattern: NDArray[np.int64]

    @classmethod
    def of(cls, products: int, seed: int) -> Looks:
        rng = np.random.default_rng([seed, 0])
        colour = rng.integers(len(_COLOURS), size=products)
        return cls(
            kind=rng.integers(len(_KINDS), size=products),
            colour=colour,
            second=(colour + rng.integers(1, len(_COLOURS), size=products)) % len(_COLOURS),
            pattern=rng.integers(len(PATTERNS), size=products),
        )


def product_ids(numbers: NDArray[np.int64]) -> Any:
    """Ten characters like an ASIN; neighbouring numbers are far apart in their order."""
    scattered = numbers.astype(np.uint64) * np.uint64(1_181_783_497_277) % np.uint64(36**8)
    powers = np.uint64(36) ** np.arange(8, dtype=np.uint64)[::-1]
    letters = _DIGITS[(scattered[:, None] // powers) % np.uint64(36)]
    text = np.char.add(b"B0", np.ascontiguousarray(letters).view("S8").ravel())
    return pa.array(text.astype("U10"))


def write_products(path: Path, looks: Looks, seed: int) -> None:
    """The products file: those of locale us, then those of others, some with the same ids."""
    products = len(looks.kind)
    schema = pa.schema(list(PRODUCT_COLUMNS.items()))
    rng = np.random.default_rng([seed, 1])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, products + other_products(products), ROWS):
            numbers = np.arange(start, min(start + ROWS, products + other_products(products)))
            own = numbers < products
            # Each tenth product of another locale is one of ours, too.
            again = ~own & (numbers % 10 == 0)
            ids = product_ids(np.where(again, numbers - products, numbers))
            locales = pa.array(OTHER_LOCALES).take(pa.array(numbers % len(OTHER_LOCALES)))
            texts = _texts(rng, len(numbers), 0, 190), _texts(rng, len(numbers), 20, 180)
            columns = [
                ids,
                _titles(looks, numbers % products, numbers, seed),
                pc.if_else(pa.array(rng.random(len(numbers)) < 0.5), None, texts[0]),
                texts[1],
                pc.utf8_capitalize(_FILLERS.take(pa.array(numbers % len(_FILLERS)))),
                pa.array(_COLOURS).take(pa.array(looks.colour[numbers % products])),
                pc.if_else(pa.array(own), "us", locales),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _texts(rng: np.random.Generator, rows: int, least: int, most: int) -> Any:
    """Random words, `least` to `most` a row."""
    lengths = rng.integers(least, most, size=rows)
    words = _FILLERS.take(pa.array(rng.integers(len(_FILLERS), size=int(lengths.sum()))))
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    return pc.binary_join(pa.ListArray.from_arrays(offsets, words), " ")


def _titles(looks: Looks, rows: NDArray[np.int64], numbers: NDArray[np.int64], seed: int) -> Any:
    """About 100 characters: what is to be seen, words, and a number that no other one has."""
    case = numbers % len(CASES)
    again = np.isin(case, [i for i, planted in enumerate(CASES) if planted.same_title])
    shown = np.where(again, rows - 1, rows)
    named = np.where(again, numbers - 1, numbers)
    words = [
        pa.array(_COLOURS).take(pa.array(looks.colour[shown])),
        pa.array(PATTERNS).take(pa.array(looks.pattern[shown])),
        pa.array(_COLOURS).take(pa.array(looks.second[shown])),
        pa.array(_KINDS).take(pa.array(looks.kind[shown])),
    ]
    # Words by the number alone, so that a product's partner has the same.
    for place in range(14):
        mixed = (named * 2_654_435_761 + place * 40_503 + seed) % 1_000_003
        word = _FILLERS.take(pa.array(mixed % len(_FILLERS)))
        words.append(pc.if_else(pa.array(mixed % 10 < 9 - place // 2), word, None))
    words.append(pa.array(named).cast(pa.string()))
    titles = pc.binary_join_element_wise(*words, " ", null_handling="skip")
    titles = pc.if_else(
        pa.array(again), pc.binary_join_element_wise(pc.utf8_upper(titles), "!", " "), titles
    )
    bare = np.isin(case, [i for i, planted in enumerate(CASES) if not planted.titled])
    blank = pa.array(_BLANK_TITLES).take(pa.array(numbers // len(CASES) % len(_BLANK_TITLES)))
    return pc.if_else(pa.array(bare), blank, titles)


def write_examples(path: Path, looks: Looks, seed: int) -> None:
    """The examples file: a query for each twelve products with 20 judgments each.

    Each fourth query is of the test split, and of these each fifth is the query before it
    in capitals, which is of the train split.
    """
    schema = examples_schema()
    written = 0
    with pq.ParquetWriter(path, schema) as writer:
        for table in _examples(looks, seed):
            index = pa.array(np.arange(written, written + len(table)))
            table = table.append_column("__index_level_0__", index)
            writer.write_table(table.set_column(0, "example_id", index).cast(schema))
            written += len(table)


def _examples(looks: Looks, seed: int) -> Iterator[pa.Table]:
    products = len(looks.kind)
    rng = np.random.default_rng([seed, 2])
    own = max(40, products // 12)
    judged = min(JUDGED, products)
    for start in range(0, own + own // 3, ROWS // JUDGED):
        query = np.arange(start, min(start + ROWS // JUDGED, own + own // 3))
        test = query % 4 == 3
        leaked = test & (query // 4 % 5 == 0)
        first = rng.integers(products, size=len(query))
        text = _query_texts(looks, np.where(leaked, query - 1, query))
        text = pc.if_else(pa.array(leaked), pc.utf8_upper(text), text)
        rows = np.repeat(np.arange(len(query)), judged)
        product = (first[rows] + np.tile(np.arange(judged), len(query))) % products
        other = query[rows] >= own
        locales = pa.array(OTHER_LOCALES).take(pa.array(query[rows] % len(OTHER_LOCALES)))
        labels = rng.choice(4, size=len(rows), p=[0.65, 0.22, 0.03, 0.10])
        yield pa.table(
            {
                "example_id": query[rows],
                "query": text.take(pa.array(rows)),
                "query_id": query[rows],
                "product_id": product_ids(np.where(other, products + product // 2, product)),
                "product_locale": pc.if_else(pa.array(other), locales, "us"),
                "esci_label": pa.array(list("ESCI")).take(pa.array(labels)),
                "small_version": (query[rows] // 4 % 3 == 0).astype(np.int64),
                "large_version": np.ones(len(rows), np.int64),
                "split": pc.if_else(pa.array(test[rows]), "test", "train"),
            }
        )


def _query_texts(looks: Looks, query: NDArray[np.int64]) -> Any:
    rows = query % len(looks.kind)
    return pc.binary_join_element_wise(
        pa.array(_COLOURS).take(pa.array(looks.colour[rows])),
        pa.array(_KINDS).take(pa.array(looks.kind[rows])),
        pa.array(query).cast(pa.string()),
        " ",
    )
