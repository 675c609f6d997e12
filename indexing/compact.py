"""Compaction: the segments of an index become one, while it is searched and updated.

Many segments cost time in each query, and what is dead in them costs space. Compaction merges
the segments that are there when it begins, without the lock that writers hold; updates that are
committed meanwhile stay behind the merged one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from indexing.attributes.storing import write_columns
from indexing.catalog_vectors import scratch_folder
from indexing.committing import commit, file_records, locked_folder, next_segment, next_version
from indexing.errors import IndexFolderError
from indexing.index_types import Plan, plan_index
from indexing.manifest import (
    ATTRIBUTES,
    REJECTS,
    IndexCounts,
    Manifest,
    SegmentRecord,
    read_manifest,
)
from indexing.segment_files import write_merged_tables, write_vector_files
from indexing.spool import ROWS
from indexing.store import OpenIndex, open_index

# An index is worth compacting with more segments than this, or when more than this share of
# its vectors is dead or outside of its first segment.
MANY_SEGMENTS = 8
LARGE_SHARE = 0.2


def worth_compacting(index: OpenIndex) -> bool:
    """Whether queries pay noticeably for updates."""
    segments = index.manifest.segments
    held = sum(segment.counts.images for segment in segments)
    settled = min(segments[0].counts.images, index.manifest.images)
    return len(segments) > 1 and (
        len(segments) > MANY_SEGMENTS or held - settled > LARGE_SHARE * max(1, held)
    )


def compact(folder: Path) -> Manifest:
    """Merge all segments of an index into one; gives the manifest that holds then.

    An index of one segment stays as it is. Raises IndexFolderError where another compaction
    is under way, or a rebuild or rollback came in between; the index is unchanged then.
    """
    read_manifest(folder)  # which says why where there is none
    with locked_folder(folder, "compact", lock=".compact.lock") as staging:
        with scratch_folder(staging) as work:
            before = open_index(folder)
            if len(before.segments) == 1:
                return before.manifest
            merged = _merge(before, work)
            manifest = _swap(before, merged, work)
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _merge(index: OpenIndex, work: Path) -> SegmentRecord:
    """Write what is alive in `index` as one segment; its name is chosen at the commit."""
    rows = len(index.images)
    write_merged_tables(work, index.products.table, index.images.table)
    if index.attributes:
        write_columns(work / ATTRIBUTES, index.attributes, index.modes)
    chunks = (index.vectors[start : start + ROWS] for start in range(0, rows, ROWS))
    record = write_vector_files(work, chunks, _plan(index.manifest))
    with (work / REJECTS).open("wb") as rejects:
        for segment in index.manifest.segments:
            rejects.write((index.folder / segment.name / REJECTS).read_bytes())
    return SegmentRecord(
        name="s000000",
        index=record,
        counts=_merged_counts(index.manifest),
        removed=0,
        files=file_records(work),
    )


def _plan(manifest: Manifest) -> Plan:
    """The kind of index that the first segment has, unless that is exact and has grown large."""
    count, dim, search = manifest.images, manifest.encoder.dim, manifest.segments[0].index.search
    if search is None:
        return plan_index(count, dim)
    return Plan.approximate(search.factory, count, dim, search.target)


def _merged_counts(manifest: Manifest) -> IndexCounts:
    """As of one catalog with the products that are alive and all rejects."""
    parts = [segment.counts for segment in manifest.segments]
    merged, rejected = sum(p.merged for p in parts), sum(p.rejected for p in parts)
    return IndexCounts(
        rows=manifest.products + merged + rejected,
        products=manifest.products,
        merged=merged,
        rejected=rejected,
        images=manifest.images,
        images_rejected=sum(p.images_rejected for p in parts),
        fields_rejected=sum(p.fields_rejected for p in parts),
    )


def _swap(before: OpenIndex, merged: SegmentRecord, work: Path) -> Manifest:
    """Commit the merged segment in the place of those of `before`."""
    folder, old = before.folder, before.manifest.segments
    with locked_folder(folder, "swap", patient=True):
        current = read_manifest(folder)
        if current.segments[: len(old)] != old:
            raise IndexFolderError(
                f"{folder} was built anew or rolled back meanwhile: it is as that left it, and "
                "was not compacted"
            )
        segment = merged.model_copy(update={"name": next_segment(folder)})
        manifest = next_version(
            folder,
            f"compaction of {len(old)} segments",
            current.encoder,
            current.match,
            current.attributes,
            [segment, *current.segments[len(old) :]],
            current.products,
            current.images,
        )
        commit(folder, manifest, {segment.name: work})
    return manifest
