"""The command `shoplens bench pruning`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from indexing.cli import resumable


def pruning(
    model: Annotated[str, typer.Option(help="What is trained: clip or albef.")] = "clip",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with fashion/ and grocery/: real titles in place of drawn products.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for results and report; a stopped run goes on."),
    ] = Path("pruning-out"),
    seeds: Annotated[int, typer.Option(min=1, help="How often each arm is trained.")] = 3,
    arms: Annotated[
        str | None, typer.Option(metavar="ARM,ARM…", help="Which arms; by default all.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Arms at a time [default: the cores].")
    ] = None,
) -> None:
    """Measure whether token pruning cleans titles, and what the picture tower gains by it.

    Models are fine-tuned on noisy titles in several arms: plainly, with MML-TP as printed and
    as calibrated, and with controls that drop as many words without looking. On drawn
    products it is known which words a picture shows. DIR/drawn, or DIR/real with --data (and
    with -albef after it for that model), gets results.jsonl (a line a run), report.md and
    pruning.png.

    Example, about ten minutes on two cores:

        shoplens bench pruning --out pruning-out --seeds 3
    """
    from rich.console import Console

    from benchmarks.pruning.report import PAGE, PLOT, write_report
    from benchmarks.pruning.runs import check_arms, run_all
    from benchmarks.pruning.studies import study_of
    from benchmarks.retrieval.plots import new_plot
    from indexing.errors import BenchmarkError
    from indexing.processor import usable_cores

    new_plot(1)  # says so before the work where matplotlib is missing
    study = study_of(model, data)
    chosen = [arm.strip() for arm in arms.split(",")] if arms else list(study.experiment.arms)
    for arm in chosen:
        if arm not in study.experiment.arms:
            known = ", ".join(study.experiment.arms)
            raise BenchmarkError(f"unknown arm {arm!r}: give some of {known}")
    check_arms(chosen, study.reference)
    console = Console(stderr=True)
    # Each has a start and results of its own, which another would take for its own.
    out = out / study.folder
    out.mkdir(parents=True, exist_ok=True)
    with resumable():
        if not (out / "start" / "model.safetensors").exists():
            with console.status("making the model that all arms start from"):
                study.prepare(out)
        results = run_all(
            study.runner(out),
            chosen,
            seeds,
            out / "results.jsonl",
            workers or usable_cores(),
            lambda line: console.print(line, markup=False, highlight=False),
            reference=study.reference,
        )
    command = shlex.join(["shoplens", *sys.argv[1:]])
    write_report(study.experiment, results, out, command)
    typer.echo(f"{out / PAGE} and {PLOT} written")
