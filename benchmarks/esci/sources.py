"""Where pictures of ESCI products come from: five kinds of sources, all read to one table."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.esci.official import BATCH, parquet_batches, reading, typed
from indexing.catalog.drafts import Cells
from indexing.catalog.files import MAX_ROW, lines, open_text
from indexing.catalog.files import reading as reading_text
from indexing.catalog.profiles import amazon_reviews
from indexing.errors import BenchmarkError
from indexing.messages import shown

# One row a picture. No product_id: the row could not be read. No location: the row names no
# picture. No rank: behind those with one. `parent` is the product family, where it is known.
SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("main", pa.bool_()),
        ("rank", pa.int32()),
        ("location", pa.string()),
        ("parent", pa.string()),
    ]
)
NO_RANK = 2**31 - 1
Row = tuple[str | None, bool, int, str | None, str | None]
# Half of ESCI-S's addresses name a part of the server that is gone; without it they answer.
_GONE = re.compile(r"/images/W/[^/]+(?=/images/I/)")

LICENCES = {
    "esci": "Shopping Queries Dataset (Reddy et al. 2022): Apache-2.0",
    "sqid": "Shopping Queries Image Dataset: MIT; its URLs point to pictures that belong to "
    "Amazon and its sellers",
    "esci-s": "ESCI-S: Apache-2.0; its URLs point to pictures that belong to Amazon and its "
    "sellers",
    "amazon-reviews": "Amazon Reviews 2023 (McAuley Lab): terms at amazon-reviews-2023.github.io; "
    "its URLs point to pictures that belong to Amazon and its sellers",
    "abo": "Amazon Berkeley Objects: CC BY 4.0; credit Amazon.com",
    "manifest": "pictures of the user's own manifest: terms unknown",
}


@dataclass(frozen=True)
class Source:
    kind: str
    path: Path

    @property
    def files(self) -> list[Path]:
        """The files that are read."""
        return (
            [*_abo_listings(self.path), _abo_images(self.path)]
            if self.kind == "abo"
            else [self.path]
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Its rows, as SCHEMA says. Raises BenchmarkError for a file that cannot be used."""
        return _READERS[self.kind](self.path)


def parse_source(text: str) -> Source:
    """`KIND:PATH`, or a path whose kind shows by its columns. Raises BenchmarkError."""
    kind, colon, rest = text.partition(":")
    if colon and kind in _READERS:
        path = Path(rest)
    else:
        path, kind = Path(text), ""
    if not path.exists():
        raise BenchmarkError(
            f"--images {text}: no such file; write KIND:PATH with KIND one of {_KINDS}"
        )
    return Source(kind or _recognise(path), path)


def _recognise(path: Path) -> str:
    columns = set() if path.is_dir() else _columns(path)
    if path.is_dir() and _abo_listings(path):
        return "abo"
    for kind, marks in _MARKS.items():
        if marks <= columns:
            return kind
    raise BenchmarkError(
        f"--images {shown(path)}: what it is does not show; write KIND:PATH with KIND one of "
        f"{_KINDS}"
    )


def _columns(path: Path) -> set[str]:
    """The columns of a table, or the fields of the first JSON object."""
    with reading(path):
        if path.suffix == ".parquet":
            return set(pq.read_schema(path).names)
        if ".csv" in path.suffixes:
            return set(_csv_columns(path))
    first = next(_objects(path), None)
    return set(first or ())


def _tables(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Columns of texts, of a Parquet or a CSV file, the latter perhaps compressed.

    A row that cannot be read comes as nulls.
    """
    types = dict.fromkeys(columns, pa.string())
    if path.suffix == ".parquet":
        yield from parquet_batches(path, types)
        return
    names = _csv_columns(path)
    if missing := [name for name in columns if name not in names]:
        raise BenchmarkError(
            f"{shown(path)}: has no column {', '.join(missing)}; it has {', '.join(names)}"
        )
    broken: list[Any] = []
    convert = pyarrow.csv.ConvertOptions(
        check_utf8=False,
        column_types=types,
        include_columns=list(columns),
        strings_can_be_null=True,
        null_values=[""],
    )
    with reading(path), _csv(path, broken, convert) as stream:
        for batch in stream:
            yield typed(path, batch, types)
    yield pa.RecordBatch.from_pylist([{}] * len(broken), schema=pa.schema(list(types.items())))


def _csv_columns(path: Path) -> list[str]:
    with reading(path), _csv(path, [], None) as stream:
        return list(stream.schema.names)


def _csv(path: Path, broken: list[Any], convert: Any) -> Any:
    """A stream of batches; rows of another number of cells go to `broken`."""

    def skip(row: Any) -> str:
        broken.append(row.number)
        return "skip"

    parse = pyarrow.csv.ParseOptions(invalid_row_handler=skip)
    return pyarrow.csv.open_csv(path, parse_options=parse, convert_options=convert)


def _sqid(path: Path) -> Iterator[pa.RecordBatch]:
    """SQID's product_image_urls: the main picture's URL of each product."""
    for batch in _tables(path, ("product_id", "image_url")):
        yield _batch(batch.column("product_id"), True, 0, batch.column("image_url"))


def _manifest(path: Path) -> Iterator[pa.RecordBatch]:
    for batch in _tables(path, ("product_id", "role", "rank", "path")):
        rank = batch.column("rank")
        rank = pc.if_else(pc.match_substring_regex(rank, "^[0-9]{1,9}$"), rank, None)
        yield _batch(
            batch.column("product_id"),
            pc.fill_null(pc.equal(pc.utf8_lower(batch.column("role")), "main"), False),
            pc.fill_null(rank.cast(pa.int32()), NO_RANK),
            batch.column("path"),
        )


def _batch(ids: Any, main: Any, rank: Any, location: Any) -> pa.RecordBatch:
    columns = [ids, main, rank, location, None]
    arrays = [
        column
        if isinstance(column, pa.Array)
        else pa.repeat(pa.scalar(column, field.type), len(ids))
        for column, field in zip(columns, SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _esci_s(path: Path) -> Iterator[pa.RecordBatch]:
    """ESCI-S (github.com/shuttie/esci-s): the main picture is in `image`, of books in `img`."""

    def rows(record: dict[str, Any]) -> Iterator[Row]:
        first = record.get("image") or record.get("img")
        more = record.get("images")
        pictures = [first, *(more if isinstance(more, list) else [])]
        for rank, picture in enumerate(pictures):
            location = _text(picture)
            if rank == 0 or location:
                location = location and _GONE.sub("", location)
                yield _text(record.get("asin")), rank == 0, rank, location, None

    return _from_records(_objects(path), rows)


def _amazon_reviews(path: Path) -> Iterator[pa.RecordBatch]:
    """Amazon-Reviews-2023 metadata; a product is its parent where it has no `asin` of its own."""

    def rows(record: dict[str, Any]) -> Iterator[Row]:
        parent = _text(record.get("parent_asin"))
        product_id = _text(record.get("asin")) or parent
        pictures = amazon_reviews(Cells({"images": record.get("images")}, {})).pictures or []
        for rank, picture in enumerate(pictures):
            yield product_id, picture.main, rank, _text(picture.location), parent
        if not pictures:
            yield product_id, False, 0, None, parent

    if path.suffix != ".parquet":
        return _from_records(_objects(path), rows)
    wanted = {"asin", "parent_asin", "images"} & set(_columns(path))
    batches = parquet_batches(path, dict.fromkeys(sorted(wanted | {"parent_asin", "images"})))
    return _from_records((record for batch in batches for record in batch.to_pylist()), rows)


def _abo(folder: Path) -> Iterator[pa.RecordBatch]:
    """Amazon Berkeley Objects: listings, and images.csv with the path of each picture's id."""
    images = pa.Table.from_batches(_tables(_abo_images(folder), ("image_id", "path")))
    ids, paths = (images.column(name).combine_chunks() for name in ("image_id", "path"))

    def rows(record: dict[str, Any]) -> Iterator[Row]:
        product_id, main = _text(record.get("item_id")), _text(record.get("main_image_id"))
        others = record.get("other_image_id")
        yield product_id, True, 0, main, None
        for rank, image in enumerate(others if isinstance(others, list) else [], 1):
            yield product_id, False, rank, _text(image), None

    for listings in _abo_listings(folder):
        for batch in _from_records(_objects(listings), rows):
            location = paths.take(pc.index_in(batch.column("location"), ids))
            arrays = [*batch.columns[:3], location, batch.column("parent")]
            yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _abo_listings(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("listings_*.json*") if path.is_file())


def _abo_images(folder: Path) -> Path:
    found = sorted(path for path in folder.rglob("images.csv*") if path.is_file())
    if not found or not _abo_listings(folder):
        raise BenchmarkError(
            f"--images abo:{shown(folder)}: the folder must hold listings/metadata/"
            "listings_*.json.gz and images/metadata/images.csv.gz"
        )
    return found[0]


def _from_records(
    records: Iterator[dict[str, Any] | None], rows: Callable[[dict[str, Any]], Iterator[Row]]
) -> Iterator[pa.RecordBatch]:
    unreadable: Row = (None, False, 0, None, None)
    found = (row for record in records for row in (rows(record) if record else [unreadable]))
    while chunk := list(islice(found, BATCH)):
        columns = zip(*chunk, strict=True)
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _objects(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of a JSON Lines file, plain, gzip or zstd; None for a line that is none."""
    with reading_text(path), closing(_text_of(path)) as stream:
        for line in lines(stream):
            if line.isspace():
                continue
            try:
                value = json.loads(line) if len(line) <= MAX_ROW else None
            except (ValueError, RecursionError):
                value = None
            yield value if isinstance(value, dict) else None


def _text_of(path: Path) -> io.TextIOWrapper:
    if path.suffix == ".zst":
        return io.TextIOWrapper(pa.CompressedInputStream(str(path), "zstd"), errors="replace")
    return open_text(path)


def _text(value: Any) -> str | None:
    """A text that can be stored, or nothing."""
    if not isinstance(value, str) or not value.strip():
        return None
    return value.strip().encode("utf-8", "replace").decode()


_READERS: dict[str, Callable[[Path], Iterator[pa.RecordBatch]]] = {
    "manifest": _manifest,
    "sqid": _sqid,
    "esci-s": _esci_s,
    "amazon-reviews": _amazon_reviews,
    "abo": _abo,
}
_KINDS = ", ".join(_READERS)
# Columns or fields that tell the kind, looked for in this order.
_MARKS = {
    "manifest": {"product_id", "path"},
    "sqid": {"product_id", "image_url"},
    "amazon-reviews": {"parent_asin"},
    "esci-s": {"asin", "locale"},
}
