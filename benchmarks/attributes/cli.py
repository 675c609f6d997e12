"""The command `shoplens bench attributes`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from indexing.cli import resumable


def attributes(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with fashion/catalog.csv.")],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for answers and report; a stopped run goes on."),
    ] = Path("attributes-out"),
    seeds: Annotated[int, typer.Option(min=1, help="How often each arm is trained.")] = 3,
    arms: Annotated[
        str | None, typer.Option(metavar="ARM,ARM…", help="Which arms; by default all.")
    ] = None,
    train: Annotated[int, typer.Option(min=100, help="Products to train on.")] = 6000,
    test: Annotated[int, typer.Option(min=100, help="Products to measure on.")] = 3000,
) -> None:
    """Measure how well colour, kind and use are read off pictures and titles.

    CMA-CLIP is trained beside its ablations, one modality alone, and a fine-tuned CLIP with a
    linear head, on the same products of a real catalog, and all are asked about others: with
    titles as they are, without the words of attribute values, with titles or pictures of other
    products. DIR gets an answers file a run, report.md and figures.json; scoring runs again
    without training.

    Example, about an hour on two cores:

        shoplens bench attributes --data DATA --out attributes-out
    """
    from rich.console import Console

    from benchmarks.attributes.report import PAGE, Results, write_report
    from benchmarks.attributes.study import Study, arm_names, read_data
    from indexing.errors import BenchmarkError

    chosen = [arm.strip() for arm in arms.split(",")] if arms else list(arm_names())
    for arm in chosen:
        if arm not in arm_names():
            raise BenchmarkError(f"unknown arm {arm!r}: the arms are {', '.join(arm_names())}")
    console = Console(stderr=True)
    with resumable():
        read = read_data(data, train, test)
        study = Study(read, out)
        for seed in range(seeds):
            for arm in chosen:
                study.run(arm, seed, lambda line: console.print(line, soft_wrap=True))
    command = shlex.join(["shoplens", *sys.argv[1:]])
    write_report(Results.read(read, out), out, command)
    typer.echo(f"report: {out / PAGE}")
