"""The command `shoplens bench categories`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from indexing.cli import resumable


def categories(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with fashion/catalog.csv.")],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for answers and report; a stopped run goes on."),
    ] = Path("categories-out"),
    seeds: Annotated[int, typer.Option(min=1, help="How often each arm is trained.")] = 3,
    arms: Annotated[
        str | None, typer.Option(metavar="ARM,ARM…", help="Which arms; by default all.")
    ] = None,
    fractions: Annotated[
        str | None,
        typer.Option(metavar="PERCENT,…", help="Which shares of the labels; by default all."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time [default: the cores].")
    ] = None,
) -> None:
    """Measure what adaptation without labels adds to a categoriser of titles (Chen & Chou).

    A text encoder is taken as it is, adapted to titles (SimCSE), to titles beside pictures
    (ConVIRT), or to cleaned titles beside pictures, and then fine-tuned on 5% to 100% of the
    labels. DIR gets results.jsonl (a line a run), report.md, figures.json and categories.png.

    Example, about an hour on two cores:

        shoplens bench categories --data DATA --out categories-out
    """
    from functools import partial

    from rich.console import Console

    from benchmarks.categories.data import read_data
    from benchmarks.categories.report import PAGE, PLOT, write_report
    from benchmarks.categories.study import (
        ARMS,
        FRACTIONS,
        RECIPES,
        Tuning,
        best,
        prepare,
        run_adaptation,
        run_tuning,
    )
    from benchmarks.pruning.runs import run_all
    from benchmarks.retrieval.plots import new_plot
    from indexing.errors import BenchmarkError
    from indexing.processor import usable_cores

    new_plot(1)  # says so before the work where matplotlib is missing
    known = {str(percent): percent for percent in FRACTIONS}
    chosen = _chosen(arms, {arm: arm for arm in ARMS}, "arm")
    percents = _chosen(fractions, known, "fraction")
    if "origin" not in chosen:
        raise BenchmarkError("all arms are compared with origin: add it to --arms")
    console = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    with resumable():
        own = read_data(data)
        with console.status("what the arms share: pictures, and what cleans titles"):
            prepare(chosen, data, out)
        at_once = workers or usable_cores()
        adapted = run_all(
            partial(run_adaptation, data=data, work=out),
            [arm for arm in chosen if arm != "origin"],
            seeds,
            out / "adaptations.jsonl",
            at_once,
            say,
        )
        run = partial(run_tuning, data=data, work=out)
        file = out / "results.jsonl"
        every = [
            str(Tuning(arm, percent, recipe))
            for percent in percents
            for arm in chosen
            for recipe in RECIPES
        ]
        tried = run_all(run, every, 1, file, at_once, say)
        results = run_all(run, best(tried), seeds, file, at_once, say)
    write_report(results, adapted, own, out, shlex.join(["shoplens", *sys.argv[1:]]))
    typer.echo(f"{out / PAGE} and {PLOT} written")


def _chosen(wanted: str | None, known: dict[str, Any], what: str) -> list[Any]:
    """The values of the names that are wanted; all where none are."""
    from indexing.errors import BenchmarkError

    names = [name.strip() for name in wanted.split(",")] if wanted else list(known)
    for name in names:
        if name not in known:
            raise BenchmarkError(f"unknown {what} {name!r}: give some of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]
