"""The commands `shoplens bench recall` and `score`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from indexing.cli import (
    ImagesRoot,
    Mapping,
    OnDuplicateChoice,
    Profile,
    resumable,
    say_left_out,
)

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.retrieval.run import Subject
    from benchmarks.retrieval.scored import TaskScores
    from benchmarks.retrieval.task import Task
    from indexing.catalog import OnDuplicate
    from indexing.catalog.product import Product
    from indexing.embed import Progress

_COMMAND = "command.txt"  # in each task's folder: which command answered it

Out = Annotated[Path, typer.Option(metavar="DIR", help="Where answers and the report go.")]


def recall(
    subject: Annotated[
        str,
        typer.Argument(metavar="INDEX_OR_MODEL", help="An index folder, or a model's name."),
    ],
    split: Annotated[
        str | None,
        typer.Argument(
            metavar="SPLIT", help="fashion, grocery, or a folder that `bench esci-split` wrote."
        ),
    ] = None,
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder that holds fashion/ and grocery/.")
    ] = Path(),
    catalog: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A catalog of your own; with --views or --titles."),
    ] = None,
    views: Annotated[
        bool, typer.Option("--views", help="Ask for products by their further pictures.")
    ] = False,
    titles: Annotated[
        bool, typer.Option("--titles", help="Ask for products by their titles.")
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYSTEM",
            help="Compare with another model, or with untrained, frozen, pixels, bm25 or "
            "fusion; may be repeated.",
        ),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Compare with all baselines that apply.")
    ] = False,
    depth: Annotated[int, typer.Option(min=10, help="Answers stored of each query.")] = 100,
    images_root: ImagesRoot = None,
    profile: Profile = "auto",
    mapping: Mapping = None,
    on_duplicate: OnDuplicateChoice = "error",
    out: Out = Path("bench-out"),
) -> None:
    """Measure Recall@1/5/10 and its kin, with 95% intervals, and write a report.

    Examples:

        shoplens bench recall builtin grocery --data data --baselines --out bench-out

        shoplens bench recall shop-index --catalog catalog.csv --views

    Every query is compared with the whole gallery, exactly; for an index, its own answers
    are measured as well. Answers are stored as TREC files: `shoplens bench score DIR` reads
    them again, and so does any other tool.
    """
    from benchmarks.retrieval.plots import new_plot
    from benchmarks.retrieval.run import run_tasks
    from benchmarks.systems import BASELINES, applies
    from indexing.catalog import read_catalog
    from indexing.cli import parse_mapping
    from indexing.errors import BenchmarkError
    from indexing.malloc import keep_freed_memory

    keep_freed_memory()
    new_plot(1)  # says so before the work where matplotlib is missing
    if (split is None) == (catalog is None):
        raise BenchmarkError("give either a SPLIT or --catalog with --views or --titles")
    if catalog is not None:
        if not (views or titles):
            raise BenchmarkError("--catalog says what, not how: add --views, --titles or both")
        source = read_catalog(
            catalog,
            profile,
            images_root,
            parse_mapping(mapping or []),
            on_duplicate=cast("OnDuplicate", on_duplicate),
        )
        tasks = _own_tasks(list(source), views, titles)
        say_left_out(source)
    elif views or titles:
        raise BenchmarkError(f"--views and --titles are for a --catalog, and {split} is a split")
    else:
        tasks = _split_tasks(cast("str", split), data, images_root)
    names = list(against or [])
    if baselines:
        names += [name for name in BASELINES if any(applies(name, task) for task in tasks)]
    with resumable(), stages() as progress:
        run_tasks(
            tasks, _subject(subject), list(dict.fromkeys(names)), out, depth=depth,
            progress=progress,
        )  # fmt: skip
    command = shlex.join(["shoplens", *sys.argv[1:]])
    for task in tasks:
        (out / task.name / _COMMAND).write_text(command + "\n", encoding="utf-8")
    _report(out)


def score(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out of `shoplens bench recall`.")
    ],
) -> None:
    """Score stored answers again and rewrite the report; nothing is searched.

    Example:

        shoplens bench score bench-out
    """
    _report(folder)


def _report(folder: Path) -> None:
    from importlib.metadata import version

    from rich.console import Console

    from benchmarks.retrieval.report import write_report
    from benchmarks.retrieval.score import score_folder
    from benchmarks.retrieval.scored import Scores
    from benchmarks.statistics import RESAMPLES

    tasks = score_folder(folder)
    notes = [folder / task.name / _COMMAND for task in tasks]
    commands = [note.read_text(encoding="utf-8").strip() for note in notes if note.is_file()]
    scores = Scores(
        command="\n".join(dict.fromkeys(commands)),
        shoplens_version=version("shoplens"),
        resamples=RESAMPLES,
        seed=0,
        tasks=tasks,
    )
    page = write_report(scores, folder)
    console = Console()
    for task in tasks:
        console.print(_table(task))
    typer.echo(f"report: {page}")


def _own_tasks(products: list[Product], views: bool, titles: bool) -> list[Task]:
    from benchmarks.datasets import title_task, views_tasks

    tasks = views_tasks(products) if views else []
    if titles:
        tasks.append(title_task(products, name="titles", title="title → main picture"))
    return tasks


def _split_tasks(split: str, data: Path, images_root: Path | None) -> list[Task]:
    from benchmarks.datasets import DATASETS
    from benchmarks.esci.tasks import esci_tasks
    from indexing.errors import BenchmarkError

    if split in DATASETS:
        return DATASETS[split](data)
    if not Path(split).is_dir():
        raise BenchmarkError(
            f"split {split!r} is neither one of {', '.join(DATASETS)} nor a folder that "
            "`shoplens bench esci-split` wrote"
        )
    if images_root is None:
        raise BenchmarkError("a split of ESCI needs --images-root: where its picture paths begin")
    return esci_tasks(Path(split), images_root)


def _subject(name: str) -> Subject:
    from benchmarks.retrieval.run import Subject
    from indexing.manifest import MANIFEST, read_manifest
    from indexing.models import load_encoder
    from indexing.store import open_index

    if not (Path(name) / MANIFEST).is_file():
        return Subject(load_encoder(name))
    encoder = load_encoder(read_manifest(Path(name)).encoder.name)
    return Subject(encoder, open_index(Path(name), encoder=encoder))


@contextmanager
def stages() -> Iterator[Callable[[str], Progress]]:
    """For each stage's name what shows its progress, on standard error."""
    if not sys.stderr.isatty():
        yield _plain_stage
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:

        def stage(name: str) -> Progress:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield stage


def _plain_stage(name: str) -> Progress:
    typer.echo(name, err=True)
    return lambda done, total: None


def _table(task: TaskScores) -> Table:
    """The figures that people ask for first."""
    from rich.table import Table

    names = ("R@1", "R@5", "R@10")
    table = Table("system", *names, title=f"{task.title} ({task.queries:,} queries)", box=None)
    for system in task.systems:
        route = " (index)" if system.route == "index" else ""
        figures = [system.figures[name].micro for name in names]
        cells = [f"{f.mean:.3f} [{f.low:.3f}, {f.high:.3f}]" for f in figures]
        table.add_row(system.system + route, *cells)
    return table
