"""The command `shoplens bench pruning`."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexing.cli import resumable

if TYPE_CHECKING:
    from benchmarks.pruning.report import Experiment


def pruning(
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
    products it is known which words a picture shows. DIR/drawn, or DIR/real with --data, gets
    results.jsonl (a line a run), report.md and pruning.png.

    Example, about ten minutes on two cores:

        shoplens bench pruning --out pruning-out --seeds 3
    """
    from rich.console import Console

    from benchmarks.pruning import fashion, toy
    from benchmarks.pruning.arms import ARMS
    from benchmarks.pruning.report import PAGE, PLOT, write_report
    from benchmarks.pruning.runs import check_arms, run_all
    from benchmarks.retrieval.plots import new_plot
    from indexing.errors import BenchmarkError
    from indexing.processor import usable_cores

    new_plot(1)  # says so before the work where matplotlib is missing
    second = ["second standard", "second calibrated"] if data else []
    known = [*ARMS, *second]
    chosen = [arm.strip() for arm in arms.split(",")] if arms else known
    for arm in chosen:
        if arm not in known:
            raise BenchmarkError(f"unknown arm {arm!r}: give some of {', '.join(known)}")
    check_arms(chosen)
    console = Console(stderr=True)
    # Each has a start and results of its own, which the other would take for its own.
    out = out / ("real" if data else "drawn")
    start = out / "start"
    out.mkdir(parents=True, exist_ok=True)
    with resumable():
        if not (start / "model.safetensors").exists():
            with console.status("making the model that all arms start from"):
                if data is None:
                    toy.make_start(start)
                else:
                    fashion.prepare(data, out)
        if data is None:
            run, experiment = partial(toy.run_arm, start=start), _toy()
        else:
            run, experiment = partial(fashion.run_arm, data=data, work=out), _fashion()
        results = run_all(
            run,
            chosen,
            seeds,
            out / "results.jsonl",
            workers or usable_cores(),
            lambda line: console.print(line, markup=False, highlight=False),
        )
    write_report(experiment, results, out, shlex.join(["shoplens", *sys.argv[1:]]))
    typer.echo(f"{out / PAGE} and {PLOT} written")


def _toy() -> Experiment:
    from benchmarks.pruning.report import Experiment
    from benchmarks.pruning.toy_data import NOISE, VISUAL

    return Experiment(
        title="Token pruning on drawn products",
        note="Of each word it is known whether the picture shows it. Means over seeds (other "
        "training catalogs and orders; one start, one test set) with Student's 95% intervals. "
        "Titles are asked as the model reads them: the oracle's without their noise.",
        tasks={
            "picture": "another view → picture on white",
            "title": "noisy title → picture",
            "clean": "clean title → picture",
        },
        pairs=[
            *((arm, "standard") for arm in _others()),
            ("calibrated", "random drop"),
            ("calibrated", "fixed types"),
            ("calibrated", "truncated"),
            ("calibrated", "online"),
        ],
        kinds=[*VISUAL, *NOISE],
    )


def _fashion() -> Experiment:
    from benchmarks.pruning.report import Experiment

    return Experiment(
        title="Token pruning on real titles",
        note="Myntra titles begin with the brand, the noise. Means over seeds (other orders; one "
        "start) with Student's 95% intervals; they do not cover other catalogs. Of `picture` "
        "the training set holds nothing: phone photos of groceries.",
        tasks={
            "title": "unseen title → picture (5,000 products)",
            "picture": "grocery, phone photo → iconic picture",
        },
        pairs=[
            *((arm, "standard") for arm in _others()),
            ("calibrated", "random drop"),
            ("calibrated", "truncated"),
            ("second calibrated", "second standard"),
        ],
        kinds=["colour", "type", "shared", "audience", "brand", "rare"],
    )


def _others() -> list[str]:
    from benchmarks.pruning.arms import ARMS

    return [arm for arm in ARMS if arm != "standard"]
