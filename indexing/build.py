"""The main job, from top to bottom: a catalog and an encoder to an index folder."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from indexing.catalog import Catalog, Reject
from indexing.durable import sha256_of
from indexing.embed import (
    BATCH_SIZE,
    SHARD_SIZE,
    Embedded,
    Progress,
    VectorCache,
    embed_pictures,
)
from indexing.errors import CatalogError, IndexFolderError
from indexing.index_types import IndexRecord, Plan, plan_index, write_index
from indexing.messages import printable
from indexing.models.protocol import Encoder
from indexing.spool import ROWS, Spool, spool
from indexing.store import (
    FAISS_INDEX,
    FILES,
    IMAGES,
    PRODUCTS,
    REJECTS,
    SCHEMA_VERSION,
    VECTORS,
    EncoderRecord,
    FileRecord,
    IndexCounts,
    Manifest,
    commit,
    locked_folder,
    next_generation,
    open_index,
    remove_leftovers,
)
from indexing.table import IMAGE_SCHEMA, PRODUCT_SCHEMA

# Above this share of missing pictures, a disk or server is taken to be out of reach.
MAX_MISSING = 0.05

Mask = NDArray[np.bool_]
Planner = Callable[[int, int], Plan]  # of the number of vectors and their length


@dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    folder: Path
    rejects: Path  # JSON lines: every row and picture that could not be used
    counts: IndexCounts
    encoded: int  # pictures that went through the encoder
    reused: int  # pictures whose vectors were there already
    up_to_date: bool  # nothing had changed, and the index was left as it was
    seconds: float
    embed_seconds: float

    @property
    def rate(self) -> float:
        """Pictures encoded per second, reading and decoding included."""
        return self.encoded / self.embed_seconds if self.embed_seconds else 0.0


def build_index(
    catalog: Catalog,
    encoder: Encoder,
    out: Path,
    *,
    batch_size: int = BATCH_SIZE,
    shard_size: int = SHARD_SIZE,
    accept_missing: bool = False,
    plan: Planner = plan_index,
    progress: Progress | None = None,
) -> BuildReport:
    """Build the index of `catalog` in the folder `out`, or bring it up to date.

    Pictures that the folder has vectors of, from the same encoder, are not encoded again;
    so does a build that was stopped go on. The old index serves until the new one is
    complete. A product none of whose pictures can be used becomes a rejected row. `plan`
    chooses the index: first for all pictures of the catalog, before any is encoded, so that
    it can refuse, and then for those that can be used.

    Raises CatalogError where no product is left, and IndexFolderError for a folder that
    holds something else, is being built by another process, or cannot be written. So it
    does where more than MAX_MISSING of the pictures that are in the old index and still in
    the catalog cannot be read or fetched any more, unless `accept_missing`.
    """
    started = time.monotonic()
    with locked_folder(out) as staging, _scratch_folder(staging) as scratch:
        cache = VectorCache(staging / encoder.fingerprint[:16], encoder.dim)
        previous = _add_previous(cache, out, encoder)
        work, tables = scratch / "generation", scratch / "found"
        work.mkdir()
        tables.mkdir()
        with (work / REJECTS).open("w", encoding="utf-8") as rejects:

            def reject(item: Reject) -> None:
                rejects.write(item.to_json() + "\n")

            found = spool(catalog, tables, reject)
            plan(found.images.num_rows, encoder.dim)
            embed_started = time.monotonic()
            embedded = embed_pictures(
                found.pictures(),
                found.images.num_rows,
                encoder,
                cache,
                batch_size=batch_size,
                shard_size=shard_size,
                progress=progress,
            )
            embed_seconds = time.monotonic() - embed_started
            usable = _usable_products(found, embedded)
            for item in _picture_rejects(found, embedded, usable):
                reject(item)
        if previous is not None and embedded.unread and not accept_missing:
            _refuse_missing(out, previous, found, embedded)
        counts = _counts(catalog, embedded, usable)
        if not counts.products:
            (work / REJECTS).replace(out / REJECTS)
            shutil.rmtree(staging)  # without a vector of this catalog
            raise CatalogError(
                f"no usable product: {counts.rows} rows and {counts.images_rejected} pictures "
                f"rejected, see {out / REJECTS}"
            )
        _write_products(work / PRODUCTS, found, usable)
        _write_images(work / IMAGES, found, embedded, usable)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            shoplens_version=_version(),
            created=datetime.now(timezone.utc).replace(microsecond=0),
            generation=next_generation(out),
            encoder=EncoderRecord(
                name=encoder.name, fingerprint=encoder.fingerprint, dim=encoder.dim
            ),
            index=IndexRecord(),
            counts=counts,
            files=_records(work, (PRODUCTS, IMAGES, REJECTS)),
        )
        chosen = plan(counts.images, encoder.dim)
        up_to_date = (
            previous is not None and _same(previous, manifest) and previous.index.follows(chosen)
        )
        if previous is not None and up_to_date:
            manifest = previous
            remove_leftovers(out, manifest.generation)
        else:
            _write_vectors(work / VECTORS, embedded, cache, encoder.dim)
            vectors = np.load(work / VECTORS, mmap_mode="r", allow_pickle=False)
            record = write_index(vectors, work / FAISS_INDEX, chosen)
            manifest = manifest.model_copy(update={"files": _records(work, FILES), "index": record})
            commit(out, work, manifest)
        return BuildReport(
            folder=out,
            rejects=out / manifest.generation / REJECTS,
            counts=counts,
            encoded=embedded.encoded,
            reused=embedded.reused,
            up_to_date=up_to_date,
            seconds=time.monotonic() - started,
            embed_seconds=embed_seconds,
        )


def _add_previous(cache: VectorCache, out: Path, encoder: Encoder) -> Manifest | None:
    """Make the vectors of the index in `out` known; its manifest, or None where there is
    no whole index of this encoder."""
    try:
        previous = open_index(out, encoder=encoder)
    except IndexFolderError:
        return None
    cache.add_array([bytes.fromhex(key) for key in previous.images.sha256], previous.vectors)
    return previous.manifest


@contextmanager
def _scratch_folder(staging: Path) -> Iterator[Path]:
    """A folder for what each run makes anew."""
    folder = staging / "scratch"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_missing(out: Path, previous: Manifest, found: Spool, embedded: Embedded) -> None:
    """Raise IndexFolderError where so many pictures are missing that the old index is the
    better one."""
    old = out / previous.generation
    held = _with_ids(pq.read_table(old / IMAGES), old / PRODUCTS)
    named = _with_ids(found.images, found.products)
    named = named.append_column("number", pa.array(np.arange(len(named))))
    both = named.join(held, ["id", "location"], join_type="left semi")["number"].to_numpy()
    missing = np.intersect1d(both, embedded.unread)
    if len(missing) > MAX_MISSING * len(both):
        raise IndexFolderError(
            f"{len(missing):,} of {len(both):,} pictures of {out} can no longer be read, first "
            f"{embedded.failures[int(missing[0])]}; mount or restore them, or drop them with "
            "--accept-missing; the index is unchanged"
        )


def _with_ids(images: pa.Table, products: Path) -> pa.Table:
    """The location of each picture, and the id of its product."""
    ids = pq.read_table(products, columns=["id"])["id"]
    return pa.table({"id": ids.take(images["product"]), "location": images["location"]})


def _usable_products(found: Spool, embedded: Embedded) -> Mask:
    """bool [products of the catalog]: which have at least one picture with a vector."""
    usable = np.zeros(len(found.product_rows), np.bool_)
    usable[found.images["product"].to_numpy()[_usable_images(embedded)]] = True
    return usable


def _usable_images(embedded: Embedded) -> Mask:
    return np.array([key is not None for key in embedded.keys], np.bool_)


def _picture_rejects(found: Spool, embedded: Embedded, usable: Mask) -> Iterator[Reject]:
    """The pictures that failed, and each product that is left without any."""
    failed: dict[int, list[int]] = defaultdict(list)
    owners = found.images["product"].to_numpy()
    for picture in sorted(embedded.failures):
        failed[int(owners[picture])].append(picture)
    for first, batch in found.product_batches() if failed else ():
        for number in sorted(failed.keys() & range(first, first + batch.num_rows)):
            row, product_id = int(found.product_rows[number]), batch["id"][number - first].as_py()
            for picture in failed[number]:
                location = printable(found.images["location"][picture].as_py())
                reason = embedded.failures[picture]
                yield Reject(row, printable(product_id), "images", location, reason, "image")
            if not usable[number]:
                reason = "none of its pictures can be used"
                yield Reject(row, printable(product_id), "images", "", reason)


def _counts(catalog: Catalog, embedded: Embedded, usable: Mask) -> IndexCounts:
    read = catalog.counts
    dropped = int(np.count_nonzero(~usable))
    return IndexCounts(
        rows=read.rows,
        products=read.products - dropped,
        merged=read.merged,
        rejected=read.rejected + dropped,
        images=len(embedded.keys) - len(embedded.failures),
        images_rejected=read.images_rejected + len(embedded.failures),
        fields_rejected=read.fields_rejected,
    )


def _write_products(path: Path, found: Spool, usable: Mask) -> None:
    with pq.ParquetWriter(path, PRODUCT_SCHEMA) as writer:
        for first, batch in found.product_batches():
            keep = usable[first : first + batch.num_rows]
            writer.write_batch(batch.filter(pa.array(keep)))


def _write_images(path: Path, found: Spool, embedded: Embedded, usable: Mask) -> None:
    images = found.images.filter(pa.array(_usable_images(embedded)))
    new_rows = np.cumsum(usable) - 1  # rows of products move up where some are dropped
    keys = [key.hex() for key in embedded.keys if key is not None]
    columns = {name: images[name] for name in images.column_names}
    columns["product"] = pa.array(new_rows[images["product"].to_numpy()])
    columns["sha256"] = pa.array(keys, pa.string())
    pq.write_table(pa.table(columns, schema=IMAGE_SCHEMA), path)


def _records(work: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    return {
        name: FileRecord(sha256=sha256_of(work / name), bytes=(work / name).stat().st_size)
        for name in names
    }


def _same(previous: Manifest, manifest: Manifest) -> bool:
    """Whether encoder, counts, products, pictures (by the hash of their bytes) and rejects
    are as before; then so are the vectors."""
    return (
        all(previous.files[name] == record for name, record in manifest.files.items())
        and previous.encoder == manifest.encoder
        and previous.counts == manifest.counts
    )


def _write_vectors(path: Path, embedded: Embedded, cache: VectorCache, dim: int) -> None:
    keys = [key for key in embedded.keys if key is not None]
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(keys), dim)}
    # Written as a stream: a full disk would kill the process that writes to a mapped file.
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(keys), ROWS):
            file.write(cache.gather(keys[start : start + ROWS]).tobytes())


def _version() -> str:
    try:
        return version("shoplens")
    except PackageNotFoundError:  # run from its source without being installed
        return "source"
