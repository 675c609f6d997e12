"""A benchmark from top to bottom: tasks and systems to stored answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.retrieval.answers import (
    Answers,
    System,
    listed_answers,
    order_answers,
    store_answers,
    store_task,
)
from benchmarks.retrieval.exact import Scorer, count_answers
from benchmarks.retrieval.measures import DEEP
from benchmarks.retrieval.order import Floats
from benchmarks.retrieval.scorers import VectorScorer
from benchmarks.retrieval.task import Ints, Side, Task
from benchmarks.systems import (
    TEXT_SEARCH,
    applies,
    baseline_encoder,
    bm25_scorer,
    fusion_scorer,
)
from indexing.catalog.product import ProductImage
from indexing.embed import Progress, VectorCache, embed_pictures
from indexing.errors import BenchmarkError
from indexing.messages import printable
from indexing.models import Encoder
from indexing.store import OpenIndex

logger = logging.getLogger(__name__)

DEPTH = 100
_TEXTS = 256


@dataclass(frozen=True)
class Subject:
    """What is measured: an encoder, perhaps with the index it made."""

    encoder: Encoder
    index: OpenIndex | None = None


@dataclass
class TaskVectors:
    """One system's vectors of a task, zeros for a picture that cannot be used."""

    queries: Floats
    gallery: Floats
    bad_queries: Ints
    bad_gallery: Ints
    gallery_keys: list[bytes | None] = field(default_factory=list)
    seconds: float = 0.0


def run_tasks(
    tasks: Sequence[Task],
    subject: Subject,
    against: Sequence[str],
    out: Path,
    *,
    depth: int = DEPTH,
    progress: Callable[[str], Progress | None] = lambda name: None,
) -> None:
    """Answer every task with every system that can, and store the answers below `out`.

    Vectors are kept below `out` by the hash of the picture's bytes, so a run that was
    stopped goes on, and another system costs only itself. Pictures that one of the systems
    cannot use are left out for all, and counted. `progress` gives for each stage what is
    called with the pictures done and their number.

    Raises:
        BenchmarkError: A system cannot answer any of the tasks, or a task is left without
            queries.
    """
    encoders = {subject.encoder.name: subject.encoder}
    for name in against:
        if not any(applies(name, task) for task in tasks):
            raise BenchmarkError(f"{name} cannot answer any of: {', '.join(t.name for t in tasks)}")
        if name not in TEXT_SEARCH:
            encoders[name] = baseline_encoder(name, subject.encoder)
    for task in tasks:
        names = [subject.encoder.name, *(n for n in against if applies(n, task))]
        _run_task(task, subject, dict.fromkeys(names), encoders, out, depth, progress)


def _run_task(
    task: Task,
    subject: Subject,
    names: dict[str, None],
    encoders: dict[str, Encoder],
    out: Path,
    depth: int,
    progress: Callable[[str], Progress | None],
) -> None:
    vectors = {
        name: embed_task(
            task,
            encoders[name],
            out / ".vectors",
            subject.index if encoders[name] is subject.encoder else None,
            progress(f"{task.name}: {name}"),
        )
        for name in names
        if name not in TEXT_SEARCH
    }
    whole, (task, bad_queries, bad_gallery) = task, usable(task, list(vectors.values()))
    folder = out / task.name
    store_task(folder, task, _left_out(whole, task, bad_queries, bad_gallery))
    kept_gallery = np.setdiff1d(np.arange(len(whole.gallery)), bad_gallery)
    own = vectors[subject.encoder.name]
    for position, name in enumerate(names):
        started = time.perf_counter()
        answers = answer_task(
            task, _scorer(name, task, own, vectors), depth, progress(f"rank {name}")
        )
        seconds = {"rank": time.perf_counter() - started}
        if name in vectors:
            seconds["embed"] = vectors[name].seconds
        store_answers(folder, task, System(name, "exact", position, seconds), answers)
    if subject.index is not None:
        keys = [own.gallery_keys[row] for row in kept_gallery]
        name, index = subject.encoder.name, subject.index
        _answer_by_index(task, name, index, own.queries, keys, folder, depth)


def _scorer(name: str, task: Task, own: TaskVectors, vectors: dict[str, TaskVectors]) -> Scorer:
    if name == "bm25":
        return bm25_scorer(task)
    if name == "fusion":
        return fusion_scorer(task, own.queries, own.gallery)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return VectorScorer(vectors[name].queries, vectors[name].gallery, device)


def usable(task: Task, vectors: Sequence[TaskVectors]) -> tuple[Task, Ints, Ints]:
    """The task without what one of several systems cannot use, and these queries and gallery
    rows; vectors of what is left are all that is kept.

    Raises:
        BenchmarkError: No query is left.
    """
    bad_queries = np.unique(np.concatenate([found.bad_queries for found in vectors]))
    bad_gallery = np.unique(np.concatenate([found.bad_gallery for found in vectors]))
    left = task.without(bad_queries, bad_gallery)
    if not len(left.queries):
        raise BenchmarkError(
            f"{task.name}: no query is left with a right answer ({len(bad_queries):,} queries "
            f"and {len(bad_gallery):,} gallery pictures cannot be read)"
        )
    kept_queries = np.flatnonzero(np.isin(task.queries.ids, left.queries.ids))
    kept_gallery = np.setdiff1d(np.arange(len(task.gallery)), bad_gallery)
    for found in vectors:
        found.queries = found.queries[kept_queries]
        found.gallery = found.gallery[kept_gallery]
    return left, bad_queries, bad_gallery


def answer_task(
    task: Task, scorer: Scorer, depth: int, progress: Progress | None = None
) -> Answers:
    """The answers to a task of a scorer's queries and gallery, in exact order."""
    taken_out = task.removed.union(task.duplicates)
    counts = count_answers(scorer, task.judged, taken_out, depth, progress=progress)
    duplicates = scorer.exact(task.duplicates.query, task.duplicates.row)
    return order_answers(task, counts, duplicates)


def _answer_by_index(
    task: Task,
    name: str,
    index: OpenIndex,
    queries: Floats,
    keys: list[bytes | None],
    folder: Path,
    depth: int,
) -> None:
    """The same queries through the index under test, which may be approximate."""
    rows = _rows_of(index, keys)
    missing = int((rows < 0).sum())
    if missing:
        logger.warning(
            "%s: %d of %d gallery pictures are not in %s, so its answers are exact ones only",
            task.name, missing, len(rows), index.folder,
        )  # fmt: skip
        return
    allowed = np.zeros(index.index.ntotal, bool)
    allowed[rows] = True
    back = np.full(index.index.ntotal, -1, np.int64)
    back[rows] = np.arange(len(rows))
    hidden = np.bincount(task.removed.union(task.duplicates).query)
    fetch = min(max(depth, DEEP) + int(hidden.max(initial=0)), len(rows))
    started = time.perf_counter()
    scores, found = index.index.search(queries, fetch, None if allowed.all() else allowed)
    seconds = {"search": time.perf_counter() - started}
    answers = listed_answers(task, np.where(found >= 0, back[found], -1), scores, depth)
    note = f"{index.folder}, an index of type {index.manifest.kind}"
    store_answers(folder, task, System(name, "index", 0, seconds, note), answers)


def _rows_of(index: OpenIndex, keys: list[bytes | None]) -> Ints:
    """For each picture a row of the index with its vector, each row once; -1 for none."""
    places: dict[str | None, list[int]] = {}
    for row, key in enumerate(index.images.column("sha256")):
        places.setdefault(key, []).append(row)
    for rows in places.values():
        rows.reverse()
    found = [
        places[key.hex()].pop() if key is not None and places.get(key.hex()) else -1 for key in keys
    ]
    return np.array(found, np.int64)


def _left_out(whole: Task, task: Task, bad_queries: Ints, bad_gallery: Ints) -> dict[str, int]:
    counts = {
        "queries whose picture cannot be read": len(bad_queries),
        "gallery pictures that cannot be read": len(bad_gallery),
        "queries without a right answer left": len(whole.queries)
        - len(task.queries)
        - len(bad_queries),
    }
    return {reason: count for reason, count in counts.items() if count > 0}


def embed_task(
    task: Task,
    encoder: Encoder,
    folder: Path,
    index: OpenIndex | None = None,
    progress: Progress | None = None,
) -> TaskVectors:
    """An encoder's vectors of a task, kept below `folder`; `index` may hold some already."""
    started = time.perf_counter()
    cache = VectorCache(folder / encoder.fingerprint[:16], encoder.dim)
    if index is not None:
        for segment in index.segments:
            cache.add_array(segment.keys, segment.vectors, segment.hashes)
    gallery, bad_gallery, keys = _embed_side(task.gallery, encoder, cache, progress)
    if task.queries is task.gallery:
        queries, bad_queries = gallery, bad_gallery
    elif task.queries.pictures is not None:
        queries, bad_queries, _ = _embed_side(task.queries, encoder, cache, progress)
    else:
        queries, bad_queries = _embed_texts(task.queries, encoder), np.empty(0, np.int64)
    seconds = time.perf_counter() - started
    return TaskVectors(queries, gallery, bad_queries, bad_gallery, keys, seconds)


def _embed_side(
    side: Side, encoder: Encoder, cache: VectorCache, progress: Progress | None
) -> tuple[Floats, Ints, list[bytes | None]]:
    """Unit vectors of pictures, the rows that have none, and the hash of each."""
    pictures: list[ProductImage] = side.pictures or []
    embedded = embed_pictures(pictures, len(pictures), encoder, cache, progress=progress)
    vectors = np.zeros((len(pictures), encoder.dim), np.float32)
    good = [row for row, key in enumerate(embedded.keys) if key is not None]
    vectors[good] = _unit(cache.gather([key for key in embedded.keys if key is not None]))
    for row, reason in list(embedded.failures.items())[:3]:
        logger.warning("picture %s is left out: %s", printable(pictures[row].location), reason)
    return vectors, np.array(sorted(embedded.failures), np.int64), embedded.keys


def _embed_texts(side: Side, encoder: Encoder) -> Floats:
    texts = side.texts or []
    parts = [encoder.embed_texts(texts[at : at + _TEXTS]) for at in range(0, len(texts), _TEXTS)]
    return _unit(np.concatenate(parts))


def _unit(vectors: Floats) -> Floats:
    """Rows as unit vectors: features of a bare tower are not."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norms, np.float32(1e-12))
    # Unit vectors stay as they are, to the bit: those of an index must be found again.
    return np.where(np.abs(norms - 1) > 1e-5, unit, vectors).astype(np.float32)
