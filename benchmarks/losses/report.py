"""What the loss experiment writes: findings, recalls, shape and cost of each loss, and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.losses.cost import Cost
from benchmarks.losses.study import CONDITIONS, TRIED
from benchmarks.pruning.paired import t_interval, values_of
from benchmarks.pruning.runs import Result
from benchmarks.retrieval.plots import new_plot, save
from benchmarks.statistics import Interval, cluster_bootstrap
from indexing.durable import replace_bytes

FINDINGS, PAGE, PLOT = "findings.md", "report.md", "losses.png"
BASELINE = "infonce"
TASKS = {"picture": "another view → picture on white", "title": "noisy title → picture"}
_CUTS = (1, 5, 10)
_NOTE = (
    "One small CLIP, one start, the same pairs seen; seeds are other catalogs and orders. "
    "Differences from InfoNCE on the same seeds: in brackets the 95% interval over test products "
    "(resampled whole, each the mean over seeds), in parentheses Student's over seeds."
)


def write_report(
    results: Sequence[Result], start: Result, costs: Sequence[Cost], out: Path, command: str
) -> None:
    """Writes findings.md, report.md and losses.png.

    Args:
        start: what was measured of the model that all were trained from.
    """
    replace_bytes(out / FINDINGS, "\n".join(findings(results, start)).encode())
    lines = ["# Which loss for products?", "", _NOTE, "", f"    {command}", ""]
    for condition in CONDITIONS:
        losses = losses_of(results, condition)
        if losses:
            lines += [f"## Pictures a product in training: {condition}", ""]
            for task, asked in TASKS.items():
                lines += [asked, "", *_table(results, start, condition, losses, task), ""]
            lines += [*_shapes(results, start, condition, losses), ""]
    if costs:
        lines += ["## What a step costs", "", *_costs(costs), ""]
    lines += [f"![differences from InfoNCE]({PLOT})", ""]
    replace_bytes(out / PAGE, "\n".join(lines).encode())
    _plot(results, out / PLOT)


def losses_of(results: Sequence[Result], condition: str) -> list[str]:
    """The losses that were tried under a condition, in the order of TRIED."""
    arms = {result["arm"] for result in results}
    return [loss for loss in TRIED if f"{loss} / {condition}" in arms]


def gain(
    results: Sequence[Result], condition: str, loss: str, task: str, k: int
) -> tuple[Interval, Interval] | None:
    """What a loss has over InfoNCE in Recall@k, on the same seeds: with the interval over test
    products, and over seeds; None without a seed in common."""
    ours, theirs = (_ranks(results, f"{name} / {condition}", task) for name in (loss, BASELINE))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    changes = [
        (np.array(ours[seed]) <= k).astype(float) - (np.array(theirs[seed]) <= k) for seed in seeds
    ]
    mean = np.mean(changes, axis=0)
    products = np.arange(len(mean)) // (len(mean) // _products(results, task))
    return cluster_bootstrap(mean, products), t_interval([float(c.mean()) for c in changes])


def findings(results: Sequence[Result], start: Result) -> list[str]:
    """In words, of R@5: which losses differ from InfoNCE by intervals that both exclude 0, over
    products and over seeds, and which leave the model no better than it was."""
    lines = ["# Which loss for products? What was found", ""]
    for condition in CONDITIONS:
        losses = losses_of(results, condition)
        for task, asked in TASKS.items() if losses else ():
            lines.append(f"- {condition}; {asked}: {_found(results, condition, losses, task)}")
            before = start[f"{task} R@5"]
            means = {n: _mean(results, f"{n} / {condition}", f"{task} R@5") for n in losses}
            if idle := [name for name, mean in means.items() if mean <= before]:
                lines.append(f"  No better than the start ({before:.3f}): {', '.join(idle)}.")
    seeds = len({result["seed"] for result in results})
    return [
        *lines,
        "",
        f"R@5, {seeds} seeds. Better and worse: both 95% intervals of the difference from InfoNCE "
        "exclude 0, that over test products and Student's over seeds. They are of one comparison "
        f"each; {PAGE} has all of them.",
        "",
    ]


def _found(results: Sequence[Result], condition: str, losses: Sequence[str], task: str) -> str:
    gains = {
        loss: found
        for loss in losses
        if loss != BASELINE and (found := gain(results, condition, loss, task, 5)) is not None
    }
    better = {n: f for n, f in gains.items() if all(interval.low > 0 for interval in f)}
    worse = {n: f for n, f in gains.items() if all(interval.high < 0 for interval in f)}
    said = [
        f"{word} than InfoNCE: "
        + (", ".join(f"{name} {_gain(*found)}" for name, found in some.items()) or "none")
        for word, some in (("better", better), ("worse", worse))
    ]
    return f"{'; '.join(said)} (of {len(gains)})."


def _products(results: Sequence[Result], task: str) -> int:
    """How many products the test has: each is asked by one title."""
    return len(results[0]["title ranks"])


def _ranks(results: Sequence[Result], arm: str, task: str) -> dict[int, list[float]]:
    return {r["seed"]: r[f"{task} ranks"] for r in results if r["arm"] == arm}


def _mean(results: Sequence[Result], arm: str, measure: str) -> float:
    """NaN where no run has the measure."""
    values = list(values_of(results, arm, measure).values())
    return float(np.mean(values)) if values else math.nan


def _table(
    results: Sequence[Result], start: Result, condition: str, losses: Sequence[str], task: str
) -> list[str]:
    names = [f"R@{k}" for k in _CUTS]
    heads = ["loss", "seeds", *names, *(f"{name} over InfoNCE" for name in names)]
    before = ["start", "", *(f"{start[f'{task} R@{k}']:.3f}" for k in _CUTS), *[""] * len(_CUTS)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", f"| {' | '.join(before)} |"]
    for loss in losses:
        arm = f"{loss} / {condition}"
        means = [_mean(results, arm, f"{task} R@{k}") for k in _CUTS]
        seeds = sum(result["arm"] == arm for result in results)
        cells = [loss, str(seeds), *(f"{mean:.3f}" for mean in means)]
        for k in _CUTS:
            found = None if loss == BASELINE else gain(results, condition, loss, task, k)
            cells.append("" if found is None else _gain(*found))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _gain(over_products: Interval, over_seeds: Interval) -> str:
    text = f"{over_products.mean:+.3f} [{over_products.low:+.3f}, {over_products.high:+.3f}]"
    if np.isnan(over_seeds.low):
        return text
    return f"{text} ({over_seeds.low:+.3f}, {over_seeds.high:+.3f})"


def _shapes(
    results: Sequence[Result], start: Result, condition: str, losses: Sequence[str]
) -> list[str]:
    names = ("gap", "separability", "alignment", "uniformity")
    rows = {"start": [start[name] for name in names]}
    for loss in losses:
        rows[loss] = [_mean(results, f"{loss} / {condition}", name) for name in names]
    lines = [f"| loss | {' | '.join(names)} |", f"|{'---|' * (1 + len(names))}"]
    for loss, values in rows.items():
        lines.append(f"| {loss} | {' | '.join(f'{value:.2f}' for value in values)} |")
    return lines


def _costs(costs: Sequence[Cost]) -> list[str]:
    lines = ["| loss | batch | time, InfoNCE's is 1 | memory, MB |", "|---|---|---|---|"]
    for cost in costs:
        low, high = min(cost.ratios), max(cost.ratios)
        ratio = f"{np.median(cost.ratios):.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {cost.loss} | {cost.batch:,} | {ratio} | {cost.memory / 1e6:.0f} |")
    return lines


def _plot(results: Sequence[Result], file: Path) -> None:
    """Points of R@5 over InfoNCE, picture to picture, by condition."""
    shown = [condition for condition in CONDITIONS if losses_of(results, condition)]
    plot = new_plot(4.2)
    if not shown:
        save(plot, file)
        return
    for number, axes in enumerate(plot.subplots(1, len(shown), sharey=True, squeeze=False)[0]):
        for row, loss in enumerate(TRIED):
            found = gain(results, shown[number], loss, "picture", 5)
            if loss == BASELINE or found is None:
                continue
            colour = "#0b57d0" if found[0].low > 0 else "#6b6b6b"
            bounds = [100 * found[0].low, 100 * found[0].high]
            axes.plot(bounds, [row, row], color=colour, linewidth=2)
            axes.plot([100 * found[0].mean], [row], "o", color=colour)
        axes.axvline(0, color="#b0b3b8", linewidth=1)
        axes.set_yticks(range(len(TRIED)), list(TRIED))
        axes.set_title(shown[number], loc="left", fontsize=10)
        axes.set_xlabel("points of R@5")
        axes.spines[["top", "right"]].set_visible(False)
    plot.axes[0].invert_yaxis()
    save(plot, file)
