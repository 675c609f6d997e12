"""The page of the loss experiment: recalls, differences from InfoNCE, shape and cost; a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.losses.cost import Cost
from benchmarks.losses.study import CONDITIONS, TRIED
from benchmarks.pruning.paired import t_interval
from benchmarks.pruning.runs import Result
from benchmarks.retrieval.plots import new_plot, save
from benchmarks.statistics import Interval, cluster_bootstrap
from indexing.durable import replace_bytes

PAGE, PLOT = "report.md", "losses.png"
BASELINE = "infonce"
TASKS = {"picture": "another view → picture on white", "title": "noisy title → picture"}
_CUTS = (1, 5, 10)
_NOTE = (
    "One small CLIP, one start, the same pairs seen; seeds are other catalogs and orders. "
    "Differences from InfoNCE on the same seeds: in brackets the 95% interval over test products "
    "(resampled whole, each the mean over seeds), in parentheses Student's over seeds."
)


def write_report(results: Sequence[Result], costs: Sequence[Cost], out: Path, command: str) -> None:
    """Writes report.md and losses.png."""
    lines = ["# Which loss for products?", "", _NOTE, "", f"    {command}", ""]
    for condition in CONDITIONS:
        losses = losses_of(results, condition)
        if losses:
            lines += [f"## Pictures a product in training: {condition}", ""]
            for task, asked in TASKS.items():
                lines += [asked, "", *_table(results, condition, losses, task), ""]
            lines += [*_shapes(results, condition, losses), ""]
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


def _products(results: Sequence[Result], task: str) -> int:
    """How many products the test has: each is asked by one title."""
    return len(results[0]["title ranks"])


def _ranks(results: Sequence[Result], arm: str, task: str) -> dict[int, list[float]]:
    return {r["seed"]: r[f"{task} ranks"] for r in results if r["arm"] == arm}


def _values(results: Sequence[Result], arm: str, measure: str) -> list[float]:
    return [r[measure] for r in results if r["arm"] == arm]


def _table(
    results: Sequence[Result], condition: str, losses: Sequence[str], task: str
) -> list[str]:
    names = [f"R@{k}" for k in _CUTS]
    heads = ["loss", "seeds", *names, *(f"{name} over InfoNCE" for name in names)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for loss in losses:
        arm = f"{loss} / {condition}"
        columns = [_values(results, arm, f"{task} R@{k}") for k in _CUTS]
        cells = [loss, str(len(columns[0])), *(f"{np.mean(column):.3f}" for column in columns)]
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


def _shapes(results: Sequence[Result], condition: str, losses: Sequence[str]) -> list[str]:
    names = ("gap", "alignment", "uniformity")
    lines = [f"| loss | {' | '.join(names)} |", "|---|---|---|---|"]
    for loss in losses:
        values = [np.mean(_values(results, f"{loss} / {condition}", name)) for name in names]
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
