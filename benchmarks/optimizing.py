"""What an optimised model may lose: measured on a catalog beside its parent, and tried again with
more layers in floats until it loses nothing that counts.

It is measured as it will be used: its queries against its own vectors of the pictures, and
against the parent's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
from indexing.models.optimized.runtimes import Floats, Precision, RuntimeName, runtime
from indexing.models.optimized.sensitivity import layer_errors, worst_layers
from indexing.models.protocol import Encoder
from indexing.processor import has_bfloat16, usable_threads
from indexing.store import OpenIndex

_RANKED = 8  # examples that layers are ranked by
# Tried one after the other: the share of the error of all layers that int8 may make.
_SHARES = (1 / 4, 1 / 16, 1 / 64, 1 / 256)
_LENIENT = 2  # how often hits change is not known well from a first part
_DEPTH = 10

Stages = Callable[[str], Progress]  # for each stage's name what shows its progress


@dataclass(frozen=True)
class Attempt:
    """A model in a folder, without its gate in it, and what it was measured to lose."""

    folder: Path
    config: OptimizedConfig
    gate: Gate


@dataclass(frozen=True)
class Judge:
    """Measures optimised models beside their parent.

    Attributes:
        catalog: its name, to record.
        cache: a folder for vectors.
        index: one that the parent made, whose vectors need not be computed again.
    """

    parent: ClipEncoder | AlbefEncoder
    catalog: str
    cache: Path
    margin: float
    stages: Stages
    index: OpenIndex | None = None

    def gate(self, child: Encoder, tasks: Sequence[Task]) -> Gate:
        """Both on all tasks. Raises BenchmarkError where a task's pictures cannot be read."""
        recalls: list[Recall] = []
        cosines: dict[str, list[NDArray[np.float32]]] = {}
        for task in tasks:
            before = self._embed(task, self.parent, "parent", self.index)
            after = self._embed(task, child, "optimised")
            left, _, _ = usable(task, [before, after])
            recalls += compare(left, before, after)
            asked = "pictures" if left.queries.pictures is not None else "titles"
            sides = (
                ("pictures", before.gallery, after.gallery),
                (asked, before.queries, after.queries),
            )
            for kind, one, other in sides:
                cosines.setdefault(kind, []).append((one * other).sum(axis=1))
        found = {kind: np.concatenate(parts) for kind, parts in cosines.items()}
        return Gate(
            passed=all(one.change.low >= -self.margin for one in first_places(recalls)),
            margin=self.margin,
            catalog=self.catalog,
            cosines={kind: (float(each.mean()), float(each.min())) for kind, each in found.items()},
            recalls=tuple(recalls),
        )

    def _embed(
        self, task: Task, encoder: Encoder, name: str, index: OpenIndex | None = None
    ) -> TaskVectors:
        shown = self.stages(f"{task.title}: {name}")
        return embed_task(task, encoder, self.cache, index, shown)


def attempts(
    judge: Judge,
    name: RuntimeName,
    material: Material,
    work: Path,
    precision: Precision,
) -> Iterator[Attempt]:
    """Optimised models of the judge's parent below `work`, the fastest first, up to one that
    passes. Each takes the place of the one before. In int8 more and more layers are kept in
    floats, in the end all of them where the processor has bfloat16.

    Raises:
        ModelError, MissingDependencyError: The model cannot be exported or brought there.
        BenchmarkError: None of the catalog's pictures can be read.
    """
    exported = export_towers(judge.parent, work)
    int8 = precision == "int8"
    examples = _examples(judge.parent, exported, material) if int8 else Examples()
    times = len(material.asked) / len(material.first)
    for recipe in _recipes(name, precision, exported, examples, work, judge.stages):
        folder = work / "model"
        config = make_model(judge.parent, exported, recipe, examples, folder)
        child = load_optimized(folder)
        gate = judge.gate(child, material.tasks(material.first))
        if promising(gate, times):
            gate = judge.gate(child, material.tasks(material.asked))
        else:
            gate = gate.model_copy(update={"passed": False})
        yield Attempt(folder, config, gate)
        if gate.passed:
            return


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


def promising(gate: Gate, times: float) -> bool:
    """Whether a model that was measured on a first part of the queries may pass on so many times
    as many: it does not surely lose too much, and hits change so rarely that, would losses
    and gains even out, the interval would be narrow enough."""
    return all(
        one.change.high >= -gate.margin
        and queries_needed(one, gate.margin) <= _LENIENT * times * one.queries
        for one in first_places(gate.recalls)
    )


def queries_needed(one: Recall, margin: float) -> float:
    """About how many queries make half an interval as narrow as the margin, as its width falls
    with the root of their number."""
    half = one.change.mean - one.change.low
    if half <= 0:
        return 0
    return one.queries * (half / margin) ** 2 if margin else math.inf


def first_places(recalls: Sequence[Recall]) -> list[Recall]:
    """Recall@1, which decides."""
    return [one for one in recalls if one.cutoff == 1]


def in_words(attempt: Attempt) -> str:
    """How a model was made and what it loses, in a line."""
    config, gate = attempt.config, attempt.gate
    how = f"{config.runtime} in {config.precision}"
    if config.precision == "int8":
        floats = "" if config.floats == "float32" else f" and {config.floats}"
        how += f"{floats}, {sum(map(len, config.kept.values()))} layers kept in floats"
    cosines = ", ".join(f"{kind} {mean:.4f}" for kind, (mean, _) in gate.cosines.items())
    decisive = first_places(gate.recalls)
    worst = min(one.change.low for one in decisive)
    told = (
        f"{how}: mean cosine of {cosines}; Recall@1 of {decisive[0].queries:,} queries may change "
        f"by {worst:+.4f}, {'passed' if gate.passed else 'not passed'}"
    )
    needed = max(queries_needed(one, gate.margin) for one in decisive)
    if gate.passed or not all(one.change.high >= -gate.margin for one in decisive):
        return told
    return f"{told} (to tell takes about {needed:,.0f} queries)"


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
    precision: Precision,
    exported: Exported,
    examples: Examples,
    work: Path,
    stages: Stages,
) -> Iterator[Recipe]:
    """The fastest first."""
    half = Recipe(name, int8=False, floats="bfloat16")
    if precision != "int8":
        yield half if precision == "bf16" else Recipe(name, int8=False)
        return
    short = name == "openvino" and has_bfloat16()
    if short:
        yield Recipe(name, int8=True, floats="bfloat16")
    yield Recipe(name, int8=True)
    floats: Floats = "bfloat16" if short else "float32"
    module, threads = runtime(name), usable_threads()
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
        yield Recipe(name, int8=True, floats=floats, kept=worst_layers(errors, share))
    if short:
        yield half


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
