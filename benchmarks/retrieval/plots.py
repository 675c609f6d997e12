"""The plots of a report: recall curves, and one measure by category.

Figures are built without pyplot, so nothing global changes, and are saved without the version
of matplotlib: the same scores give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.retrieval.scored import Figure, SystemScores, TaskScores
from indexing.durable import write_atomically
from indexing.errors import MissingDependencyError
from indexing.messages import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Plot

CATEGORIES = 20  # at most so many are shown
SYSTEMS = 5  # at most so many stand beside one another in a category
_WIDTH, _DPI = 10.0, 120  # inches, and pixels an inch
_NAME, _TITLE = 36, 90  # characters at most
_CUTS = (1, 2, 5, 10, 20, 50, 100)
_COLOURS = (
    *("#0b57d0", "#d1495b", "#2e8540", "#8e44ad", "#d17a00"),
    *("#00838f", "#6d4c41", "#c2185b", "#5c6b73", "#827717"),
)
_SOFT, _PALE = "#6b6b6b", "#e4e6ea"


@dataclass(frozen=True)
class ByCategory:
    """What is shown by category: one measure of some systems."""

    measure: str
    systems: list[SystemScores]
    rows: list[tuple[str, dict[str, Figure]]]  # category, figure by system; most queries first
    categories: int  # of the task, shown or not


def in_order(systems: Sequence[SystemScores]) -> list[SystemScores]:
    """Systems as they came, each with its index route right after its exact one."""
    names = list(dict.fromkeys(line.system for line in systems))
    return sorted(systems, key=lambda line: (names.index(line.system), line.route != "exact"))


def by_category(task: TaskScores) -> ByCategory | None:
    """R@10, or else the first measure there is, of the largest categories; None without any.

    A system stands for its exact route, or for its index route where that is all there is.
    """
    lines: dict[str, SystemScores] = {}
    for line in in_order(task.systems):
        if line.categories:
            lines.setdefault(line.system, line)
    found = [(name, scores) for name, line in lines.items() for scores in line.categories]
    measures = list(dict.fromkeys(key for _, scores in found for key in scores.figures))
    if not measures:
        return None
    measure = "R@10" if "R@10" in measures else measures[0]
    rows: dict[str, dict[str, Figure]] = {}
    for name, scores in found:
        if measure in scores.figures:
            rows.setdefault(scores.category, {})[name] = scores.figures[measure]
    largest = sorted(rows.items(), key=lambda row: (-_queries(row[1]), row[0]))
    return ByCategory(measure, list(lines.values())[:SYSTEMS], largest[:CATEGORIES], len(rows))


def label(system: str, route: str) -> str:
    """A system as people read it: the index route is named, the exact one is not."""
    return f"{system} (index)" if route == "index" else system


def recall_plot(task: TaskScores) -> Plot:
    """R@K against K, one line a system; the index routes are dashed.

    Raises MissingDependencyError without matplotlib.
    """
    lines = [line for line in in_order(task.systems) if line.curve]
    height = max(5.2, 1.6 + 0.22 * len(lines))
    plot = new_plot(height)
    plot.suptitle(_name(task.title, _TITLE), x=0.01, ha="left", fontsize=12, parse_math=False)
    axes, colours = _axes(plot), _colours(task)
    for line in lines:
        axes.plot(
            range(1, len(line.curve) + 1),
            line.curve,
            color=colours[line.system],
            linestyle="-" if line.route == "exact" else "--",
            linewidth=1.8,
        )
    last = max(len(line.curve) for line in lines)
    cuts = [cut for cut in _CUTS if cut <= last]
    axes.set_xscale("log")
    axes.set_xticks(cuts, [str(cut) for cut in cuts])
    axes.minorticks_off()
    axes.set_xlim(0.95, last)
    top = min(1.01, 1.05 * max(max(line.curve) for line in lines) or 1.01)
    axes.set_ylim(0, top)
    axes.grid(color=_PALE)
    axes.set_xlabel("K (log scale)")
    axes.set_ylabel("R@K")
    # Names stand at the ends of the lines; a thin stroke leads there where they had to move.
    ends = [line.curve[-1] for line in lines]
    places = _spread(ends, 0.2 / (height - 1.1) * top, top)
    for line, end, place in zip(lines, ends, places, strict=True):
        axes.annotate(
            label(_name(line.system), line.route),
            (len(line.curve), end),
            (1.03, place),
            textcoords=("axes fraction", "data"),
            color=colours[line.system],
            va="center",
            arrowprops={
                **{"arrowstyle": "-", "color": colours[line.system], "linewidth": 0.7},
                **{"relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 1},
            },
            parse_math=False,
        )
    return plot


def category_plot(task: TaskScores, shown: ByCategory) -> Plot:
    """One measure with its 95% interval by category, the systems below one another.

    A category of one product has no interval, and a hollow dot.

    Raises MissingDependencyError without matplotlib.
    """
    step = 0.13 * len(shown.systems) + 0.16  # inches a category
    plot = new_plot(1.5 + step * len(shown.rows))
    axes, colours = _axes(plot), _colours(task)
    for number, line in enumerate(shown.systems):
        shift = (number - (len(shown.systems) - 1) / 2) * 0.13 / step
        colour = colours[line.system]
        for row, (_, figures) in enumerate(shown.rows):
            if line.system not in figures:
                continue
            figure, place = figures[line.system], row + shift
            several = figure.products > 1
            if several:
                axes.plot([figure.micro.low, figure.micro.high], [place] * 2, color=colour)
            inside = colour if several else "white"
            axes.plot(figure.micro.mean, place, "o", color=colour, mfc=inside, markersize=5)
    for row in range(1, len(shown.rows)):
        axes.axhline(row - 0.5, color=_PALE, linewidth=0.8)
    rows = [f"{_name(category)}   n = {_queries(figures):,}" for category, figures in shown.rows]
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.01, 1.01)
    axes.grid(axis="x", color=_PALE)
    axes.set_xlabel(
        f"{shown.measure} of n queries, 95% interval; hollow: one product, so no interval",
        parse_math=False,
    )
    names = [_name(label(line.system, line.route)) for line in shown.systems]
    handles = [axes.plot([], [], "o-", color=colours[line.system])[0] for line in shown.systems]
    legend = plot.legend(
        handles,
        [str(number) for number in range(len(handles))],
        loc="outside upper left",
        ncols=len(names) if sum(len(name) + 8 for name in names) < 110 else 2,
        frameon=False,
        borderaxespad=0.4,
        title="title",
        title_fontsize=12,
        alignment="left",
    )
    # Set afterwards: a legend drops names that begin with "_" and reads "$" as mathematics.
    texts = [legend.get_title(), *legend.get_texts()]
    for text, name in zip(texts, [_name(task.title, _TITLE), *names], strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return plot


def save(plot: Plot, path: Path) -> None:
    """Writes the PNG, without naming the version that drew it. Raises OSError."""
    write_atomically(
        path, lambda file: plot.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    )


def new_plot(height: float) -> Plot:
    """An empty plot of this height in inches. Raises MissingDependencyError."""
    try:
        from matplotlib.figure import Figure as Plot
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib, which draws the report's plots, is not installed: "
            "run `pip install 'shoplens[bench]'`"
        ) from error
    return Plot(figsize=(_WIDTH, height), layout="constrained")


def _axes(plot: Plot) -> Axes:
    axes = plot.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_SOFT)
    axes.tick_params(colors=_SOFT, labelcolor="black")
    axes.set_axisbelow(True)
    return axes


def _colours(task: TaskScores) -> dict[str, str]:
    """A colour for each system, the same in all plots of a task."""
    names = dict.fromkeys(line.system for line in in_order(task.systems))
    return {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}


def _queries(figures: dict[str, Figure]) -> int:
    return max(figure.queries for figure in figures.values())


def _spread(values: Sequence[float], gap: float, top: float) -> list[float]:
    """Places near `values`, in the same order, at least `gap` apart, from 0 to `top`."""
    order = sorted(range(len(values)), key=lambda number: (values[number], -number))
    places = list(values)
    lowest, highest = 0.0, top
    for number in order:
        places[number] = max(places[number], lowest)
        lowest = places[number] + gap
    for number in reversed(order):
        places[number] = min(places[number], highest)
        highest = places[number] - gap
    return places


def _name(text: str, longest: int = _NAME) -> str:
    """A name on one line; what is too long loses its middle."""
    text = one_line(text)
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2 - 1].rstrip()}…{text[-longest // 2 :].lstrip()}"
