"""Nearest-neighbour indexes side by side: built once, searched at every setting, answers kept.

Every index is built first and stays in memory (the vectors themselves do not need to: see
`ann_data.mapped`). Then each answers all queries once, which
warms it up; those answers go to disk. What is timed comes after that, in rounds: a round
goes through all indexes, settings and kinds of query, so that a machine that slows down
slows all of them. ann_report.py makes the figures from the files alone.

    DIR/answers/SYSTEM-SETTING-QUERIES.npz   rows int64 [q, K] and their scores float32
    DIR/answers/truth-QUERIES.npz            the same of the exact answers
    DIR/timings.json                         builds and all rounds, see `Timings`
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.ann_data import Dataset
from benchmarks.ann_systems import SYSTEMS, System
from benchmarks.machine import describe_machine, faiss_kernel, installed_versions
from indexing.durable import replace_bytes, write_atomically
from indexing.errors import BenchmarkError, MissingDependencyError
from indexing.processor import usable_cores
from indexing.vectors import ExactIndex, Rows, Scores, inner_products

Floats = NDArray[np.float32]
Note = Callable[[str], None]

K = 10
SINGLE = 200  # queries of a round that are asked alone
TIMINGS, ANSWERS = "timings.json", "answers"
_PACKAGES = ("shoplens", "faiss-cpu", "faiss-gpu", "numpy", "hnswlib", "usearch", "scann")
_CHUNK = 256


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Built(_Frozen):
    """One index, built."""

    label: str
    build_seconds: float
    saved_bytes: int
    peak_bytes: int | None  # what building added at most, where the system tells


class Run(_Frozen):
    """One index at one setting on one kind of query; a list has an element a round."""

    system: str
    setting: str
    queries: str
    answers: str  # file under ANSWERS
    batch_seconds: dict[int, list[float]]  # by threads: all queries in one call
    p50: list[float]  # seconds of a query alone, on one thread
    p99: list[float]


class Timings(_Frozen):
    """Everything that a report needs besides the answers."""

    data: str
    notes: list[str]
    n: int
    dim: int
    query_counts: dict[str, Annotated[int, Field(ge=1)]]
    machine: str
    versions: dict[str, str]
    faiss_kernel: str | None
    build_threads: int
    systems: dict[str, Built]
    skipped: dict[str, str]  # system -> why
    runs: list[Run]


def measure(
    data: Dataset,
    folder: Path,
    systems: Sequence[str] | None = None,
    *,
    rounds: int = 5,
    note: Note = lambda _: None,
) -> Timings:
    """Build and search, and write `folder`/answers and `folder`/timings.json.

    Without `systems` every entry of SYSTEMS is taken, and those that cannot be built here
    (a library that is missing, a dimension that does not fit) are noted as skipped. `note`
    is told of each step. Raises BenchmarkError for a name that is unknown,
    MissingDependencyError where a system that was asked for by name needs a library, and
    OSError.
    """
    unknown = [name for name in systems or () if name not in SYSTEMS]
    if unknown:
        raise BenchmarkError(f"unknown system {unknown[0]!r}: give some of {', '.join(SYSTEMS)}")
    answers = folder / ANSWERS
    answers.mkdir(parents=True, exist_ok=True)
    threads = usable_cores()
    truth = ExactIndex.from_vectors(data.vectors)
    for kind, queries in data.queries.items():
        _store(answers / f"truth-{kind}.npz", truth.search(queries, K)[1], queries, data.vectors)
    del truth
    ready: dict[str, System] = {}
    built: dict[str, Built] = {}
    skipped: dict[str, str] = {}
    for name in systems or SYSTEMS:
        system = SYSTEMS[name]()
        try:
            built[name] = _built(system, data.vectors, threads)
        except (MissingDependencyError, BenchmarkError) as error:
            if systems:
                raise
            skipped[name] = str(error)
            note(f"{name}: skipped: {error}")
            continue
        ready[name] = system
        note(f"{name}: built in {built[name].build_seconds:.1f} s")
    runs = []
    for name, system in ready.items():
        for setting in system.settings:
            system.use(setting, threads)
            for kind, queries in data.queries.items():
                file = f"{name}-{setting}-{kind}.npz"
                _store(answers / file, system.search(queries, K), queries, data.vectors)
                run = Run(
                    system=name,
                    setting=setting,
                    queries=kind,
                    answers=file,
                    batch_seconds={count: [] for count in (1, 2) if count <= threads},
                    p50=[],
                    p99=[],
                )
                runs.append(run)
    note(f"{len(runs)} combinations of index, setting and queries; now {rounds} timed rounds")
    for number in range(rounds):
        started = time.monotonic()
        for run in runs:
            _time(ready[run.system], run, data.queries[run.queries])
        note(f"round {number + 1} of {rounds}: {time.monotonic() - started:.0f} s")
    timings = Timings(
        data=data.description,
        notes=data.notes,
        n=len(data.vectors),
        dim=data.vectors.shape[1],
        query_counts={kind: len(queries) for kind, queries in data.queries.items()},
        machine=describe_machine(),
        versions=installed_versions(_PACKAGES),
        faiss_kernel=faiss_kernel(),
        build_threads=threads,
        systems=built,
        skipped=skipped,
        runs=runs,
    )
    text = timings.model_dump_json(indent=1) + "\n"
    replace_bytes(folder / TIMINGS, text.encode())
    return timings


def exact_scores(vectors: Floats, queries: Floats, rows: Rows) -> Scores:
    """The inner products of each query with its `rows` [q, k], float32 [q, k]; -inf for row -1."""
    scores = np.empty(rows.shape, np.float32)
    k = rows.shape[1]
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        asked = np.repeat(queries[start : start + _CHUNK], k, axis=0)
        scores[start : start + _CHUNK] = inner_products(
            asked, vectors[np.maximum(part, 0).ravel()]
        ).reshape(part.shape)
    scores[rows < 0] = -np.inf
    return scores


def _built(system: System, vectors: Floats, threads: int) -> Built:
    before = _reset_peak()
    started = time.perf_counter()
    system.build(vectors, threads)
    seconds = time.perf_counter() - started
    peak = _memory("VmHWM")
    with tempfile.TemporaryDirectory() as folder:
        system.save(Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return Built(
        label=system.label,
        build_seconds=seconds,
        saved_bytes=size,
        peak_bytes=None if before is None or peak is None else max(0, peak - before),
    )


def _time(system: System, run: Run, queries: Floats) -> None:
    """One round of one run."""
    for threads, seconds in run.batch_seconds.items():
        system.use(run.setting, threads)
        started = time.perf_counter()
        system.search(queries, K)
        seconds.append(time.perf_counter() - started)
    system.use(run.setting, 1)
    single = []
    for row in range(min(SINGLE, len(queries))):
        started = time.perf_counter()
        system.search(queries[row : row + 1], K)
        single.append(time.perf_counter() - started)
    run.p50.append(float(np.quantile(single, 0.5)))
    run.p99.append(float(np.quantile(single, 0.99)))


def _store(path: Path, rows: Rows, queries: Floats, vectors: Floats) -> None:
    scores = exact_scores(vectors, queries, rows)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, rows=rows, scores=scores)

    write_atomically(path, write)


def _reset_peak() -> int | None:
    """Let the peak begin anew at the memory that is held now, which is returned in bytes."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide what is taken next
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed
        return None
    return _memory("VmRSS")


def _memory(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None
