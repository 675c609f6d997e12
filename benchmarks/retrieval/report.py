"""The report of a benchmark: `report.json`, and a page with plots for people."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from benchmarks.retrieval.plots import (
    by_category,
    category_plot,
    in_order,
    label,
    recall_plot,
    save,
)
from benchmarks.retrieval.scored import (
    Comparison,
    Figure,
    Range,
    Scores,
    SystemScores,
    TaskScores,
)
from benchmarks.retrieval.worst import WORST, draw_worst
from indexing.durable import replace_bytes
from indexing.messages import one_line

Mean = Literal["micro", "macro"]

_DECIMALS = 6
_MAIN = ("R@1", "R@5", "R@10", "AP", "RR", "nDCG@10")
_MACRO = ("R@1", "R@5", "R@10")
_HEADS = {"AP": "mAP (AP)", "RR": "MRR (RR)"}
_NOTHING = "–"
_FOOT = "The same as data, with the seconds that each step took: [report.json](report.json)."
# What Markdown would take for a sign; "_" inside a word and "@" are safe, and read better bare.
_SIGNS = re.compile(r"[\\`*\[\]<>|#~$&!]|(?<![^\W_])_|_(?![^\W_])")

_HOW_TO_READ = """\
- **R@K** is the share of queries with a right answer among the first K. Each query counts the
  same (*micro*), except where a table says *macro*: there each product counts the same.
- **Brackets** hold 95% intervals from {resamples:,} resamples of products (seed {seed}); all
  queries of a product are drawn together.
- **Ties**: half of the tied wrong answers, rounded up, stand before a right one.
- **Route**: *exact* compares a query with the whole gallery; *index* goes through the index
  under test. What the index loses is the difference to the exact line above it.
- ***strict*** figures count duplicates (the same thing under another id) as wrong answers; in
  all others they are taken out. ***lenient*** figures take a lower grade for right already.
- **R_frac@K** counts the right answers among the first K, of min(K, all right ones); **any@K** is
  R@K over queries where the rest is over trials; **error@1** is the share of first answers that
  are judged wrong; **judged nDCG** ranks judged answers alone.
- With fewer than a hundred products, or figures near 0 or 1, 95% intervals hold the truth in 92 to
  94% of cases (measured in simulations)."""


def write_report(scores: Scores, folder: Path) -> Path:
    """Writes `report.json`, `report.md` and, in `folder/TASK/`, the pictures of the page.

    The pictures are `recall-curves.png`, `categories.png` and `worst.png`, each where the
    scores have something to show. Numbers are rounded to 6 decimals first (p-values to 6
    significant digits), and the page is made from those: equal scores give equal bytes.
    `folder/TASK/` must hold the `queries.parquet` and `gallery.parquet` of `answers.py`.

    Returns the path of `report.md`. Raises MissingDependencyError without matplotlib and
    BenchmarkError where those tables cannot be read, both with `report.json` written already,
    and OSError.
    """
    scores = Scores.model_validate(_rounded(scores.model_dump()))
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "report.json", scores.model_dump_json(indent=2))
    sections = [_section(task, folder / task.name) for task in scores.tasks]
    page = folder / "report.md"
    _write(page, "\n\n".join([_head(scores), *sections, _FOOT]))
    return page


def _head(scores: Scores) -> str:
    how = _HOW_TO_READ.format(resamples=scores.resamples, seed=scores.seed)
    return "\n\n".join(
        [
            "# Retrieval benchmark",
            f"Made by shoplens {_escaped(scores.shoplens_version)} with",
            textwrap.indent(scores.command.strip(), "    "),
            how,
        ]
    )


def _section(task: TaskScores, folder: Path) -> str:
    """A task's part of the page; draws its pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    title, lines = _escaped(task.title), in_order(task.systems)
    parts = [f"## {title}", f"`{one_line(task.name)}`. {_escaped(task.note)}".rstrip()]
    parts += [_counts(task), "### Results", _figures(lines, _MAIN, "micro", _HEADS)]
    parts += ["\n".join(f"- {_line(line)}: {_escaped(line.note)}" for line in lines if line.note)]
    parts += ["Each product counts the same (macro):"]
    parts += [_figures(lines, _MACRO, "macro", {name: f"macro {name}" for name in _MACRO})]
    parts += [_others(lines), _comparisons(task.comparisons)]
    if any(line.curve for line in lines):
        save(recall_plot(task), folder / "recall-curves.png")
        parts += ["### Recall curves", _picture(f"R@K against K: {title}", task, "recall-curves")]
    parts += [_categories(task, folder), _worst(task, folder)]
    return "\n\n".join(part for part in parts if part)


def _counts(task: TaskScores) -> str:
    heads = ["queries", "their products", "gallery", "its products"]
    heads += ["right answers", "removed pairs", "duplicate pairs"]
    counts = [task.queries, task.query_products, task.gallery, task.gallery_products]
    counts += [task.right_answers, task.removed, task.duplicates]
    left_out = [f"- left out, {_escaped(why)}: {count:,}" for why, count in task.left_out.items()]
    return "\n".join([_table(heads, [[f"{count:,}" for count in counts]]), "", *left_out]).rstrip()


def _figures(
    lines: Sequence[SystemScores], names: Sequence[str], mean: Mean, heads: dict[str, str]
) -> str:
    """Systems by measures, of the measures that any of them has."""
    present = [name for name in names if any(name in line.figures for line in lines)]
    rows = []
    for line in lines:
        figures = [line.figures.get(name) for name in present]
        rows.append([_escaped(line.system), line.route, *(_cell(one, mean) for one in figures)])
    return _table(["system", "route", *(heads.get(name, name) for name in present)], rows, text=2)


def _others(lines: Sequence[SystemScores]) -> str:
    """What is in no other table, measures by systems: there are many of them."""
    names = dict.fromkeys(name for line in lines for name in line.figures if name not in _MAIN)
    if not names:
        return ""
    rows = []
    for name in names:
        figures = [line.figures.get(name) for line in lines]
        queries = max(one.queries for one in figures if one is not None)
        rows.append([_escaped(name), f"{queries:,}", *(_cell(one, "micro") for one in figures)])
    return "### Other measures\n\n" + _table(["measure", "queries", *map(_line, lines)], rows)


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    rows = []
    for one in comparisons:
        hits = one.mcnemar_p is not None
        rows.append(
            [
                _escaped(label(one.system, one.route)),
                _escaped(label(one.against, one.against_route)),
                _escaped(one.measure),
                _range(one.difference, "+"),
                f"{one.wins:,}" if hits else _NOTHING,
                f"{one.losses:,}" if hits else _NOTHING,
                _NOTHING if one.mcnemar_p is None else _p_value(one.mcnemar_p),
            ]
        )
    heads = ["system", "against", "measure", "difference"]
    heads += ["only system right", "only against right", "McNemar p"]
    return (
        "### Paired comparisons\n\n"
        "Both answer the same queries. McNemar's test is exact and two-sided; it takes queries as\n"
        "independent and knows of no other row, so where they disagree trust the interval.\n\n"
        + _table(heads, rows, text=3)
    )


def _categories(task: TaskScores, folder: Path) -> str:
    shown = by_category(task)
    if shown is None:
        return ""
    save(category_plot(task, shown), folder / "categories.png")
    rows = []
    for category, figures in shown.rows:
        size = max(figures.values(), key=lambda figure: figure.queries)
        cells = [_cell(figures.get(line.system), "micro") for line in shown.systems]
        rows.append([_escaped(category), f"{size.queries:,}", f"{size.products:,}", *cells])
    which = "all" if len(rows) == shown.categories else f"the {len(rows)} largest of"
    title = f"{shown.measure} by category: {_escaped(task.title)}"
    return "\n\n".join(
        [
            "### Categories",
            f"{shown.measure} (micro) in {which} {shown.categories:,} categories. One product "
            "gives no interval, and few products give one that is too narrow.",
            _table(["category", "queries", "products", *map(_line, shown.systems)], rows),
            _picture(title, task, "categories"),
        ]
    )


def _worst(task: TaskScores, folder: Path) -> str:
    if not (task.worst and task.systems):
        return ""
    draw_worst(task.worst, folder, folder / "worst.png")
    first, count = task.systems[0], len(task.worst[:WORST])
    return "\n\n".join(
        [
            f"### Worst queries of {_line(first)}",
            f"{count}, a row each: the query (blue frame), its first answers, and the right answer "
            "(green frame) with its rank.",
            _picture(f"Worst queries: {_escaped(task.title)}", task, "worst"),
        ]
    )


def _picture(words: str, task: TaskScores, name: str) -> str:
    return f"![{words}]({quote(task.name)}/{name}.png)"


def _line(line: SystemScores) -> str:
    return _escaped(label(line.system, line.route))


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]], text: int = 1) -> str:
    """A Markdown table whose first `text` columns are aligned left and the rest right."""
    heads = list(heads)
    rule = ["---" if number < text else "---:" for number in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *rows])


def _cell(figure: Figure | None, mean: Mean) -> str:
    """A figure with its interval, which one product alone does not have."""
    if figure is None:
        return _NOTHING
    value = figure.micro if mean == "micro" else figure.macro
    return _range(value) if figure.products > 1 else _number(value.mean)


def _range(value: Range, sign: str = "") -> str:
    mean, low, high = (_number(number, sign) for number in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def _number(value: float, sign: str = "") -> str:
    """Three decimals, without the 0 before the point."""
    text = f"{value:{sign}.3f}"
    return ".000" if float(text) == 0 else text.replace("0.", ".", 1) if abs(value) < 1 else text


def _p_value(value: float) -> str:
    return "< .001" if value < 0.001 else _number(value)


def _escaped(text: str) -> str:
    """A text on one line that Markdown shows as it is."""
    return _SIGNS.sub(r"\\\g<0>", one_line(text))


def _rounded(value: Any, decimals: int = _DECIMALS) -> Any:
    """Nested data with its floats rounded; p-values keep their size."""
    if isinstance(value, float):
        return round(value, decimals) + 0.0  # -0.0 becomes 0.0
    if isinstance(value, dict):
        return {
            key: float(f"{one:.6g}") if key == "mcnemar_p" and one is not None else _rounded(one)
            for key, one in value.items()
        }
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def _write(path: Path, text: str) -> None:
    replace_bytes(path, f"{text}\n".encode())
