"""The page of the study: a table of all measures, and a plot beside the paper's figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attributes.measures import Ints
from benchmarks.categories.data import LABEL, Data
from benchmarks.categories.measures import MEASURES, Figure, figures
from benchmarks.categories.study import ARMS, FRACTIONS, LAYERS, RECIPES, Tuning
from benchmarks.pruning.runs import Result
from benchmarks.retrieval.plots import new_plot, save
from benchmarks.statistics import Interval
from indexing.durable import replace_bytes

PAGE, FIGURES, PLOT = "report.md", "figures.json", "categories.png"
ORIGIN = "origin"
# Accuracy of origin, SimCSE and ConVIRT on 5% and on all of the labels, as printed.
PAPER = {
    "Beauty": {5: (0.526, 0.525, 0.599), 100: (0.661, 0.669, 0.676)},
    "Automotive": {5: (0.473, 0.499, 0.563), 100: (0.718, 0.720, 0.721)},
    "Electronics": {5: (0.319, 0.344, 0.483), 100: (0.615, 0.618, 0.626)},
}
PAIRS = (
    *((arm, ORIGIN) for arm in ARMS if arm != ORIGIN),
    ("convirt+mmltp", "convirt"),
)
_COLOURS = {
    **{"origin": "#6b6b6b", "simcse": "#d17a00", "convirt": "#0b57d0"},
    "convirt+mmltp": "#2e8540",
}


Figures = dict[tuple[str, int], dict[str, Figure]]  # by arm, or two of them, and percentage


@dataclass(frozen=True)
class Answers:
    """What runs say of the test products, by arm, percentage and seed; and by which recipe."""

    of: Mapping[tuple[str, int], Mapping[int, Ints]]
    recipes: Mapping[tuple[str, int], str]

    @classmethod
    def read(cls, results: Sequence[Result]) -> Answers:
        found: dict[tuple[str, int], dict[int, Ints]] = {}
        recipes: dict[tuple[str, int], str] = {}
        for result in results:
            arm, percent, recipes[arm, percent] = Tuning.of(result["arm"])
            answers = np.array(result["predicted"], np.int64)
            found.setdefault((arm, percent), {})[result["seed"]] = answers
        return cls(found, recipes)

    @property
    def arms(self) -> list[str]:
        return [arm for arm in ARMS if any(arm == known for known, _ in self.of)]

    @property
    def percentages(self) -> list[int]:
        return [percent for percent in FRACTIONS if any(percent == p for _, p in self.of)]

    def figures(self, arm: str, percent: int, data: Data) -> dict[str, Figure] | None:
        """Of an arm; None where it has no run."""
        runs = self.of.get((arm, percent))
        return figures(list(runs.values()), None, data) if runs else None

    def gains(self, arm: str, other: str, percent: int, data: Data) -> dict[str, Figure] | None:
        """What an arm has over another; None without a seed in common."""
        ours, theirs = self.of.get((arm, percent), {}), self.of.get((other, percent), {})
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return None
        return figures([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds], data)


def write_report(
    tunings: Sequence[Result], adaptations: Sequence[Result], data: Data, out: Path, command: str
) -> None:
    """Writes report.md, figures.json and categories.png to `out`."""
    answers = Answers.read(tunings)
    levels: Figures = {}
    gains: Figures = {}
    over_origin: Figures = {}
    for percent in answers.percentages:
        for arm in answers.arms:
            if (own := answers.figures(arm, percent, data)) is not None:
                levels[arm, percent] = own
        for arm, other in PAIRS:
            if (own := answers.gains(arm, other, percent, data)) is not None:
                gains[f"{arm} \N{MINUS SIGN} {other}", percent] = own
                if other == ORIGIN:
                    over_origin[arm, percent] = own
    lines = [
        f"# Categories of fashion ({LABEL}) by title, with few labels and many",
        "",
        _note(data),
        "",
        f"    {command}",
        "",
        "## Measures, with 95% intervals over test titles; seeds are averaged",
        "",
        *_levels(levels, answers),
        "",
        "## What one arm has over another on the same labels and seeds",
        "",
        "First interval: over test titles; second: over seeds (Student's t).",
        "",
        *_gains(gains),
        "",
        "## Beside the paper: accuracy, and what is gained over `origin`",
        "",
        *_paper(levels),
        "",
        "The paper starts from BERT-base and has ViT-L-16 for pictures, 108,000 to 201,000 "
        "products and 229 to 953 categories a catalog, which titles seldom name; here most titles "
        "name their category, so that there is less to gain.",
        "",
        "## The adaptations: titles of validation that find their picture, after each epoch",
        "",
        *_adaptations(adaptations),
        "",
        f"![accuracy and gain by share of the labels]({PLOT})",
        "",
    ]
    replace_bytes(out / PAGE, "\n".join(lines).encode())
    replace_bytes(out / FIGURES, (json.dumps(_plain(levels, gains), indent=2) + "\n").encode())
    _plot(levels, over_origin, out / PLOT)


def _note(data: Data) -> str:
    return (
        f"{len(data.unlabelled):,} products to adapt to without labels, {len(data.train):,} to "
        f"train on, {len(data.validation):,} of validation, {len(data.test):,} of test; no title "
        f"is in two parts. {len(data.categories)} categories, {int(data.head.sum())} in the head. "
        f"All arms begin with the first {LAYERS} layers of MiniLM (all-MiniLM-L6-v2), which knows "
        "nothing of this catalog. Each is fine-tuned in as many steps, by that of "
        f"{len(RECIPES)} recipes ({', '.join(RECIPES)}) which does best on validation with the "
        "first seed. Pictures are seen through a MobileNetV2 trained on ImageNet. `builtin`, which "
        "has seen titles of this catalog, takes no part; what cleans titles was trained on the "
        "first part alone."
    )


def _levels(levels: Figures, answers: Answers) -> list[str]:
    lines = [f"| labels | arm | seeds | {' | '.join(MEASURES)} |", "|---" * 7 + "|"]
    for (arm, percent), own in levels.items():
        cells = " | ".join(str(own[name].titles) for name in MEASURES)
        named, seeds = f"{arm} ({answers.recipes[arm, percent]})", len(answers.of[arm, percent])
        lines.append(f"| {percent}% | {named} | {seeds} | {cells} |")
    return lines


def _gains(gains: Figures) -> list[str]:
    lines = [f"| labels | arms | {' | '.join(MEASURES)} |", "|---" * 6 + "|"]
    for (arm, percent), own in gains.items():
        cells = " | ".join(
            f"{_signed(own[name].titles)} {_bounds(own[name].seeds)}" for name in MEASURES
        )
        lines.append(f"| {percent}% | {arm} | {cells} |")
    return lines


def _paper(levels: Figures) -> list[str]:
    lines = ["| catalog | labels | origin | SimCSE | ConVIRT |", "|---" * 5 + "|"]
    for name, own in PAPER.items():
        for percent, (origin, *others) in own.items():
            cells = " | ".join(f"{value:.3f} ({value - origin:+.3f})" for value in others)
            lines.append(f"| {name}, printed | {percent}% | {origin:.3f} | {cells} |")
    for percent in (5, 100):
        found = [levels.get((arm, percent)) for arm in (ORIGIN, "simcse", "convirt")]
        if any(own is None for own in found):
            continue
        origin, *others = (own["accuracy"].titles.mean for own in found if own is not None)
        cells = " | ".join(f"{value:.3f} ({value - origin:+.3f})" for value in others)
        lines.append(f"| fashion, here | {percent}% | {origin:.3f} | {cells} |")
    return lines


def _adaptations(adaptations: Sequence[Result]) -> list[str]:
    lines = ["| arm | seed | loss | R@1 | R@10 |", "|---" * 5 + "|"]
    for result in adaptations:
        columns = [
            " ".join(f"{done[key]:.3f}" for done in result["rounds"] if key in done)
            for key in ("loss", "title -> picture R@1", "title -> picture R@10")
        ]
        lines.append(f"| {result['arm']} | {result['seed']} | {' | '.join(columns)} |")
    return lines


def _plain(*parts: Figures) -> dict[str, Any]:
    return {
        kind: {
            f"{arm} {percent}%": {name: asdict(figure) for name, figure in own.items()}
            for (arm, percent), own in part.items()
        }
        for kind, part in zip(("levels", "gains"), parts, strict=True)
    }


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.3f} {_bounds(interval)}"


def _bounds(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "[one seed]"
    return f"[{interval.low:+.3f}, {interval.high:+.3f}]"


def _plot(levels: Figures, gains: Figures, file: Path) -> None:
    """Left accuracy and the paper's, right what is gained over `origin`, by share of labels."""
    plot = new_plot(4.6)
    left, right = plot.subplots(1, 2)
    for axes, part in ((left, levels), (right, gains)):
        for number, arm in enumerate(dict.fromkeys(arm for arm, _ in part)):
            own = {percent: f["accuracy"].titles for (a, percent), f in part.items() if a == arm}
            # Side by side, where intervals would lie upon one another.
            places = [percent * 1.03 ** (number - 1) for percent in own]
            axes.plot(places, [100 * i.mean for i in own.values()], "o-", color=_COLOURS[arm],
                      label=arm, markersize=4)  # fmt: skip
            for place, i in zip(places, own.values(), strict=True):
                axes.plot([place, place], [100 * i.low, 100 * i.high], color=_COLOURS[arm])
        axes.set_xscale("log")
        axes.set_xticks(FRACTIONS, [f"{percent}%" for percent in FRACTIONS])
        axes.minorticks_off()
        axes.grid(color="#e4e6ea")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("share of the labels")
    for name, marker in zip(PAPER, "s^D", strict=True):
        for place, arm in enumerate((ORIGIN, "simcse", "convirt")):
            percents = list(PAPER[name])
            values = [100 * PAPER[name][percent][place] for percent in percents]
            origins = [100 * PAPER[name][percent][0] for percent in percents]
            style = {"linestyle": "", "marker": marker, "mfc": "white", "color": _COLOURS[arm]}
            left.plot(percents, values, **style)
            if arm != ORIGIN:
                gained = [value - origin for value, origin in zip(values, origins, strict=True)]
                right.plot(percents, gained, **style)
    right.axhline(0, color="#b0b3b8", linewidth=1)
    left.set_title("accuracy, %; hollow: as printed", loc="left", fontsize=10)
    right.set_title("points over origin, 95% over titles", loc="left", fontsize=10)
    if levels:
        left.legend(frameon=False, fontsize=8, loc="lower right")
    save(plot, file)
