"""Another model for an index: built beside it, compared on queries, and swapped if not worse."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.statistics import Interval, cluster_bootstrap
from benchmarks.upgrade_queries import Query
from indexing.catalog_vectors import scratch_folder
from indexing.committing import commit, locked_folder, next_version
from indexing.embed import Progress, VectorCache
from indexing.errors import BenchmarkError, ImageError, IndexFolderError
from indexing.manifest import EncoderRecord, Manifest
from indexing.models.protocol import Encoder
from indexing.reembed import reembed
from indexing.segment_files import calibrated
from indexing.segments import open_segment
from indexing.store import OpenIndex, open_index, opened
from search.neighbours import Neighbours
from search.query import load_picture, query_vector
from search.version import Version

K = 10


@dataclass(frozen=True)
class Comparison:
    """Both models on the same queries: shares of queries with a right product in the first K."""

    queries: int
    old: Interval
    new: Interval
    gain: Interval  # new - old, paired

    def allows(self, margin: float) -> bool:
        """Whether losing more than `margin` is ruled out."""
        return self.gain.low >= -margin


@dataclass(frozen=True)
class Upgrade:
    """What became of it: `manifest` is the one that holds now."""

    comparison: Comparison
    swapped: bool
    manifest: Manifest


def upgrade(
    before: OpenIndex,
    old: Encoder,
    new: Encoder,
    queries: Sequence[Query],
    *,
    margin: float,
    force: bool = False,
    progress: Progress | None = None,
) -> Upgrade:
    """Embed the pictures of the index `before`, made by `old`, with `new`, compare both on
    `queries`, and commit the new vectors unless recall may be lost.

    The old version answers until then and stays as one to roll back to. What a stopped run
    has embedded is found again.

    Raises IndexFolderError where another process writes, where the index was changed
    meanwhile, or where too many pictures cannot be read any more; BenchmarkError where no
    query can be asked.
    """
    folder, attributes = before.folder, before.manifest.attributes
    with locked_folder(folder, "upgrade") as staging, scratch_folder(staging) as work:
        if open_index(folder).manifest != before.manifest:
            raise IndexFolderError(f"{folder} has changed since it was opened: try again")
        cache = VectorCache(staging / new.fingerprint[:16], new.dim)
        segment = reembed(before, new, cache, work, progress)
        manifest = next_version(
            folder,
            f"upgrade from {old.name} to {new.name}",
            EncoderRecord.of(new),
            calibrated(work, segment.index, new, progress),
            attributes and attributes.unfitted(),
            [segment],
            segment.counts.products,
            segment.counts.images,
        )
        written = open_segment(work, segment, new.dim, manifest.attributes)
        after = opened(folder, manifest, [written])
        comparison = compare(Version(before, old), Version(after, new), queries)
        swapped = force or comparison.allows(margin)
        if swapped:
            commit(folder, manifest, {segment.name: work})
            shutil.rmtree(staging, ignore_errors=True)
    return Upgrade(comparison, swapped, manifest if swapped else before.manifest)


def compare(old: Version, new: Version, queries: Sequence[Query]) -> Comparison:
    """Both on every query that can be read. Raises BenchmarkError where there is none."""
    hits: list[tuple[bool, bool]] = []
    clusters: list[str] = []
    for query in queries:
        try:
            hits.append((_finds(old, query), _finds(new, query)))
        except ImageError:
            continue
        clusters.append(min(query.right))
    if not hits:
        raise BenchmarkError("none of the queries' pictures can be read: nothing to compare by")
    found = np.array(hits, np.float64)
    groups = np.unique(np.array(clusters), return_inverse=True)[1].astype(np.int64)
    return Comparison(
        len(hits),
        cluster_bootstrap(found[:, 0], groups),
        cluster_bootstrap(found[:, 1], groups),
        cluster_bootstrap(found[:, 1] - found[:, 0], groups),
    )


def _finds(version: Version, query: Query) -> bool:
    """Whether a right product is among the first K."""
    index, encoder = version.index, version.encoder
    picture = None
    if query.image is not None:
        picture = load_picture(query.image, at_least=encoder.image_size)
    vector = query_vector(encoder, picture, query.text)
    allowed: NDArray[np.bool_] | None = None
    if query.hidden is not None:
        allowed = ~pc.equal(index.images.table["sha256"], query.hidden).to_numpy()
    hits = version.hits(Neighbours(index, vector, allowed), K, "max", False, 0.0)
    return any(hit.product_id in query.right for hit in hits)
