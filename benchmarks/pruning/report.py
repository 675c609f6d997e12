"""The page of a pruning experiment: tables, a plot, and what was kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.pruning.paired import difference, t_interval, values_of
from benchmarks.pruning.runs import Result
from benchmarks.retrieval.plots import new_plot, save
from benchmarks.statistics import Interval
from indexing.durable import replace_bytes

PAGE, PLOT = "report.md", "pruning.png"


@dataclass(frozen=True)
class Experiment:
    """What a page says of an experiment.

    Attributes:
        tasks: name of a task in the results, and what it asks.
        arms: name and meaning, in the order of the rows.
        pairs: (arm, other) whose difference is shown.
        kinds: of words, in the order of the columns and bars.
    """

    title: str
    note: str
    tasks: dict[str, str]
    arms: dict[str, str]
    pairs: list[tuple[str, str]]
    kinds: list[str]
    ours: tuple[str, ...] = ("calibrated", "second calibrated")  # marked in the plot


def write_report(
    experiment: Experiment, results: Sequence[Result], out: Path, command: str
) -> None:
    """Writes report.md and pruning.png."""
    lines = [f"# {experiment.title}", "", experiment.note, "", f"    {command}", ""]
    for task, asked in experiment.tasks.items():
        lines += [f"## {asked}", "", *_recalls(experiment, results, task), ""]
        lines += [*_differences(experiment, results, task), ""]
    lines += ["## Words kept", "", *_kept(experiment, results), ""]
    lines += [f"![differences and kept words]({PLOT})", ""]
    text = "\n".join(lines)
    replace_bytes(out / PAGE, text.encode())
    _plot(experiment, results, out / PLOT)


def arms_of(experiment: Experiment, results: Sequence[Result]) -> list[str]:
    """The arms that have results, in the order of the experiment."""
    found = {result["arm"] for result in results}
    return [arm for arm in experiment.arms if arm in found]


def _recalls(experiment: Experiment, results: Sequence[Result], task: str) -> list[str]:
    lines = ["| arm | seeds | R@1 | R@5 | R@10 |", "|---|---|---|---|---|"]
    for arm in arms_of(experiment, results):
        columns = [values_of(results, arm, f"{task} R@{k}") for k in (1, 5, 10)]
        cells = [_mean(list(column.values())) for column in columns]
        lines.append(f"| {arm} | {len(columns[0])} | {' | '.join(cells)} |")
    return lines


def _differences(experiment: Experiment, results: Sequence[Result], task: str) -> list[str]:
    lines = ["| difference on the same seeds | R@1 | R@5 | R@10 |", "|---|---|---|---|"]
    for arm, other in experiment.pairs:
        found = [difference(results, arm, other, f"{task} R@{k}") for k in (1, 5, 10)]
        if all(interval is not None for interval in found):
            cells = " | ".join(_signed(interval) for interval in found if interval is not None)
            lines.append(f"| {arm} \N{MINUS SIGN} {other} | {cells} |")
    return lines


def _kept(experiment: Experiment, results: Sequence[Result]) -> list[str]:
    names = ["visual", "noise", "all", *experiment.kinds]
    lines = [f"| arm | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for arm, kept in _kept_shares(experiment, results).items():
        cells = [f"{kept[name]:.2f}" if name in kept else "" for name in names]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def _kept_shares(experiment: Experiment, results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Mean over seeds of the kept share of each kind, of the arms that prune."""
    shares = {}
    for arm in arms_of(experiment, results):
        rows = [r["kept"] for r in results if r["arm"] == arm and "kept" in r]
        if rows:
            names = dict.fromkeys(name for row in rows for name in row)
            shares[arm] = {
                name: float(np.mean([row[name] for row in rows if name in row])) for name in names
            }
    return shares


def _mean(values: Sequence[float]) -> str:
    interval = t_interval(values) if values else None
    if interval is None or math.isnan(interval.low):
        return f"{interval.mean:.3f}" if interval else ""
    return str(interval)


def _signed(interval: Interval) -> str:
    bounds = "" if math.isnan(interval.low) else f" [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{interval.mean:+.3f}{bounds}"


def _plot(experiment: Experiment, results: Sequence[Result], file: Path) -> None:
    """Left what each arm gains over `standard`, right what share of which words is kept."""
    arms = [arm for arm in arms_of(experiment, results) if arm != "standard"]
    plot = new_plot(0.9 + 0.45 * max(len(arms), 6))
    gains, kept = plot.subplots(1, 2, width_ratios=(1, 1.2))
    task, asked = next(iter(experiment.tasks.items()))
    for row, arm in enumerate(arms):
        gain = difference(results, arm, "standard", f"{task} R@5")
        if gain is None:
            continue
        colour = "#0b57d0" if arm in experiment.ours else "#6b6b6b"
        if not math.isnan(gain.low):
            gains.plot([100 * gain.low, 100 * gain.high], [row, row], color=colour, linewidth=2)
        gains.plot([100 * gain.mean], [row], "o", color=colour)
    gains.axvline(0, color="#b0b3b8", linewidth=1)
    gains.set_yticks(range(len(arms)), arms)
    gains.invert_yaxis()
    gains.set_xlabel("points of R@5 over standard, 95% over seeds")
    gains.set_title(asked, loc="left", fontsize=10)
    shares = _kept_shares(experiment, results)
    kinds, width = range(len(experiment.kinds)), 0.8 / max(1, len(shares))
    palette = ("#d1495b", "#d17a00", "#0b57d0", "#2e8540")
    for number, (arm, found) in enumerate(shares.items()):
        places = [kind + (number - (len(shares) - 1) / 2) * width for kind in kinds]
        heights = [100 * found.get(kind, 0.0) for kind in experiment.kinds]
        kept.bar(places, heights, width, label=arm, color=palette[number % len(palette)])
    kept.set_xticks(kinds, experiment.kinds, rotation=30, ha="right")
    kept.set_title("words kept, %", loc="left", fontsize=10)
    kept.set_ylim(0, 118)  # room for the legend
    if shares:
        kept.legend(frameon=False, fontsize=8, loc="upper center", ncols=len(shares))
    for axes in (gains, kept):
        axes.spines[["top", "right"]].set_visible(False)
    save(plot, file)
