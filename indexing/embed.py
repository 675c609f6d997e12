"""Pictures to vectors: in catalog order, in one pass, resumable and reproducible.

Threads read, decode and preprocess ahead of the encoder. The work is cut into shards; each
finished one goes to disk at once, so a stop loses at most one. A vector belongs to the
SHA-256 of a picture's bytes: whatever bytes were encoded before, in this build or in the
index that is replaced, are not encoded again. The perceptual hash of the decoded picture goes
with its vector.

What enters a batch is decided in catalog order and never carried over from shard to shard,
so an undisturbed build and a resumed one encode the same batches, bit for bit.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexing.ahead import ahead
from indexing.catalog.product import ProductImage
from indexing.durable import write_atomically
from indexing.errors import ImageError
from indexing.images import decoding, read_bytes
from indexing.messages import reason
from indexing.models.protocol import Encoder, Pixels, embed_batches
from indexing.phash import phash
from indexing.processor import usable_cores

if TYPE_CHECKING:
    from PIL.Image import Image

    from indexing.models.protocol import Vectors

# On a CPU small batches stay in the caches and need little memory: 16 is faster than 64.
BATCH_SIZE = 16
SHARD_SIZE = 1024

Progress = Callable[[int, int], None]
Hashes = NDArray[np.uint64]

_KEY_BYTES = hashlib.sha256().digest_size
# What zipfile and numpy raise on a file with wrong bytes; its checksums find them.
_SHARD_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
_OPEN_SHARDS = 8  # shards kept in memory while vectors are gathered


@dataclass
class Embedded:
    """The outcome for each picture: its key, or the reason why it has none."""

    keys: list[bytes | None] = field(default_factory=list)  # SHA-256 of the picture's bytes
    failures: dict[int, str] = field(default_factory=dict)  # number of the picture -> reason
    unread: list[int] = field(default_factory=list)  # failures whose bytes could not be had
    encoded: int = 0  # pictures that went through the encoder
    reused: int = 0  # pictures whose bytes had been encoded before


class VectorCache:
    """Vectors and perceptual hashes by the SHA-256 of the picture's bytes, and the reasons of
    those that failed.

    Holds the places and the hashes only: the vectors stay in the shards of `folder` and in the
    arrays that were added.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder = folder
        self._dim = dim
        self._places: dict[bytes, tuple[int, int]] = {}  # source, row
        self._sources: list[Path | Vectors] = []
        self._hashes: list[Hashes] = []  # of each source
        self.failures: dict[bytes, str] = {}
        self._load = lru_cache(maxsize=_OPEN_SHARDS)(_read_vectors)
        self._next_shard = 0
        for path in sorted(folder.glob("*.npz")):
            self._next_shard = int(path.stem) + 1
            self._add_shard(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places or key in self.failures

    def add_array(self, keys: Sequence[bytes], vectors: Vectors, hashes: Hashes) -> None:
        """Take vectors from elsewhere, float32 [n, dim], such as those of an older index, and
        the pictures' hashes, uint64 [n]."""
        self._add(keys, vectors, hashes)

    def add_shard(
        self, keys: list[bytes], vectors: Vectors, hashes: Hashes, failures: dict[bytes, str]
    ) -> None:
        """Write a shard; once this returns, a crash does not lose it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._next_shard:06d}.npz"
        arrays: dict[str, NDArray[Any]] = {
            "keys": _to_array(keys),
            "vectors": vectors,
            "hashes": hashes,
            "failed": _to_array(list(failures)),
            "reasons": np.array(list(failures.values()), dtype=np.str_),
        }
        write_atomically(path, lambda temporary: _write_arrays(temporary, arrays))
        self._next_shard += 1
        self._add(keys, path, hashes)
        self.failures.update(failures)

    def gather(self, keys: Sequence[bytes]) -> Vectors:
        """The vectors of known keys, float32 [n, dim]."""
        vectors = np.empty((len(keys), self._dim), np.float32)
        for row, key in enumerate(keys):
            number, place = self._places[key]
            source = self._sources[number]
            vectors[row] = (self._load(source) if isinstance(source, Path) else source)[place]
        return vectors

    def gather_hashes(self, keys: Sequence[bytes]) -> Hashes:
        """The perceptual hashes of known keys, uint64 [n]."""
        places = (self._places[key] for key in keys)
        return np.fromiter((self._hashes[source][row] for source, row in places), np.uint64)

    def _add(self, keys: Sequence[bytes], source: Path | Vectors, hashes: Hashes) -> None:
        number = len(self._sources)
        self._sources.append(source)
        self._hashes.append(hashes)
        for row, key in enumerate(keys):
            self._places.setdefault(key, (number, row))

    def _add_shard(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                keys, failed = _to_keys(arrays["keys"]), _to_keys(arrays["failed"])
                reasons = arrays["reasons"].tolist()
                hashes = arrays["hashes"].astype(np.uint64, casting="safe")
                whole = arrays["vectors"].shape == (len(keys), self._dim)
        except _SHARD_DAMAGE:
            whole = False
        if not whole or len(failed) != len(reasons) or hashes.shape != (len(keys),):
            path.unlink()  # its pictures are encoded again
            return
        self._add(keys, path, hashes)
        self.failures.update(zip(failed, reasons, strict=True))


def embed_pictures(
    pictures: Iterable[ProductImage],
    total: int,
    encoder: Encoder,
    cache: VectorCache,
    *,
    batch_size: int = BATCH_SIZE,
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> Embedded:
    """Bring the vectors of all `pictures` into `cache`.

    A picture that cannot be read, decoded or encoded becomes a failure with its reason.
    `progress` is called with the pictures done and `total`. Memory does not grow with the
    catalog but for the keys.
    """
    if batch_size < 1 or shard_size < 1:
        raise ValueError("batch_size and shard_size must be at least 1")
    result = Embedded()
    pool = ThreadPoolExecutor(max(2, usable_cores()), thread_name_prefix="decode")
    try:
        loaded = ahead(
            pool, lambda picture: _load(picture, encoder, cache), pictures, 2 * batch_size
        )
        if progress is not None:
            loaded = _reported(loaded, total, progress)
        for _ in range(0, total, shard_size):
            _embed_shard(islice(loaded, shard_size), encoder, cache, result, batch_size)
    finally:
        pool.shutdown(cancel_futures=True)
    return result


@dataclass(frozen=True)
class _Loaded:
    """A picture as a thread hands it over; neither pixels nor reason where it was known."""

    key: bytes | None = None
    pixels: Pixels | None = None
    phash: int = 0
    reason: str = ""


def _embed_shard(
    loaded: Iterable[_Loaded],
    encoder: Encoder,
    cache: VectorCache,
    result: Embedded,
    batch_size: int,
) -> None:
    """Encode what is new among the pictures of one shard, and write it to disk."""
    shard = _Shard(loaded, cache, result, batch_size)
    new: dict[bytes, NDArray[np.float32]] = {}
    sent: deque[list[bytes]] = deque()  # the keys of batches that are with the encoder

    def stacked() -> Iterator[Pixels]:
        for batch in shard.batches():
            sent.append(list(batch))
            yield np.stack(list(batch.values()))

    for vectors in embed_batches(encoder, stacked()):
        for sha256, vector in zip(sent.popleft(), vectors, strict=True):
            if np.isfinite(vector).all():
                new[sha256] = vector
            else:
                shard.failures[sha256] = "the encoder gave no finite vector for this picture"
        result.encoded += len(vectors)
    failures = shard.failures
    if new or failures:
        vectors = np.stack(list(new.values())) if new else np.empty((0, encoder.dim), np.float32)
        hashes = np.array([shard.hashes[key] for key in new], np.uint64)
        cache.add_shard(list(new), vectors, hashes, failures)
    result.reused += sum(key not in cache.failures for key in shard.again)
    first = len(result.keys)
    for number, key in enumerate(shard.keys, first):
        if key is not None and key in cache.failures:
            result.failures[number] = cache.failures[key]
    result.keys.extend(key if key not in cache.failures else None for key in shard.keys)


class _Shard:
    """What is known of the pictures of one shard while they come in."""

    def __init__(
        self, loaded: Iterable[_Loaded], cache: VectorCache, result: Embedded, batch_size: int
    ) -> None:
        self._loaded = loaded
        self._cache = cache
        self._result = result
        self._batch_size = batch_size
        self.keys: list[bytes | None] = []  # of all pictures, in order
        self.hashes: dict[bytes, int] = {}  # of those to encode
        self.failures: dict[bytes, str] = {}
        self.again: list[bytes] = []  # keys of those that were or will be encoded anyway

    def batches(self) -> Iterator[dict[bytes, Pixels]]:
        """The pictures to encode, each once, by their keys."""
        waiting: dict[bytes, Pixels] = {}
        first = len(self._result.keys)
        for item in self._loaded:
            self.keys.append(item.key)
            if item.key is None:
                number = first + len(self.keys) - 1
                self._result.failures[number] = item.reason
                self._result.unread.append(number)
            elif item.key in self._cache or item.key in self.hashes:
                self.again.append(item.key)
            elif item.pixels is None:
                self.failures[item.key] = item.reason
            elif item.key not in self.failures:
                waiting[item.key] = item.pixels
                self.hashes[item.key] = item.phash
                if len(waiting) == self._batch_size:
                    yield waiting
                    waiting = {}
        if waiting:
            yield waiting


class Eye(Protocol):
    """The part of an encoder that takes pictures in."""

    @property
    def image_size(self) -> int: ...

    def preprocess(self, picture: Image) -> Pixels: ...


def load_pixels(picture: ProductImage, eye: Eye) -> Pixels:
    """A picture as an encoder takes it. Raises ImageError where it cannot be had."""
    with decoding(_read(picture), at_least=eye.image_size) as decoded:
        return _preprocessed(decoded, eye)


def _load(picture: ProductImage, encoder: Encoder, cache: VectorCache) -> _Loaded:
    try:
        data = _read(picture)
    except ImageError as error:
        return _Loaded(reason=str(error))
    key = hashlib.sha256(data).digest()
    if key in cache:  # saves work only: whether to encode is decided in order, elsewhere
        return _Loaded(key)
    try:
        with decoding(data, at_least=encoder.image_size) as decoded:
            return _Loaded(key, _preprocessed(decoded, encoder), phash(decoded))
    except ImageError as error:
        return _Loaded(key, reason=str(error))


def _preprocessed(picture: Image, encoder: Eye) -> Pixels:
    try:
        return encoder.preprocess(picture)
    except (ValueError, RuntimeError, MemoryError) as error:  # such as a side of 0 once resized
        size = f"{picture.width} x {picture.height} pixels"
        raise ImageError(f"{size}, which the encoder cannot prepare: {reason(error)}") from error


def _read(picture: ProductImage) -> bytes:
    if picture.path is not None:
        return read_bytes(picture.path)
    from indexing.fetch import fetch_image  # most catalogs need no network code

    return fetch_image(picture.location)


def _reported(loaded: Iterator[_Loaded], total: int, progress: Progress) -> Iterator[_Loaded]:
    progress(0, total)
    for done, item in enumerate(loaded, 1):
        progress(done, total)
        yield item


def _read_vectors(path: Path) -> Vectors:
    with np.load(path, allow_pickle=False) as arrays:
        vectors: Vectors = arrays["vectors"]
    return vectors


def _write_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _to_array(keys: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), _KEY_BYTES)


def _to_keys(array: NDArray[np.uint8]) -> list[bytes]:
    if array.dtype != np.uint8 or array.shape[1:] != (_KEY_BYTES,):
        raise ValueError("not an array of keys")
    return [row.tobytes() for row in array]
