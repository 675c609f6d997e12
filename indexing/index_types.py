"""The door to index types: plan one, write it, read it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from indexing.approximate import ApproximateIndex
from indexing.errors import IndexCorruptError, IndexFolderError, IndexPlanError
from indexing.faiss_import import import_faiss
from indexing.gpu import to_cpu, to_gpu
from indexing.plan import CHUNK, RECALL, TRAINING, Plan, new_index, plan_index
from indexing.tuning import tune
from indexing.vectors import ExactIndex, VectorIndex, load_faiss, save_faiss

__all__ = ["IndexRecord", "Plan", "plan_index", "read_index", "write_index"]

Progress = Callable[[int, int], None]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

_KMEANS_ROUNDS = 10


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SearchRecord(_Strict):
    """How an approximate index is searched, and what that was measured to find."""

    factory: str  # of FAISS
    bytes_per_vector: Positive  # in memory
    target: Share  # recall@10 that it was tuned to
    candidates: Annotated[int, Field(ge=1)]  # ranked by their full vectors
    probes: Annotated[int, Field(ge=0)]  # inverted lists that are looked at; 0 for all
    recall_in: Share  # recall@10 of held-out queries of the kind of the vectors
    recall_out: Share  # and of another kind
    outside: Literal["titles", "stand-ins"]  # what those were
    queries: Annotated[int, Field(ge=1)]  # of each kind, none of which chose the settings
    complete: bool  # false where the time cap ended the tuning
    scan_seconds: Positive  # of one query on one thread, to find candidates
    row_seconds: Positive  # to rank one of them


class IndexRecord(_Strict):
    """The kind of index."""

    type: Literal["exact", "approximate"] = "exact"
    search: SearchRecord | None = None  # of an approximate one

    def follows(self, plan: Plan) -> bool:
        """Whether this is what `plan` asks for."""
        if self.search is None or plan.factory is None:
            return self.type == plan.type
        return (self.search.factory, self.search.target) == (plan.factory, plan.recall)

    def __str__(self) -> str:
        if self.search is None:
            return self.type
        found = self.search
        capped = "" if found.complete else "; tuning was cut short by its time cap"
        return (
            f"{self.type}, {found.factory}, {found.bytes_per_vector:,.0f} bytes a vector; "
            f"recall@10 {found.recall_in:.3f} with pictures, {found.recall_out:.3f} with "
            f"{found.outside} ({found.queries} held-out queries each){capped}"
        )


def write_index(
    vectors: NDArray[np.float32],
    path: Path,
    plan: Plan,
    *,
    queries: NDArray[np.float32] | None = None,
    progress: Progress | None = None,
) -> IndexRecord:
    """Build the index of `plan` over `vectors` [n, d] and write it to `path`.

    `vectors` may be mapped; it is read in chunks. `queries` are unit vectors [q, d] of
    another kind, such as titles among pictures; without them stand-ins are made. They and
    held-out vectors choose the search's settings, for at most `plan.tuning_seconds`, and
    others of them measure what it finds. `progress` is told of vectors added and their
    number. The file is not flushed: the caller makes it durable.

    Raises IndexFolderError where the file does not read back as it was written,
    IndexPlanError where there are too few vectors to learn such an index from, ValueError
    for vectors that are not finite, and OSError.
    """
    broken = IndexFolderError(f"{path} does not read back as it was written: check the disk")
    if plan.factory is None:
        exact = ExactIndex.from_vectors(vectors)
        exact.save(path)
        del exact
        if not ExactIndex.load(path).holds(vectors):
            raise broken
        return IndexRecord()
    index = _trained(vectors, plan)
    for start in range(0, len(vectors), CHUNK):
        index.add(_finite(vectors[start : start + CHUNK]))
        if progress is not None:
            progress(min(start + CHUNK, len(vectors)), len(vectors))
    index = to_cpu(import_faiss(), index)
    save_faiss(index, path)
    if not np.array_equal(np.fromfile(path, np.uint8), import_faiss().serialize_index(index)):
        raise broken
    tuned = tune(index, vectors, plan.recall, outside=queries, seconds=plan.tuning_seconds)
    search = SearchRecord(
        factory=plan.factory,
        bytes_per_vector=path.stat().st_size / len(vectors),
        target=plan.recall,
        candidates=tuned.candidates,
        probes=tuned.probes,
        recall_in=tuned.recall_in,
        recall_out=tuned.recall_out,
        outside="stand-ins" if queries is None or not len(queries) else "titles",
        queries=tuned.queries,
        complete=tuned.complete,
        scan_seconds=tuned.scan_seconds,
        row_seconds=tuned.row_seconds,
    )
    return IndexRecord(type="approximate", search=search)


def read_index(
    path: Path,
    vectors: NDArray[np.float32],
    record: IndexRecord,
    *,
    float16: bool = False,
) -> VectorIndex:
    """The index that `write_index` wrote over these `vectors`, which may be mapped.

    With a GPU build of FAISS, a card, and an approximate index of a type that FAISS has
    kernels for, candidates are found there, with `float16` in half precision.

    Raises IndexCorruptError for a file that holds another one.
    """
    if record.search is None:
        index: VectorIndex = ExactIndex.load(path)
        if (index.ntotal, index.dim) != vectors.shape:
            raise IndexCorruptError(f"{path} holds another number of vectors than are there")
        return index
    loaded = load_faiss(path)
    if (
        (loaded.ntotal, loaded.d) != vectors.shape
        or not loaded.is_trained
        or loaded.metric_type != import_faiss().METRIC_INNER_PRODUCT
    ):
        raise IndexCorruptError(f"{path} does not hold an index of the vectors beside it")
    lists = import_faiss().try_extract_index_ivf(loaded)
    if lists is not None:  # a copy on a card keeps this
        lists.nprobe = record.search.probes or lists.nlist
    on_gpu, _ = to_gpu(import_faiss(), loaded, float16=float16)
    return ApproximateIndex(
        loaded,
        vectors,
        on_gpu=None if on_gpu is loaded else on_gpu,
        candidates=record.search.candidates,
        probes=record.search.probes,
        scan_seconds=record.search.scan_seconds,
        row_seconds=record.search.row_seconds,
    )


def _trained(vectors: NDArray[np.float32], plan: Plan) -> Any:
    faiss = import_faiss()
    index = new_index(plan.factory or "", vectors.shape[1])
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:  # codes need more rounds than lists, whose borders matter little
        lists.cp.niter = _KMEANS_ROUNDS
        lists.cp.min_points_per_centroid = 1
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice(len(vectors), min(len(vectors), TRAINING), replace=False))
    index, _ = to_gpu(faiss, index, most=1)
    try:
        index.train(_finite(vectors[sample]))
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2] or str(error)
        raise IndexPlanError(
            f"index {plan.factory!r} cannot be learned from {len(vectors):,} vectors "
            f"({reason[:120]}): give --recall {RECALL:g} instead of --index"
        ) from None
    return index


def _finite(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    chunk = np.ascontiguousarray(vectors, dtype=np.float32)
    if not np.isfinite(chunk).all():
        raise ValueError("vectors must be finite")
    return chunk
