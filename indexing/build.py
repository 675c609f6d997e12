"""The main job, from top to bottom: a catalog and an encoder to an index folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from indexing.attributes.opening import check_apart
from indexing.attributes.predicting import add_attributes
from indexing.attributes.vocabulary import AttributeClassifier
from indexing.catalog import Catalog
from indexing.catalog_vectors import (
    CatalogVectors,
    add_known,
    count,
    read_catalog_vectors,
    scratch_folder,
)
from indexing.committing import (
    commit,
    file_records,
    locked_folder,
    next_segment,
    next_version,
    remove_unneeded,
)
from indexing.embed import BATCH_SIZE, SHARD_SIZE, Progress, VectorCache
from indexing.errors import CatalogError, IndexFolderError
from indexing.index_types import Plan, plan_index
from indexing.manifest import (
    IMAGES,
    PRODUCTS,
    REJECTS,
    REMOVED,
    EncoderRecord,
    IndexCounts,
    SegmentRecord,
)
from indexing.models.protocol import Encoder
from indexing.segment_files import (
    calibrated,
    fitted,
    keys_of,
    title_vectors,
    write_tables,
    write_vectors,
)
from indexing.store import OpenIndex, open_index

Planner = Callable[[int, int], Plan]  # of the number of vectors and their length

# Above this share of missing pictures, a disk or server is taken to be out of reach.
MAX_MISSING = 0.05
_TABLES = (PRODUCTS, IMAGES, REMOVED, REJECTS)


@dataclass(frozen=True)
class BuildReport:
    """What a build or an update did."""

    folder: Path
    rejects: Path  # JSON lines: every row and picture that could not be used
    counts: IndexCounts  # of the catalog's rows
    images: int  # that the index holds now
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
    classifiers: Sequence[AttributeClassifier] = (),
    match: bool = True,
    progress: Progress | None = None,
) -> BuildReport:
    """Build the index of `catalog` in the folder `out`, or make it anew.

    Pictures that the folder has vectors of, from the same encoder, are not encoded again;
    so does a build that was stopped go on. The old version serves until the new one is
    complete. A product none of whose pictures can be used becomes a rejected row. `plan`
    chooses the index: first for all pictures of the catalog, before any is encoded, so that
    it can refuse, and then for those that can be used. `classifiers` fill in the attributes of
    products, see indexing/attributes; without any the index has none. Last, unless `match` is
    false, the index is asked for what it has and for what was taken out of it, which calibrates
    `no good match` (see indexing/match_fit.py); `progress` begins anew where that encodes pictures.

    Raises CatalogError where no product is left, ModelError where two classifiers read the same
    attribute, and IndexFolderError for a folder that
    holds something else, is being written by another process, or cannot be written. So it
    does where more than MAX_MISSING of the pictures that are in the old version and still in
    the catalog cannot be read or fetched any more, unless `accept_missing`.
    """
    started = time.monotonic()
    check_apart(classifiers)
    with locked_folder(out, "build") as staging, scratch_folder(staging) as scratch:
        cache = VectorCache(staging / encoder.fingerprint[:16], encoder.dim)
        previous = add_known(cache, out, encoder)
        work = scratch / "segment"
        work.mkdir()
        read = read_catalog_vectors(
            catalog,
            encoder,
            cache,
            scratch,
            work / REJECTS,
            batch_size=batch_size,
            shard_size=shard_size,
            progress=progress,
            on_found=lambda pictures: plan(pictures, encoder.dim),
        )
        if previous is not None and read.embedded.unread and not accept_missing:
            _refuse_missing(previous, read)
        counts = count(catalog, read, read.usable)
        if not counts.products:
            (work / REJECTS).replace(out / REJECTS)
            shutil.rmtree(staging)  # without a vector of this catalog
            raise CatalogError(
                f"no usable product: {counts.rows} rows and {counts.images_rejected} pictures "
                f"rejected, see {out / REJECTS}"
            )
        write_tables(work, read, cache, read.usable)
        record = EncoderRecord.of(encoder)
        chosen = plan(counts.images, encoder.dim)
        up_to_date = (
            previous is not None
            and previous.manifest.encoder == record
            and _same(previous, work, counts)
            and previous.manifest.segments[0].index.follows(chosen)
            and _filled_by(previous) == tuple(own.fingerprint for own in classifiers)
            and (previous.manifest.match is not None) == match
        )
        if previous is not None and up_to_date:
            manifest = previous.manifest
            remove_unneeded(out, manifest)
        else:
            if classifiers:
                # One by another encoder has the attributes, too.
                held = previous or _opened(out)
                add_attributes(work, classifiers, staging / "attributes", held, progress)
            keys = keys_of(read, read.usable)
            titles = None if chosen.type == "exact" else title_vectors(work, encoder)
            segment = SegmentRecord(
                name=next_segment(out),
                index=write_vectors(work, keys, cache, chosen, titles),
                counts=counts,
                removed=0,
                files=file_records(work),
            )
            manifest = next_version(
                out,
                f"index of {catalog.path.name}",
                record,
                calibrated(work, segment.index, encoder, progress) if match else None,
                fitted(work, classifiers, encoder, progress) if classifiers else None,
                [segment],
                counts.products,
                counts.images,
            )
            commit(out, manifest, {segment.name: work})
        shutil.rmtree(staging, ignore_errors=True)  # all of it is in the segment
        return BuildReport(
            folder=out,
            rejects=out / manifest.segments[-1].name / REJECTS,
            counts=counts,
            images=manifest.images,
            encoded=read.embedded.encoded,
            reused=read.embedded.reused,
            up_to_date=up_to_date,
            seconds=time.monotonic() - started,
            embed_seconds=read.embed_seconds,
        )


def _refuse_missing(previous: OpenIndex, read: CatalogVectors) -> None:
    """Raise IndexFolderError where so many pictures are missing that the old version is the
    better one."""
    held = pa.table(
        {
            "id": previous.products.table["id"].take(pa.array(previous.images.product)),
            "location": previous.images.column("location"),
        }
    )
    images = read.found.images
    named = pa.table(
        {
            "id": read.found.ids().take(images["product"]),
            "location": images["location"],
            "number": np.arange(len(images)),
        }
    )
    both = named.join(held, ["id", "location"], join_type="left semi")["number"].to_numpy()
    missing = np.intersect1d(both, read.embedded.unread)
    if len(missing) > MAX_MISSING * len(both):
        raise IndexFolderError(
            f"{len(missing):,} of {len(both):,} pictures of {previous.folder} can no longer be "
            f"read, first {read.embedded.failures[int(missing[0])]}; mount or restore them, or "
            "drop them with --accept-missing; the index is unchanged"
        )


def _opened(folder: Path) -> OpenIndex | None:
    try:
        return open_index(folder)
    except IndexFolderError:
        return None


def _filled_by(index: OpenIndex) -> tuple[str, ...]:
    """The fingerprints of what filled in its attributes."""
    record = index.manifest.attributes
    return () if record is None else record.fingerprints


def _same(previous: OpenIndex, work: Path, counts: IndexCounts) -> bool:
    """Whether counts, products, pictures (by the hash of their bytes) and rejects are those
    of the only segment; then so are the vectors."""
    segments = previous.manifest.segments
    if len(segments) > 1 or segments[0].counts != counts:
        return False
    records = file_records(work, _TABLES)
    return all(segments[0].files[name] == record for name, record in records.items())
