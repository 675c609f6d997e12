"""The pictures that the sources name for the products, each once, as columns of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.esci.manifest import PictureCounts
from benchmarks.esci.official import in_chunks
from benchmarks.esci.sources import SCHEMA


@dataclass(frozen=True)
class Paths:
    """Distinct picture paths in their order, below the images root."""

    names: Any  # pyarrow string array [n]
    web: NDArray[np.bool_]  # [n], named by a URL
    urls: Any  # pyarrow string array [n] or None: a URL to fetch it from

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Pictures:
    """Distinct (product, path) rows, sorted by product, main before others, rank and path."""

    product: NDArray[np.int32]  # [n], row of Products
    main: NDArray[np.bool_]  # [n]
    path: NDArray[np.int32]  # [n], row of Paths
    counts: PictureCounts
    # Product families: element i says that product `member[i]` is of family `family[i]`.
    member: NDArray[np.int32]
    family: Any  # pyarrow string array


@dataclass
class _Rows:
    """What of the sources belongs to the products, chunk by chunk."""

    product: list[NDArray[np.int32]] = field(default_factory=list)
    main: list[NDArray[np.bool_]] = field(default_factory=list)
    rank: list[NDArray[np.int32]] = field(default_factory=list)
    path: list[Any] = field(default_factory=list)
    url: list[Any] = field(default_factory=list)
    member: list[NDArray[np.int32]] = field(default_factory=list)
    family: list[Any] = field(default_factory=list)
    read: int = 0
    unreadable: int = 0
    other: int = 0
    empty: int = 0


def collect(batches: Iterable[pa.RecordBatch], ids: Any, keep_urls: bool) -> tuple[Pictures, Paths]:
    """Join the rows of sources (`sources.SCHEMA`) to products.

    A URL stands for the file that downloaders leave: the last part of its path. A picture
    that is named twice is a main one if any row says so, and has the lowest of its ranks.

    Args:
        batches: The rows of all sources, in any order.
        ids: Product ids, sorted.
        keep_urls: Whether URLs are to be fetched; else only whether it was one is kept.
    """
    rows = _Rows()
    for chunk in in_chunks(batches, SCHEMA):
        _join(chunk, ids, keep_urls, rows)
    paths, code = _distinct(rows)
    product = np.concatenate([np.empty(0, np.int32), *rows.product])
    main = np.concatenate([np.empty(0, bool), *rows.main])
    rank = np.concatenate([np.empty(0, np.int32), *rows.rank])
    order = np.lexsort((code, product))
    product, main, rank, code = product[order], main[order], rank[order], code[order]
    first = np.ones(len(product), bool)
    first[1:] = (product[1:] != product[:-1]) | (code[1:] != code[:-1])
    starts = np.flatnonzero(first)
    if len(starts) < len(product):
        main = np.logical_or.reduceat(main, starts)
        rank = np.minimum.reduceat(rank, starts)
        product, code = product[starts], code[starts]
    order = np.lexsort((code, rank, ~main, product))
    named = len(product)
    counts = PictureCounts(
        rows=rows.read,
        unreadable=rows.unreadable,
        other_products=rows.other,
        without_picture=rows.empty,
        repeated=rows.read - rows.unreadable - rows.other - rows.empty - named,
        named=named,
    )
    member = np.concatenate([np.empty(0, np.int32), *rows.member])
    family = pa.chunked_array(rows.family, pa.string()).combine_chunks()
    return Pictures(product[order], main[order], code[order], counts, member, family), paths


def _join(chunk: pa.Table, ids: Any, keep_urls: bool, rows: _Rows) -> None:
    rows.read += len(chunk)
    rows.unreadable += chunk.column("product_id").null_count
    product = pc.index_in(chunk.column("product_id"), ids).combine_chunks()
    rows.other += product.null_count - chunk.column("product_id").null_count
    chunk = chunk.append_column("product", product).filter(product.is_valid())
    family = chunk.filter(chunk.column("parent").is_valid())
    if len(family):
        rows.member.append(_numbers(family.column("product")))
        rows.family.append(family.column("parent").combine_chunks())
    rows.empty += chunk.column("location").null_count
    chunk = chunk.filter(chunk.column("location").is_valid())
    location = chunk.column("location").combine_chunks()
    web = pc.match_substring_regex(location, "^https?://", ignore_case=True)
    names = pa.array(map(_last_part, location.filter(web).to_pylist()), pa.string())
    rows.product.append(_numbers(chunk.column("product")))
    rows.main.append(chunk.column("main").to_numpy())
    rows.rank.append(_numbers(chunk.column("rank")))
    rows.path.append(pc.replace_with_mask(location, web, names))
    rows.url.append(pc.if_else(web, location, None) if keep_urls else web)


def _numbers(column: Any) -> NDArray[np.int32]:
    numbers: NDArray[np.int32] = column.to_numpy().astype(np.int32)
    return numbers


def _last_part(url: str) -> str:
    try:
        return PurePosixPath(unquote(urlsplit(url).path)).name
    except ValueError:  # no valid URL; as a path it is refused with the reason
        return url


def _distinct(rows: _Rows) -> tuple[Paths, NDArray[np.int32]]:
    """The distinct paths in order, and for each row the number of its path."""
    encoded = pa.chunked_array(rows.path, pa.string()).dictionary_encode()
    rows.path.clear()
    encoded = encoded.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # pyarrow leaves one of no chunks as it is
        encoded = pa.array([], pa.dictionary(pa.int32(), pa.string()))
    order = pc.sort_indices(encoded.dictionary)
    names = encoded.dictionary.take(order)
    place = np.empty(len(names), np.int32)
    place[order.to_numpy()] = np.arange(len(names), dtype=np.int32)
    code = place[encoded.indices.to_numpy()]
    web = np.zeros(len(names), bool)
    url = pa.chunked_array(rows.url) if rows.url else pa.chunked_array([], pa.bool_())
    rows.url.clear()
    if url.type == pa.bool_():
        web[code[url.to_numpy()]] = True
        return Paths(names, web, None), code
    fetched = url.is_valid().to_numpy()
    table = pa.table({"code": code[fetched], "url": url.drop_null()})
    table = table.take(pc.sort_indices(table, [("code", "ascending"), ("url", "ascending")]))
    of_url, first = np.unique(table.column("code").to_numpy(), return_index=True)
    web[of_url] = True
    chosen = np.full(len(names), -1)
    chosen[of_url] = first
    wanted = pa.array(chosen, mask=chosen < 0)
    urls = table.column("url").combine_chunks().take(wanted)
    return Paths(names, web, urls), code
