"""The index folder: what is in it, how it is committed, and how it is opened.

    DIR/manifest.json     names the generation that holds; replacing it is the commit
    DIR/v000001/          one generation: products, pictures, vectors, FAISS index, rejects
    DIR/.staging/         work of an unfinished build, removed when it is committed
    DIR/.shoplens.lock    held by the one process that builds

Nothing in a committed generation is ever written again. A reader sees the old index or
the new one, and every byte is checked before a library parses it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from indexing.durable import LOCK, flush, replace_bytes, sha256_of
from indexing.errors import IndexCorruptError, IndexFolderError, IndexMismatchError
from indexing.index_types import IndexRecord, read_index
from indexing.models.protocol import Encoder
from indexing.table import Images, Products
from indexing.vectors import VectorIndex

SCHEMA_VERSION = 1

MANIFEST = "manifest.json"
STAGING = ".staging"
REJECTS = "rejects.jsonl"
PRODUCTS = "products.parquet"
IMAGES = "images.parquet"
VECTORS = "vectors.npy"
FAISS_INDEX = "index.faiss"
FILES = (PRODUCTS, IMAGES, VECTORS, FAISS_INDEX, REJECTS)

_GENERATION = r"^v[0-9]{6}$"
_GENERATIONS = "v[0-9][0-9][0-9][0-9][0-9][0-9]"
_OPEN_ATTEMPTS = 3

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderRecord(_Strict):
    """The encoder that made the vectors."""

    name: str
    fingerprint: str
    dim: Annotated[int, Field(ge=1)]


class IndexCounts(_Strict):
    """rows == products + merged + rejected; images is the number of vectors."""

    rows: Count
    products: Count
    merged: Count
    rejected: Count
    images: Count
    images_rejected: Count
    fields_rejected: Count = 0


class FileRecord(_Strict):
    sha256: Sha256
    bytes: Count


class Manifest(_Strict):
    """What an index is and what its files must hash to."""

    schema_version: int
    shoplens_version: str
    created: datetime
    generation: Annotated[str, StringConstraints(pattern=_GENERATION)]
    encoder: EncoderRecord
    index: IndexRecord
    counts: IndexCounts
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class OpenIndex:
    """An index whose files were checked. Element i of `images` belongs to vector i."""

    folder: Path
    manifest: Manifest
    products: Products
    images: Images
    vectors: NDArray[np.float32]  # [n, dim], mapped read-only
    index: VectorIndex


def open_index(folder: Path, *, encoder: Encoder | None = None) -> OpenIndex:
    """Open an index after checking every file of it.

    Raises IndexFolderError where there is no index, IndexCorruptError where a file is
    missing or differs from the manifest, and IndexMismatchError for another schema
    version or, when `encoder` is given, for the vectors of another encoder.
    """
    for _ in range(_OPEN_ATTEMPTS):
        manifest = read_manifest(folder)
        if encoder is not None:
            check_encoder(folder, manifest, encoder)
        try:
            return _open_generation(folder, manifest)
        except IndexCorruptError:
            # A build that was committed meanwhile takes the files of the old one away.
            if read_manifest(folder).generation == manifest.generation:
                raise
    raise IndexFolderError(f"{folder} is rebuilt faster than it can be opened: try again")


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of an index folder; raises as `open_index` does."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise IndexFolderError(_why_no_index(folder)) from None
    except OSError as error:
        raise IndexFolderError(f"{path} cannot be read: {error.strerror}") from error
    return parse_manifest(data, folder)


def parse_manifest(data: bytes, folder: Path) -> Manifest:
    """The manifest of `folder` from its bytes, checked; raises as `open_index` does."""
    damaged = IndexCorruptError(f"{folder / MANIFEST} is damaged: {_REBUILD}")
    try:
        content = json.loads(data)
        version = content["schema_version"]
        checksum = content.pop("sha256", None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if not isinstance(version, int):
        raise damaged
    if version != SCHEMA_VERSION:
        newer = "update shoplens, or " if version > SCHEMA_VERSION else ""
        raise IndexMismatchError(
            f"{folder} has index schema {version} and this shoplens reads schema "
            f"{SCHEMA_VERSION}: {newer}{_REBUILD}"
        )
    # Written again it must give the same bytes, so no change of any kind goes unseen.
    if checksum != _checksum(content) or data != _render(content):
        raise damaged
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError:
        raise damaged from None
    if set(manifest.files) != set(FILES):
        raise damaged
    return manifest


_REBUILD = "rebuild it with `shoplens index CATALOG --out DIR`"


def _why_no_index(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist: make it with `shoplens index CATALOG --out {folder}`"
    if not folder.is_dir():
        return f"{folder} is not a folder: give the folder that `shoplens index` wrote"
    if (folder / STAGING).is_dir():
        return (
            f"{folder} holds an unfinished build: run the same `shoplens index` command "
            "again to go on with it"
        )
    if (folder / REJECTS).exists():
        return f"{folder} holds no index, as no product could be used: see {folder / REJECTS}"
    return f"{folder} is not an index (it has no {MANIFEST}): give the folder of `shoplens index`"


def check_encoder(folder: Path, manifest: Manifest, encoder: Encoder) -> None:
    """Raise IndexMismatchError where the index of `folder` was made by another encoder."""
    made_by = manifest.encoder
    if made_by.fingerprint == encoder.fingerprint and made_by.dim == encoder.dim:
        return
    # Of the same name, it has changed since, and only a rebuild helps.
    other = "" if made_by.name == encoder.name else f"search with --model {made_by.name} or "
    raise IndexMismatchError(
        f"{folder} was made by encoder {made_by.name} (fingerprint {made_by.fingerprint[:12]}), "
        f"this is {encoder.name} (fingerprint {encoder.fingerprint[:12]}): {other}{_REBUILD}"
    )


def _open_generation(folder: Path, manifest: Manifest) -> OpenIndex:
    generation = folder / manifest.generation
    for name, record in manifest.files.items():
        _check_file(generation / name, record)
    vectors: NDArray[np.float32]
    try:
        products = Products(pq.read_table(generation / PRODUCTS))
        images = Images.from_table(pq.read_table(generation / IMAGES))
        vectors = np.load(generation / VECTORS, mmap_mode="r", allow_pickle=False)
        index = read_index(generation / FAISS_INDEX, vectors, manifest.index)
    except FileNotFoundError as error:  # taken away since it was checked
        raise IndexCorruptError(f"{generation} misses a file ({error}): {_REBUILD}") from error
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise IndexCorruptError(f"{generation} cannot be read ({error}): {_REBUILD}") from error
    counts, dim = manifest.counts, manifest.encoder.dim
    if (
        len(products) != counts.products
        or not (len(images) == index.ntotal == counts.images)
        or vectors.shape != (counts.images, dim)
        or index.dim != dim
    ):
        raise IndexCorruptError(
            f"{generation} disagrees with its manifest: {len(products)} products, {len(images)} "
            f"pictures, vectors {vectors.shape}, index of {index.ntotal}; {_REBUILD}"
        )
    return OpenIndex(folder, manifest, products, images, vectors, index)


def _check_file(path: Path, record: FileRecord) -> None:
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise IndexCorruptError(
                f"{path} has {size} bytes and must have {record.bytes}: {_REBUILD}"
            )
        if sha256_of(path) != record.sha256:
            raise IndexCorruptError(
                f"{path} is damaged (its SHA-256 is not the one in the manifest): {_REBUILD}"
            )
    except FileNotFoundError:
        raise IndexCorruptError(f"{path} is missing: {_REBUILD}") from None
    except OSError as error:
        raise IndexFolderError(f"{path} cannot be read: {error.strerror}") from error


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _render(content: dict[str, Any]) -> bytes:
    signed = {**content, "sha256": _checksum(content)}
    return (json.dumps(signed, indent=2, ensure_ascii=False) + "\n").encode()


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Create or enter an index folder as its only builder; gives its staging folder.

    A build that leaves nothing to go on with leaves no trace of its own either.
    Raises IndexFolderError for a folder that holds something else, that cannot be
    written, or that another process is building.
    """
    new = not folder.exists()
    try:
        _refuse_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise IndexFolderError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        _take(lock, folder)
        try:
            staging = folder / STAGING
            staging.mkdir(exist_ok=True)
            yield staging
        finally:
            _remove_unused(folder, new)
    except OSError as error:
        raise IndexFolderError(
            f"{folder} cannot be built: {error}; what it held is unchanged, and the same "
            "command goes on"
        ) from error
    finally:
        os.close(lock)  # which also unlocks


def _take(lock: int, folder: Path) -> None:
    busy = f"{folder} is being built by another process: wait for it or stop it"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise IndexFolderError(busy) from None
    if not os.fstat(lock).st_nlink:  # the other one has just removed it
        raise IndexFolderError(busy)


def _remove_unused(folder: Path, new: bool) -> None:
    """Remove the staging folder if it holds no file, then the lock if it is alone, and then
    the folder if it was `new`."""
    staging = folder / STAGING
    for path in (*staging.glob("*"), staging):
        with suppress(OSError):
            path.rmdir()
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            if new:
                folder.rmdir()


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise IndexFolderError(f"{folder} is not a folder: choose another --out")
    ours = (folder / LOCK).exists() or (folder / STAGING).is_dir()
    if ours or not any(folder.iterdir()):
        return
    try:
        read_manifest(folder)
    except IndexMismatchError:
        return
    except IndexFolderError:
        raise IndexFolderError(
            f"{folder} holds other files and is no index: choose another --out or empty it"
        ) from None


def next_generation(folder: Path) -> str:
    """The name for the generation after the committed one."""
    last = 0
    if (folder / MANIFEST).exists():
        try:
            last = int(read_manifest(folder).generation[1:])
        except IndexFolderError:  # of another schema, or damaged: stay clear of its files
            last = max((int(old.name[1:]) for old in folder.glob(_GENERATIONS)), default=0)
    return f"v{last + 1:06d}"


def commit(folder: Path, prepared: Path, manifest: Manifest) -> None:
    """Make the files of `prepared` the index of `folder`, all at once.

    Call it inside `locked_folder`. Before the manifest is replaced the old index holds,
    afterwards the new one; then older generations and the staging folder go away.
    """
    for name in FILES:
        flush(prepared / name)
    flush(prepared)
    generation = folder / manifest.generation
    if generation.exists():  # left by a build that died before its commit
        shutil.rmtree(generation)
    prepared.rename(generation)
    flush(folder)
    content = manifest.model_dump(mode="json")
    replace_bytes(folder / MANIFEST, _render(content))
    remove_leftovers(folder, manifest.generation)


def remove_leftovers(folder: Path, generation: str) -> None:
    """Remove all that is not the committed index; readers keep what they have mapped."""
    for old in folder.glob(_GENERATIONS):
        if old.name != generation:
            shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    (folder / REJECTS).unlink(missing_ok=True)
