"""The files of a split: the same content gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.esci.groups import Nodes
from benchmarks.esci.manifest import IMAGES, PARTS, PRODUCTS, TEST_PAIRS, PairMode, TrainImages
from benchmarks.esci.scan import Facts
from benchmarks.esci.selection import MAX_AUX, Selection

ROWS = 1 << 16  # of a row group

_PRODUCTS = pa.schema(
    [(name, pa.string()) for name in ("product_id", "title", "brand", "color", "group", "part")]
)
_IMAGES = pa.schema(
    [
        ("product_id", pa.string()),
        ("role", pa.string()),  # main or aux
        ("rank", pa.int32()),  # 0 is the main picture, then 1 to 10
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("phash", pa.string()),  # 16 hex digits
        ("part", pa.string()),
    ]
)
_CATALOG = pa.schema(
    [("id", pa.string()), ("title", pa.string()), ("image", pa.list_(pa.string()))]
)
_PAIRS = pa.schema(
    [
        (name, pa.string())
        for name in ("product_id", "query_path", "query_sha256", "target_path", "target_sha256")
    ]
)
_HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)


@dataclass(frozen=True)
class Parts:
    """The kept products with their pictures, groups and parts, all sorted by product id."""

    table: pa.Table  # columns of Products.table
    group: Nodes  # [n], row of the product that names the group
    part: NDArray[np.int8]  # [n], row of PARTS
    selection: Selection
    names: Any  # paths, which selection.path numbers
    facts: Facts

    @property
    def ids(self) -> Any:
        return self.table.column("product_id").combine_chunks()

    def pictures_of(self, products: Nodes) -> tuple[Nodes, Nodes, Nodes]:
        """All pictures of some products: picture row, place in `products`, rank (0: main)."""
        starts = self.selection.starts
        numbers = starts[products + 1] - starts[products]
        owner = np.repeat(np.arange(len(products)), numbers)
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
        return starts[products][owner] + rank, owner, rank


def write_products(folder: Path, parts: Parts) -> None:
    def tables() -> Iterator[pa.Table]:
        names = pa.array(PARTS)
        for start in range(0, len(parts.table), ROWS):
            rows = slice(start, start + ROWS)
            columns = parts.table.slice(start, ROWS).columns
            group = parts.ids.take(pa.array(parts.group[rows]))
            yield pa.Table.from_arrays(
                [*columns, group, names.take(pa.array(parts.part[rows]))], schema=_PRODUCTS
            )

    _write(folder / PRODUCTS, _PRODUCTS, tables(), ["group", "part", "brand", "color"])


def write_images(folder: Path, parts: Parts) -> None:
    def tables() -> Iterator[pa.Table]:
        ids, roles, names = parts.ids, pa.array(["main", "aux"]), pa.array(PARTS)
        for start in range(0, len(parts.table), ROWS):
            products = np.arange(start, min(start + ROWS, len(parts.table)))
            rows, owner, rank = parts.pictures_of(products)
            path = parts.selection.path[rows]
            columns = [
                ids.take(pa.array(products[owner])),
                roles.take(pa.array((rank > 0).astype(np.int8))),
                pa.array(rank, pa.int32()),
                parts.names.take(pa.array(path)),
                hex_texts(parts.facts.sha256[path]),
                hex_texts(parts.facts.phash[path].astype(">u8").view(np.uint8).reshape(-1, 8)),
                names.take(pa.array(parts.part[products[owner]])),
            ]
            yield pa.Table.from_arrays(columns, schema=_IMAGES)

    _write(folder / IMAGES, _IMAGES, tables(), ["role", "part"])


def write_catalog(path: Path, parts: Parts, part: int, choice: TrainImages) -> int:
    """A catalog of one part with the chosen pictures of each; returns how many pictures."""
    products = np.flatnonzero(parts.part == part)
    least, most = {"main": (0, 0), "aux": (1, MAX_AUX), "all": (0, MAX_AUX), "main+1": (0, 1)}[
        choice
    ]
    written = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal written
        for start in range(0, len(products), ROWS):
            some = products[start : start + ROWS]
            rows, owner, rank = parts.pictures_of(some)
            wanted = (rank >= least) & (rank <= most)
            numbers = np.bincount(owner[wanted], minlength=len(some))
            paths = parts.names.take(pa.array(parts.selection.path[rows[wanted]]))
            offsets = pa.array(np.append(0, np.cumsum(numbers)), pa.int32())
            own = parts.table.select(["product_id", "title"]).take(pa.array(some))
            written += len(paths)
            columns = [*own.columns, pa.ListArray.from_arrays(offsets, paths)]
            yield pa.Table.from_arrays(columns, schema=_CATALOG)

    _write(path, _CATALOG, tables(), [])
    return written


def write_pairs(folder: Path, parts: Parts, mode: PairMode) -> int:
    """Query and target of the test part; returns how many pairs.

    aux_to_main: each auxiliary picture asks for its main one. all_pairs: each two pictures
    of a product once, the later one asking for the earlier, so that it holds the former.
    """
    products = np.flatnonzero(parts.part == PARTS.index("test"))
    written = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal written
        ids = parts.ids
        for start in range(0, len(products), ROWS):
            some = products[start : start + ROWS]
            rows, owner, rank = parts.pictures_of(some)
            targets = rank if mode == "all_pairs" else np.minimum(rank, 1)
            query = np.repeat(np.arange(len(rows)), targets)
            earlier = np.arange(len(query)) - np.repeat(np.cumsum(targets) - targets, targets)
            target = query - rank[query] + earlier
            written += len(query)
            columns = [ids.take(pa.array(some[owner[query]]))]
            for place in (query, target):
                path = parts.selection.path[rows[place]]
                columns += [parts.names.take(pa.array(path)), hex_texts(parts.facts.sha256[path])]
            yield pa.Table.from_arrays(columns, schema=_PAIRS)

    _write(folder / TEST_PAIRS, _PAIRS, tables(), ["product_id"])
    return written


def write_table(path: Path, table: pa.Table) -> None:
    """A table in one go."""
    _write(path, table.schema, [table], ["query", "label"])


def write_facts(path: Path, facts: Facts, names: Any, schema: pa.Schema) -> None:
    _write(path, schema, facts.tables(names, ROWS), ["error"])


def hex_texts(data: NDArray[np.uint8]) -> Any:
    """Bytes, uint8 [n, k], as a pyarrow string array of 2k hex digits each."""
    digits = pa.py_buffer(_HEX[data].tobytes())
    offsets = np.arange(len(data) + 1, dtype=np.int32) * (2 * data.shape[1])
    return pa.StringArray.from_buffers(len(data), pa.py_buffer(offsets.tobytes()), digits)


def _write(
    path: Path, schema: pa.Schema, tables: Iterable[pa.Table], repetitive: list[str]
) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repetitive) as writer:
        for table in tables:
            writer.write_table(table.combine_chunks(), row_group_size=ROWS)
