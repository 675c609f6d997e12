"""What an optimised model may lose: measured on a catalog beside its parent, and tried again with
more layers in floats until it loses nothing that counts.

It is measured as it will be used: its queries against its own vectors of the pictures, and
against the parent's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.optimizing_tasks import Material
from benchmarks.retrieval.measures import CUTOFFS, first_ranks
from benchmarks.retrieval.run import TaskVectors, answer_task, embed_task, usable
from benchmarks.retrieval.scorers import VectorScorer
from benchmarks.retrieval.task import Task
from benchmarks.statistics import cluster_bootstrap
from indexing.embed import Progress, load_pixels
from indexing.errors import BenchmarkError, ImageError
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.clip import ClipEncoder
from indexing.models.optimized.encoder import load_optimized
from indexing.models.optimized.exporting import Exported, export_towers
from indexing.models.optimized.folder import Change, Gate, OptimizedConfig, Recall
from indexing.models.optimized.making import SIDES, Examples, Recipe, examples_of, make_model
from indexing.models.optimized.runtimes import RuntimeName, runtime
from indexing.models.optimized.sensitivity import layer_errors, worst_layers
from indexing.models.protocol import Encoder
from indexing.processor import has_bfloat16

MARGIN = 0.002
_RANKED = 8  # examples that layers are ranked by
# Tried one after the other: the share of the error of all layers that int8 may make.
_SHARES = (1 / 4, 1 / 16, 1 / 64, 1 / 256)
_DEPTH = 10

Stages = Callable[[str], Progress]  # for each stage's name what shows its progress
Note = Callable[[str], object]


@dataclass(frozen=True)
class Attempt:
    """A model in a folder, without its gate in it, and what it was measured to lose."""

    folder: Path
    config: OptimizedConfig
    gate: Gate


def optimize(
    encoder: ClipEncoder | AlbefEncoder,
    runtime_name: RuntimeName,
    material: Material,
    work: Path,
    *,
    int8: bool,
    catalog: str,
    margin: float = MARGIN,
    stages: Stages,
    note: Note = lambda line: None,
) -> Attempt:
    """The fastest optimised model that passes, or else the one that loses least; below `work`.

    `catalog` is the name to record. `note` is told how each attempt went.

    Raises:
        ModelError, MissingDependencyError: The model cannot be exported or brought there.
        BenchmarkError: None of the catalog's pictures can be read.
    """
    exported = export_towers(encoder, work)
    examples = _examples(encoder, exported, material) if int8 else Examples()
    best: Attempt | None = None
    for number, recipe in enumerate(_recipes(runtime_name, int8, exported, examples, work, stages)):
        folder = work / f"attempt-{number}"
        config = make_model(encoder, exported, recipe, examples, folder)
        child = load_optimized(folder)
        cache = work / "vectors"
        screened = judge(encoder, child, material.first, cache, catalog, margin, stages)
        hopeless = any(one.change.high < -margin for one in screened.recalls if one.cutoff == 1)
        gate = screened
        if not hopeless:
            gate = judge(encoder, child, material.tasks, cache, catalog, margin, stages)
        attempt = Attempt(folder, config, gate)
        note(f"attempt {number + 1}, {_in_words(config)}: {_outcome(gate)}")
        if best is not None and worst_low(best.gate) >= worst_low(gate) and not gate.passed:
            shutil.rmtree(folder)
            continue
        if best is not None:
            shutil.rmtree(best.folder)
        best = attempt
        if gate.passed:
            break
    assert best is not None  # there is always a first recipe
    return best


def judge(
    parent: Encoder,
    child: Encoder,
    tasks: Sequence[Task],
    cache: Path,
    catalog: str,
    margin: float,
    stages: Stages,
) -> Gate:
    """Both on all tasks. Vectors are kept below `cache`."""
    recalls: list[Recall] = []
    cosines: dict[str, list[NDArray[np.float32]]] = {}
    for task in tasks:
        before, after = (
            embed_task(task, encoder, cache, progress=stages(f"{task.title}: {name}"))
            for encoder, name in ((parent, "parent"), (child, "optimised"))
        )
        left, _, _ = usable(task, [before, after])
        recalls += compare(left, before, after)
        asked = "pictures" if left.queries.pictures is not None else "titles"
        for kind, one, other in (
            ("pictures", before.gallery, after.gallery),
            (asked, before.queries, after.queries),
        ):
            cosines.setdefault(kind, []).append((one * other).sum(axis=1))
    together = {kind: np.concatenate(parts) for kind, parts in cosines.items()}
    return Gate(
        passed=all(one.change.low >= -margin for one in recalls if one.cutoff == 1),
        margin=margin,
        catalog=catalog,
        cosines={kind: (float(all_.mean()), float(all_.min())) for kind, all_ in together.items()},
        recalls=tuple(recalls),
    )


def compare(task: Task, before: TaskVectors, after: TaskVectors) -> Iterator[Recall]:
    """Recall of the parent, and of the optimised model's queries against both galleries."""
    old, clusters = _first_ranks(task, before.queries, before.gallery)
    for against, gallery in (("own", after.gallery), ("parent", before.gallery)):
        new, _ = _first_ranks(task, after.queries, gallery)
        for cutoff in CUTOFFS:
            hit, hit_before = (np.asarray(ranks <= cutoff, np.float64) for ranks in (new, old))
            change = cluster_bootstrap(hit - hit_before, clusters)
            yield Recall.model_validate(
                {
                    "task": task.title,
                    "against": against,
                    "queries": len(old),
                    "cutoff": cutoff,
                    "before": float(hit_before.mean()),
                    "after": float(hit.mean()),
                    "change": Change(mean=change.mean, low=change.low, high=change.high),
                }
            )


def worst_low(gate: Gate) -> float:
    """The least lower end of a change in Recall@1."""
    return min(one.change.low for one in gate.recalls if one.cutoff == 1)


def _first_ranks(
    task: Task, queries: NDArray[np.float32], gallery: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The place of each query's first right answer, and the product that the query is of."""
    ranks = answer_task(task, VectorScorer(queries, gallery), _DEPTH).ranks
    right = task.right()
    query = task.judged.query[right]
    asked = np.unique(query)
    return first_ranks(query, ranks[right], asked), task.queries.products[asked]


def _recipes(
    name: RuntimeName,
    int8: bool,
    exported: Exported,
    examples: Examples,
    work: Path,
    stages: Stages,
) -> Iterator[Recipe]:
    """The fastest first."""
    if not int8:
        yield Recipe(name, int8=False)
        return
    if name == "openvino" and has_bfloat16():
        yield Recipe(name, int8=True, floats="bfloat16")
    yield Recipe(name, int8=True)
    module, threads = runtime(name), torch.get_num_threads()
    errors = {
        side: layer_errors(
            getattr(exported, side),
            getattr(examples, side)[:_RANKED],
            module,
            work,
            threads,
            stages(f"layers of the {side} tower"),
        )
        for side in SIDES
    }
    for share in _SHARES:
        yield Recipe(name, int8=True, kept=worst_layers(errors, share))


def _examples(
    encoder: ClipEncoder | AlbefEncoder, exported: Exported, material: Material
) -> Examples:
    pixels = []
    for picture in material.shown:
        try:
            pixels.append(load_pixels(picture, encoder))
        except ImageError:
            continue
    if not pixels:
        raise BenchmarkError("none of the catalog's pictures can be read: nothing to optimise by")
    return examples_of(encoder, exported, pixels, material.titles or [""])


def _in_words(config: OptimizedConfig) -> str:
    if config.precision == "fp32":
        return f"{config.runtime} in float32"
    kept = sum(map(len, config.kept.values()))
    floats = "" if config.floats == "float32" else f" with {config.floats}"
    return f"{config.runtime} in int8{floats}, {kept} layers kept in floats"


def _outcome(gate: Gate) -> str:
    told = ", ".join(f"{kind} {mean:.4f}" for kind, (mean, _) in gate.cosines.items())
    verdict = "passed" if gate.passed else "not passed"
    return f"mean cosine of {told}; Recall@1 changes by {worst_low(gate):+.4f} at worst, {verdict}"
