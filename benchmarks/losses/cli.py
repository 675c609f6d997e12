"""The command `shoplens bench losses`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from indexing.cli import resumable


def losses(
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for results and report; a stopped run goes on."),
    ] = Path("losses-out"),
    seeds: Annotated[int, typer.Option(min=1, help="How often each loss is trained.")] = 3,
    only: Annotated[
        str | None,
        typer.Option("--losses", metavar="LOSS;LOSS…", help="Which losses; by default all."),
    ] = None,
    conditions: Annotated[
        str | None,
        typer.Option(
            metavar="NAME;NAME…",
            help="Which of: one; several; one, MML-TP; several, MML-TP. By default all.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time.", show_default="the cores")
    ] = None,
    costs: Annotated[bool, typer.Option(help="Time the losses themselves, too.")] = True,
) -> None:
    """Measure which loss suits products: the same model, data and budget for each.

    A small CLIP is fine-tuned on drawn products with noisy titles, with one picture a product
    and with several, with whole titles and with MML-TP, and asked for unseen products by
    another view and by title. DIR gets results.jsonl (a line a run), findings.md, report.md and
    losses.png.

    Example, half an hour on two cores:

        shoplens bench losses --out losses-out --seeds 3
    """
    from functools import partial

    from rich.console import Console

    from benchmarks.losses.cost import measure_costs
    from benchmarks.losses.report import FINDINGS, PAGE, PLOT, write_report
    from benchmarks.losses.study import (
        CONDITIONS,
        TEST,
        TEST_SEED,
        TRIED,
        drawn,
        measure,
        run_arm,
    )
    from benchmarks.pruning.runs import run_all
    from benchmarks.pruning.toy import make_start
    from benchmarks.retrieval.plots import new_plot
    from indexing.models.clip import load_folder
    from indexing.processor import usable_cores
    from training.losses import LOSSES

    new_plot(1)  # says so before the work where matplotlib is missing
    names = _chosen(only, ";", TRIED, "loss")
    tried = _chosen(conditions, ";", CONDITIONS, "condition")
    console = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    start = out / "start"
    with resumable():
        if not (start / "model.safetensors").exists():
            with console.status("making the model that all start from"):
                make_start(start)
        results = run_all(
            partial(run_arm, start=start),
            [f"{name} / {condition}" for condition in tried for name in names],
            seeds,
            out / "results.jsonl",
            workers or usable_cores(),
            lambda line: console.print(line, markup=False, highlight=False),
        )
        timed = []
        if costs:
            with console.status("timing the losses"):
                known = [name for name in names if name in LOSSES]
                timed = [cost for size in (256, 1360) for cost in measure_costs(known, size)]
    before = measure(load_folder(start), drawn(TEST, TEST_SEED, out))
    write_report(results, before, timed, out, shlex.join(["shoplens", *sys.argv[1:]]))
    typer.echo(f"{out / FINDINGS}, {PAGE} and {PLOT} written")


def _chosen(given: str | None, mark: str, known: Iterable[str], what: str) -> list[str]:
    """Raises BenchmarkError for a name that is none."""
    from indexing.errors import BenchmarkError

    names = [name.strip() for name in given.split(mark)] if given else list(known)
    for name in names:
        if name not in known:
            raise BenchmarkError(f"unknown {what} {name!r}: give some of {mark.join(known)}")
    return names
