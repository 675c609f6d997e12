"""What is known of each picture file: its hashes and its size, or why it cannot be used.

Threads read and decode; every 1,024 pictures what was found goes to a shard on disk, so a
stopped scan goes on where it was. What is missing or cannot be fetched is never kept: it may
be there the next time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.esci.official import in_chunks, parquet_batches, reading
from benchmarks.esci.pictures import Paths
from indexing.catalog.locations import ImageRoot, LocationError
from indexing.durable import replace_bytes, write_atomically
from indexing.errors import BenchmarkError, FetchError, ImageError
from indexing.fetch import fetch_image
from indexing.images import decoding, read_bytes
from indexing.messages import one_line, reason, shown
from indexing.phash import phash
from indexing.processor import usable_cores

if TYPE_CHECKING:
    from indexing.embed import Progress

SHARD = 1024
_NOT_FETCHED = "a URL whose file is not under the images root; --allow-urls fetches it"
_ROOT = b"images_root"  # of a shard's metadata: its paths begin there
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.binary(32)),
        ("phash", pa.uint64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("error", pa.string()),  # null: a sound picture, and all the others are there
    ]
)


class Fact(NamedTuple):
    """What was found at one path. `lasting`: the same file will give it again."""

    sha256: bytes | None = None  # None where `error` says why the picture cannot be used
    phash: int = 0
    width: int = 0
    height: int = 0
    error: str | None = None
    lasting: bool = True


def digest_bytes(digests: Any) -> NDArray[np.uint8]:
    """The bytes of a binary(32) column without nulls, uint8 [n, 32]."""
    data = np.frombuffer(digests.buffers()[1] or b"", np.uint8)
    return data[32 * digests.offset : 32 * (digests.offset + len(digests))].reshape(-1, 32)


class Facts:
    """Facts of n paths; element i belongs to path i.

    `reason` is 0 for a sound picture, else a row of `reasons`; `missing` says that there is
    no file to look at. sha256 is uint8 [n, 32]; width and height are pixels.
    """

    def __init__(self, size: int) -> None:
        self.sha256 = np.zeros((size, 32), np.uint8)
        self.phash = np.zeros(size, np.uint64)
        self.width = np.zeros(size, np.int32)
        self.height = np.zeros(size, np.int32)
        self.known = np.zeros(size, bool)
        self.missing = np.zeros(size, bool)
        self.reason = np.zeros(size, np.int32)
        self.reasons = [""]
        self._codes = {"": 0}

    def put(self, row: int, fact: Fact) -> None:
        """Take what was found at one path."""
        self.known[row] = True
        self.missing[row] = not fact.lasting
        self.reason[row] = self._code(fact.error or "")
        if fact.sha256 is not None:
            self.sha256[row] = np.frombuffer(fact.sha256, np.uint8)
            self.phash[row] = fact.phash
            self.width[row] = fact.width
            self.height[row] = fact.height

    def put_table(self, table: pa.Table, names: Any) -> None:
        """Take facts of SCHEMA for those of `names` that they name.

        Rows that are not whole are passed over.
        """
        table = table.append_column("row", pc.index_in(table.column("path"), names))
        table = table.filter(table.column("row").is_valid())
        broken = table.filter(table.column("error").is_valid())
        rows = broken.column("row").to_numpy()
        self.known[rows] = True
        self.reason[rows] = [self._code(error) for error in broken.column("error").to_pylist()]
        sound = table.filter(table.column("error").is_null()).drop_columns(["error"]).drop_null()
        rows = sound.column("row").to_numpy()
        self.known[rows] = True
        digests = sound.column("sha256").combine_chunks()
        self.sha256[rows] = digest_bytes(digests)
        for name in ("phash", "width", "height"):
            getattr(self, name)[rows] = sound.column(name).to_numpy()

    def _code(self, text: str) -> int:
        code = self._codes.setdefault(text, len(self.reasons))
        if code == len(self.reasons):
            self.reasons.append(text)
        return code

    def tables(self, names: Any, rows: int) -> Iterator[pa.Table]:
        """The facts of the files that were there, as SCHEMA has them, `rows` at a time."""
        there = np.flatnonzero(self.known & ~self.missing)
        reasons = pa.array([None, *self.reasons[1:]], pa.string())
        for start in range(0, len(there), rows):
            part = there[start : start + rows]
            broken = self.reason[part] > 0
            digests = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(32), len(part), [None, pa.py_buffer(self.sha256[part].tobytes())]
            )
            columns = [
                names.take(pa.array(part)),
                pc.if_else(pa.array(broken), None, digests),
                *(pa.array(values[part], mask=broken) for values in self._numbers()),
                reasons.take(pa.array(self.reason[part])),
            ]
            yield pa.Table.from_arrays(columns, schema=SCHEMA)

    def _numbers(self) -> Sequence[NDArray[Any]]:
        return self.phash, self.width, self.height


def scan(
    paths: Paths,
    root: ImageRoot,
    shards: Path,
    facts_file: Path | None = None,
    progress: Progress | None = None,
) -> Facts:
    """Facts of all paths: from an earlier scan's file, from shards, and from the pictures.

    Args:
        paths: Paths to look at; their URLs, where they have some, are fetched into the
            images root where the file is not there.
        root: Where the paths begin.
        shards: Folder for what a stopped scan has found.
        facts_file: A Parquet file of SCHEMA, taken on trust for the paths that it names.

    Raises BenchmarkError for a facts file that cannot be used.
    """
    facts = Facts(len(paths))
    if facts_file is not None:
        types = dict(zip(SCHEMA.names, SCHEMA.types, strict=True))
        for table in in_chunks(parquet_batches(facts_file, types), SCHEMA):
            facts.put_table(table, paths.names)
    number = 0
    for shard in sorted(shards.glob("*.parquet")):
        number = int(shard.stem) + 1
        with reading(shard):
            table = pq.read_table(shard)
        if (table.schema.metadata or {}).get(_ROOT) == os.fsencode(root.folder):
            facts.put_table(table, paths.names)
    todo = np.flatnonzero(~facts.known)
    if not len(todo):
        return facts
    if not root.folder.is_dir():
        raise BenchmarkError(f"--images-root {shown(root.folder)}: no such folder")
    shards.mkdir(parents=True, exist_ok=True)
    schema = SCHEMA.with_metadata({_ROOT: os.fsencode(root.folder)})
    pool = ThreadPoolExecutor(usable_cores())
    done = 0
    if progress is not None:
        progress(done, len(todo))
    try:
        for start in range(0, len(todo), SHARD):
            part = todo[start : start + SHARD]
            names = paths.names.take(pa.array(part)).to_pylist()
            web = paths.web[part].tolist()
            urls = paths.urls.take(pa.array(part)).to_pylist() if paths.urls else [None] * len(part)
            lasting = []
            looks = pool.map(partial(_look, root), names, web, urls)
            for row, name, fact in zip(part, names, looks, strict=True):
                facts.put(row, fact)
                if fact.lasting:
                    lasting.append({"path": name, **fact._asdict()})
                done += 1
                if progress is not None:
                    progress(done, len(todo))
            if lasting:
                table = pa.Table.from_pylist(lasting, schema=schema)
                write_atomically(shards / f"{number:08d}.parquet", partial(pq.write_table, table))
                number += 1
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return facts


def _look(root: ImageRoot, name: str, web: bool, url: str | None) -> Fact:
    """The facts of one file, which may be fetched."""
    try:
        file = root.locate(name)
    except LocationError as error:
        return Fact(error=f"refused: {error}", lasting=False)
    if file is None:  # a URL, and ImageRoot was told to allow them
        return Fact(error="refused: not a path", lasting=False)
    try:
        if os.path.lexists(file):
            data = read_bytes(file)
        elif url:
            data = fetch_image(url)
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(file, data)
        elif web:
            return Fact(error=_NOT_FETCHED, lasting=False)
        else:
            return Fact(error="no such file under the images root", lasting=False)
    except FetchError as error:
        return Fact(error=reason(error).removeprefix(f"{url}: "), lasting=False)
    except (ImageError, OSError) as error:
        return Fact(error=reason(error).removeprefix(f"{shown(file)}: "), lasting=False)
    return examine(data)


def examine(data: bytes) -> Fact:
    """The facts of a picture file's bytes."""
    try:
        with decoding(data) as picture:
            width, height = picture.size
            return Fact(hashlib.sha256(data).digest(), phash(picture), width, height)
    except ImageError as error:
        return Fact(error=one_line(str(error)))
