"""From stored answers and timings to recall, tables and the plot; nothing is searched again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from benchmarks.ann import ANSWERS, SINGLE, TIMINGS, K, Timings
from benchmarks.ann_systems import DEFAULT
from benchmarks.retrieval.plots import new_plot, save
from benchmarks.statistics import Interval, cluster_bootstrap
from benchmarks.timing import Spread, spread
from indexing.durable import replace_bytes
from indexing.errors import BenchmarkError
from indexing.vectors import Rows, Scores

REPORT, PAGE, PLOT = "report.json", "report.md", "recall-qps.png"
# Scores closer than this are ties: other kernels sum in another order.
TIE = 1e-6
TARGETS = (0.9, 0.95, 0.99)
_OURS = "shoplens"  # begins the labels of what is drawn black and large
_COLOURS = (
    *("#0b57d0", "#d1495b", "#2e8540", "#8e44ad", "#d17a00"),
    *("#00838f", "#6d4c41", "#c2185b", "#5c6b73", "#827717"),
)
_MARKERS = "osD^vP*Xhp"
_TICKS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class Point:
    """One index at one setting on one kind of query."""

    system: str
    setting: str
    queries: str
    recall: Interval
    qps: dict[int, Spread]  # queries a second by threads, all in one call
    p50_ms: Spread  # milliseconds of a query alone, on one thread
    p99_ms: Spread


def recalled(rows: Rows, scores: Scores, kth: Scores) -> NDArray[np.float64]:
    """Recall of each query, float64 [q].

    An answer counts when its exact score is at least the k-th best score less TIE: among
    equals (pictures that occur twice) any will do, as the exact order of ties is arbitrary.
    A row that is answered twice counts once.

    Args:
        rows: int64 [q, k], -1 where there is no answer.
        scores: float32 [q, k], the exact scores of those rows, whatever an index said.
        kth: float32 [q], the k-th best exact score of each query.
    """
    good = (rows >= 0) & (scores.astype(np.float64) >= kth[:, np.newaxis].astype(np.float64) - TIE)
    first = np.zeros(rows.shape, np.bool_)
    for query, answered in enumerate(rows):
        first[query, np.unique(answered, return_index=True)[1]] = True
    share: NDArray[np.float64] = (good & first).sum(axis=1) / rows.shape[1]
    return share


def score(folder: Path) -> list[Point]:
    """Write report.json, report.md and recall-qps.png from what `measure` left in `folder`.

    Raises BenchmarkError where that is missing or damaged, MissingDependencyError without
    matplotlib, and OSError.
    """
    new_plot(1)  # says so before the work where matplotlib is missing
    timings, points = read_points(folder)
    content = timings.model_dump(exclude={"runs"}) | {"k": K, "points": [asdict(p) for p in points]}
    replace_bytes(folder / REPORT, (json.dumps(content, indent=1) + "\n").encode())
    _draw(timings, points, folder / PLOT)
    replace_bytes(folder / PAGE, ("\n".join(_page(timings, points)) + "\n").encode())
    return points


def read_points(folder: Path) -> tuple[Timings, list[Point]]:
    """The timings of a folder and the figures of its runs, computed from the answers."""
    try:
        timings = Timings.model_validate_json((folder / TIMINGS).read_bytes())
        kth = {
            kind: _answers(folder, f"truth-{kind}.npz")[1][:, -1] for kind in timings.query_counts
        }
        points = []
        for run in timings.runs:
            rows, scores = _answers(folder, run.answers)
            shares = recalled(rows, scores, kth[run.queries])
            count = timings.query_counts[run.queries]
            points.append(
                Point(
                    system=run.system,
                    setting=run.setting,
                    queries=run.queries,
                    recall=cluster_bootstrap(shares, np.arange(len(shares))),
                    qps={
                        threads: spread([count / taken for taken in seconds])
                        for threads, seconds in run.batch_seconds.items()
                    },
                    p50_ms=spread([1000 * value for value in run.p50]),
                    p99_ms=spread([1000 * value for value in run.p99]),
                )
            )
    except (FileNotFoundError, ValidationError, ValueError, KeyError, BadZipFile) as error:
        raise BenchmarkError(
            f"{folder} does not hold a whole run ({type(error).__name__}): "
            "run `shoplens bench ann` again"
        ) from error
    return timings, points


def fastest(points: Sequence[Point], target: float) -> Point | None:
    """The point of most queries a second on one thread among those of such a recall."""
    good = [point for point in points if point.recall.mean >= target]
    return max(good, key=lambda point: point.qps[1].median, default=None)


def _answers(folder: Path, name: str) -> tuple[Rows, Scores]:
    with np.load(folder / ANSWERS / name, allow_pickle=False) as arrays:
        return arrays["rows"], arrays["scores"]


def _page(timings: Timings, points: list[Point]) -> Iterator[str]:
    rounds = len(timings.runs[0].p50) if timings.runs else 0
    versions = ", ".join(f"{name} {number}" for name, number in timings.versions.items())
    yield from ["# Nearest-neighbour indexes", "", f"{timings.data}.", ""]
    yield from (f"{note}.\n" for note in timings.notes)
    yield f"![Recall and queries per second]({PLOT})"
    yield ""
    for target in TARGETS:
        yield f"## Fastest setting of recall@{K} ≥ {target:.2f}"
        yield ""
        kinds = list(timings.query_counts)
        yield _row("index", "bytes a vector", *(f"{kind}, queries/s" for kind in kinds))
        yield _row("---", *["---:"] * (1 + len(kinds)))
        for name, built in timings.systems.items():
            cells = [_best(points, name, kind, target) for kind in kinds]
            yield _row(name, f"{built.saved_bytes / timings.n:,.0f}", *cells)
        yield ""
    yield from ["## All settings", ""]
    for kind, count in timings.query_counts.items():
        threads = sorted({number for point in points for number in point.qps})
        yield from [f"### {kind}, {count:,} queries", ""]
        heads = [f"queries/s, {number} thread{'s' * (number > 1)}" for number in threads]
        yield _row("index", "setting", f"recall@{K} [95%]", *heads, "p50 ms", "p99 ms")
        yield _row("---", "---", *["---:"] * (len(heads) + 3))
        for point in points:
            if point.queries == kind:
                rates = [f"{point.qps[number].median:,.0f}" for number in threads]
                alone = [f"{value.median:.2f}" for value in (point.p50_ms, point.p99_ms)]
                yield _row(point.system, point.setting, str(point.recall), *rates, *alone)
        yield ""
    yield from ["## Indexes", ""]
    yield _row("index", "what", "bytes a vector", "build s", "memory while building")
    yield _row("---", "---", "---:", "---:", "---:")
    for name, built in timings.systems.items():
        peak = "–" if built.peak_bytes is None else f"{built.peak_bytes / 1e6:,.0f} MB"
        size = f"{built.saved_bytes / timings.n:,.0f}"
        yield _row(name, f"`{built.label}`", size, f"{built.build_seconds:.1f}", peak)
    yield ""
    yield from (f"Skipped: {name}: {why}.\n" for name, why in timings.skipped.items())
    yield from [
        "## How it was measured",
        "",
        f"- On {timings.machine}; {versions}.",
        f"- FAISS's OpenBLAS runs its kernel for: {timings.faiss_kernel or 'not known'}.",
        f"- Built on {timings.build_threads} threads. Bytes a vector are those of the saved "
        "index; memory is what the process held at most while building, beyond what it held "
        "before (the vectors themselves are not in it).",
        f"- Times are medians of {rounds} rounds; each round goes through all indexes and "
        f"settings. Queries/s: all queries in one call. p50 and p99: {SINGLE} queries one by "
        "one on one thread.",
        f"- recall@{K} is the share of the {K} answers whose exact score (summed in float64) is "
        f"at least the {K}th best less {TIE:g}: among ties any will do. Brackets hold 95% "
        "intervals from 1,000 resamples of the queries.",
    ]


def _best(points: list[Point], system: str, kind: str, target: float) -> str:
    mine = [point for point in points if point.system == system and point.queries == kind]
    best = fastest(mine, target)
    if best is None:
        return f"– (at most {max(point.recall.mean for point in mine):.3f})"
    setting = "" if best.setting == DEFAULT else f", {best.setting}"
    return f"**{best.qps[1].median:,.0f}** ({best.recall.mean:.3f}{setting})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _draw(timings: Timings, points: list[Point], path: Path) -> None:
    plot = new_plot(6.6)
    panels = plot.subplots(1, len(timings.query_counts), sharey=True, squeeze=False)[0]
    lowest = min((point.recall.mean for point in points), default=0.0)
    names = list(timings.systems)
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    markers = {name: _MARKERS[number % len(_MARKERS)] for number, name in enumerate(names)}
    for axes, kind in zip(panels, timings.query_counts, strict=True):
        for name in names:
            mine = [point for point in points if point.system == name and point.queries == kind]
            ours = timings.systems[name].label.startswith(_OURS)
            axes.plot(
                [point.recall.mean for point in mine],
                [point.qps[1].median for point in mine],
                color="black" if ours else colours[name],
                marker=markers[name],
                markersize=10 if ours else 7,
                linewidth=2,
                clip_on=False,
                label=f"{name} ({_OURS})" if ours else name,
            )
        axes.set_title(f"{kind} queries", fontsize=14)
        axes.set_xlabel(f"recall@{K}", fontsize=13)
        # Most of what matters happens between .9 and 1, so that gets most of the room.
        axes.set_xscale("function", functions=(_stretched, _squeezed))
        axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        axes.set_xlim(max(0.0, lowest - 0.03), 1.0)
        axes.set_yscale("log")
        axes.tick_params(labelsize=12)
        axes.grid(which="major", color="#e4e6ea")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("queries per second in a batch, 1 thread", fontsize=13)
    plot.suptitle(timings.data, fontsize=13)
    handles, labels = panels[0].get_legend_handles_labels()
    plot.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=12, frameon=False)
    save(plot, path)


def _stretched(recall: NDArray[np.float64]) -> NDArray[np.float64]:
    stretched: NDArray[np.float64] = 1 - np.cbrt(1 - np.asarray(recall))
    return stretched


def _squeezed(place: NDArray[np.float64]) -> NDArray[np.float64]:
    squeezed: NDArray[np.float64] = 1 - (1 - np.asarray(place)) ** 3
    return squeezed
