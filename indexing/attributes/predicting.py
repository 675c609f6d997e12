"""Attributes of the products of a segment: predicted from main picture and title, resumable.

Predictions belong to the bytes of the picture and the title, or to the title alone where that is
all that is read, so products that are as they were are not predicted again, whether it was an
earlier build or a stopped one that did it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from indexing.ahead import ahead
from indexing.attributes.columns import TOP, Column
from indexing.attributes.storing import STALE, write_columns
from indexing.attributes.vocabulary import (
    ABSTAINED,
    Attribute,
    AttributeClassifier,
    Reader,
    mode_of,
)
from indexing.catalog.product import ProductImage
from indexing.embed import Progress, VectorCache, load_pixels
from indexing.errors import ImageError
from indexing.manifest import ATTRIBUTES, IMAGES, PRODUCTS
from indexing.match_record import MODES
from indexing.models.protocol import Pixels
from indexing.near import main_pictures
from indexing.processor import usable_cores
from indexing.store import OpenIndex
from indexing.table import Images, Products

_TOGETHER = 32  # products that are predicted at once
_SHARD = 1024  # products after which what was predicted goes to disk
_NO_CLASS = -2  # of a merchant's own value that the classifier has no class for

Floats = NDArray[np.float32]
Modes = NDArray[np.int8]


@dataclass(frozen=True)
class _Read:
    """What a product is read from."""

    key: bytes  # of its picture and title
    title: str
    picture: ProductImage | None


def add_attributes(
    work: Path,
    classifiers: Sequence[AttributeClassifier],
    folder: Path,
    previous: OpenIndex | None,
    progress: Progress | None = None,
) -> None:
    """Writes the attributes of the products whose tables are in the folder `work` beside them.

    A main picture that cannot be read any more counts as none: its product is read from the
    title. A product with neither has the shares of the values in training.

    Args:
        folder: Where predictions go, for a run that is stopped and goes on.
        previous: An index whose predictions are taken over where they were made by the same
            classifier from the same picture and title.
    """
    products = Products(pq.read_table(work / PRODUCTS))
    images = Images(pq.read_table(work / IMAGES))
    columns: dict[str, Column] = {}
    pictured = main_pictures(images.product, images.main, len(products)) >= 0
    chances: list[Floats] = []
    for classifier in classifiers:
        reads = list(_reads(products, images, classifier))
        cache = _cache(folder, classifier, previous)
        new = [read for read in reads if read.key not in cache]
        failed = _predict(new, classifier, cache, progress)
        chances.append(cache.gather([failed.get(read.key, read.key) for read in reads]))
        pictured &= np.array([read.key not in failed for read in reads], np.bool_)
    titles = products.table["title"].to_pylist()
    modes = np.array(
        [MODES.index(mode_of(has, title)) for has, title in zip(pictured, titles, strict=True)],
        np.int8,
    )
    for classifier, own in zip(classifiers, chances, strict=True):
        given = given_values(products, classifier)
        columns |= columns_of(classifier.attributes, own, modes, given)
    write_columns(work / ATTRIBUTES, columns, modes)


def _cache(
    folder: Path, classifier: AttributeClassifier, previous: OpenIndex | None
) -> VectorCache:
    """What was predicted before by `classifier`: by a stopped run, and in the index `previous`.
    Its vectors are the probabilities of all attributes, one behind the other."""
    sizes = [len(attribute.values) for attribute in classifier.attributes]
    cache = VectorCache(folder / classifier.fingerprint[:16], sum(sizes))
    record = None if previous is None else previous.manifest.attributes
    if previous is None or record is None or classifier.fingerprint not in record.fingerprints:
        return cache
    reads = list(_reads(previous.products, previous.images, classifier))
    # Those that were read from all that they have now. A title is there as it was.
    whole = [
        not classifier.image_size
        or (mode != STALE and MODES[mode] == mode_of(read.picture is not None, read.title))
        for mode, read in zip(previous.modes, reads, strict=True)
    ]
    rows = np.flatnonzero(whole)
    known = [previous.attributes[own.name].predicted(rows) for own in classifier.attributes]
    cache.add_array(
        [reads[row].key for row in rows], np.hstack(known), np.zeros(len(rows), np.uint64)
    )
    return cache


def columns_of(
    attributes: Sequence[Attribute],
    chances: Floats,
    modes: Modes,
    given: dict[str, NDArray[np.int16]],
) -> dict[str, Column]:
    """The columns out of all probabilities, float32 [n, classes of all attributes].

    The first classes and what is sure are decided on probabilities as they are stored, so that
    a product that is not predicted again has the same row.
    """
    found: dict[str, Column] = {}
    start = 0
    for attribute in attributes:
        own = chances[:, start : start + len(attribute.values)].astype(np.float16)
        start += len(attribute.values)
        top = np.argsort(-own, axis=1, kind="stable")[:, :TOP]
        kept = np.take_along_axis(own, top, axis=1)
        said = given[attribute.name]
        filled = np.full(len(own), ABSTAINED, np.int16)
        stored = np.zeros(own.shape, np.float32)
        np.put_along_axis(stored, top, kept.astype(np.float32), axis=1)
        for place, mode in enumerate(MODES):
            rows = np.flatnonzero(modes == place)
            filled[rows] = attribute.decide(stored[rows], mode)
        filled[said != ABSTAINED] = ABSTAINED
        found[attribute.name] = Column(
            attribute,
            top.astype(np.uint16),
            kept,
            np.where(said == _NO_CLASS, ABSTAINED, said).astype(np.int16),
            filled,
        )
    return found


def given_values(
    products: Products, classifier: AttributeClassifier
) -> dict[str, NDArray[np.int16]]:
    """The class of the merchant's own value of each product, int16 [n] for each attribute;
    ABSTAINED where there is none or it means nothing, _NO_CLASS where it is no class."""
    found: dict[str, NDArray[np.int16]] = {}
    names = set(products.names())
    for attribute in classifier.attributes:
        classes: dict[str | None, int] = {v: place for place, v in enumerate(attribute.values)}
        classes[None] = ABSTAINED
        raw = products.column(attribute.name).tolist() if attribute.name in names else []
        known = {
            text: classes.get(classifier.value_of(attribute.name, str(text)), _NO_CLASS)
            for text in set(raw)
            if text
        }
        given = np.full(len(products), ABSTAINED, np.int16)
        if raw:
            given[:] = [known.get(text, ABSTAINED) for text in raw]
        found[attribute.name] = given
    return found


def _reads(products: Products, images: Images, classifier: Reader) -> Iterator[_Read]:
    """What each product is read from."""
    mains = main_pictures(images.product, images.main, len(products))
    if not classifier.image_size:
        mains = np.full(len(products), -1, np.int64)
    for title, row in zip(products.table["title"].to_pylist(), mains.tolist(), strict=True):
        picture = None
        if row >= 0:
            picture = ProductImage(location=images.location(row), path=images.path(row))
        yield _Read(_key(images.sha256[row] if row >= 0 else "", title or ""), title or "", picture)


def _key(picture: str, title: str) -> bytes:
    text = f"{picture}\0{title}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _predict(
    reads: Sequence[_Read],
    classifier: AttributeClassifier,
    cache: VectorCache,
    progress: Progress | None,
) -> dict[bytes, bytes]:
    """Brings the predictions of products into `cache`; gives, for those whose picture cannot
    be read, the key under which what their title says is found."""
    reads = list({read.key: read for read in reads}.values())
    failed: dict[bytes, bytes] = {}
    if progress is not None:
        progress(0, len(reads))
    pool = ThreadPoolExecutor(max(2, usable_cores()), thread_name_prefix="decode")
    try:
        pictures = ahead(pool, lambda read: _pixels(read, classifier), reads, 2 * _TOGETHER)
        for first in range(0, len(reads), _SHARD):
            keys: list[bytes] = []
            parts: list[Floats] = []
            shard = reads[first : first + _SHARD]
            for start in range(0, len(shard), _TOGETHER):
                part = shard[start : start + _TOGETHER]
                loaded = list(islice(pictures, len(part)))
                seen = [n for n, pixels in enumerate(loaded) if pixels is not None]
                unseen = [n for n, pixels in enumerate(loaded) if pixels is None]
                if seen:
                    pixels = np.stack([own for own in loaded if own is not None])
                    parts.append(_joined(classifier, pixels, [part[n].title for n in seen]))
                    keys += [part[n].key for n in seen]
                if unseen:
                    parts.append(_joined(classifier, None, [part[n].title for n in unseen]))
                    alone = {part[n].key: _key("", part[n].title) for n in unseen}
                    failed |= {key: own for key, own in alone.items() if key != own}
                    keys += alone.values()
                if progress is not None:
                    progress(first + start + len(part), len(reads))
            cache.add_shard(keys, np.concatenate(parts), np.zeros(len(keys), np.uint64), {})
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def _pixels(read: _Read, classifier: AttributeClassifier) -> Pixels | None:
    if read.picture is None:
        return None
    try:
        return load_pixels(read.picture, classifier)
    except ImageError:  # it was readable when it was embedded
        return None


def _joined(classifier: AttributeClassifier, pixels: Pixels | None, titles: list[str]) -> Floats:
    """The probabilities of all attributes, float32 [n, classes of all]; the shares of the values
    in training for a product of which the classifier makes no finite numbers."""
    chances = classifier.predict(pixels, titles)
    found = np.hstack([chances[attribute.name] for attribute in classifier.attributes])
    shares = [share for attribute in classifier.attributes for share in attribute.prior]
    found[~np.isfinite(found).all(axis=1)] = shares
    return found
