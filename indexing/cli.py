"""The commands `shoplens index` and `doctor`, and what other commands share with them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from pydantic import ValidationError

    from indexing.attributes.vocabulary import Kind
    from indexing.build import BuildReport, Planner
    from indexing.catalog import Catalog, OnDuplicate
    from indexing.embed import Progress
    from indexing.manifest import IndexCounts

_PLAIN_SECONDS = 10.0  # between two lines where no bar can be drawn
_SHOWN_REJECTS = 3


# Options of every command that reads a catalog.
Profile = Annotated[
    str,
    typer.Option(
        help="Kind of catalog: auto (by its columns), google, shopify, schema_org, esci, "
        "amazon_reviews_2023, folder or generic."
    ),
]
ImagesRoot = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where picture paths begin; by default the catalog's."),
]
Mapping = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FIELD=COLUMN",
        help="Which column holds id, title, description, brand, category, price, currency, "
        "availability or image; may be repeated.",
    ),
]
OnDuplicateChoice = Annotated[
    str, typer.Option(help="What to do with two rows of one id: error, first or last.")
]


def index(
    catalog: Annotated[
        Path,
        typer.Argument(
            metavar="CATALOG",
            help="CSV, TSV, Parquet, JSON Lines or Merchant XML, plain or gzip, or a folder "
            "of pictures.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The index folder to write.")],
    model: Annotated[
        str,
        typer.Option(
            help="builtin, a folder that training wrote, ARCH/PRETRAINED, hf-hub:ID or albef:PATH."
        ),
    ] = "builtin",
    profile: Profile = "auto",
    images_root: ImagesRoot = None,
    mapping: Mapping = None,
    on_duplicate: OnDuplicateChoice = "error",
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures that are given as URLs.")
    ] = False,
    accept_missing: Annotated[
        bool,
        typer.Option(
            "--accept-missing",
            help="Drop pictures of the old index that cannot be read any more, however many.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures encoded at once.")] = 16,
    recall: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Of the 10 best answers, the share to find: .99, or 1 for all."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="What the index may take in memory, such as 4GB or 512MB."
        ),
    ] = None,
    index_type: Annotated[
        str | None,
        typer.Option(
            "--index",
            metavar="FACTORY",
            help="An index by its FAISS name, such as HNSW32 or PCAR256,IVF256,PQ128x4fs.",
        ),
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="What `shoplens train attributes` wrote: fill in attributes. Without it the "
            "index has none.",
        ),
    ] = None,
    categories: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="What `shoplens train categories` wrote: fill in categories by titles, and "
            "propose them to queries.",
        ),
    ] = None,
    match: Annotated[
        bool,
        typer.Option(
            help="Learn when to say `no good match`; where products have one picture this encodes "
            "500 more, made from them."
        ),
    ] = True,
) -> None:
    """Make a catalog searchable, or bring its index up to date.

    Example:

        shoplens index catalog.csv --out shop-index

    Safe to stop and to run again: what was encoded stays, and only new or changed
    pictures are encoded. Rows and pictures that cannot be used are listed with their
    reasons in rejects.jsonl, and the rest is indexed. Before that the plan of the index is
    shown: its type, memory, disk and time. Small catalogs are searched exactly, and ones of
    50,000 pictures and more by compressed vectors, unless you choose.
    """
    from indexing.attributes.opening import load_classifiers
    from indexing.attributes_cli import say_dropped, say_filled
    from indexing.build import build_index
    from indexing.catalog import read_catalog
    from indexing.malloc import keep_freed_memory
    from indexing.models import load_encoder

    keep_freed_memory()
    places: dict[Kind, Path | None] = {"attributes": attributes, "categories": categories}
    say_dropped(out, places)
    plan = _planner(recall, memory, index_type)
    with resumable():
        source = read_catalog(
            catalog,
            profile,
            images_root,
            parse_mapping(mapping or []),
            on_duplicate=cast("OnDuplicate", on_duplicate),
            allow_urls=allow_urls,
        )
        encoder = load_encoder(model)
        with show_progress() as progress:
            report = build_index(
                source,
                encoder,
                out,
                batch_size=batch_size,
                accept_missing=accept_missing,
                plan=plan,
                classifiers=load_classifiers(places),
                match=match,
                progress=progress,
            )
    for line in summary(report):
        typer.echo(line)
    if any(places.values()):
        say_filled(out)


def _planner(recall: float | None, memory: str | None, factory: str | None) -> Planner:
    """Plans an index by the user's wishes, and says once what it will be."""
    from indexing.plan import Plan, parse_size, plan_index

    size = None if memory is None else parse_size(memory)
    said: set[str] = set()

    def plan(count: int, dim: int) -> Plan:
        chosen = plan_index(count, dim, recall=recall, memory=size, factory=factory)
        if not said:
            typer.echo(f"plan: {chosen}", err=True)
            said.add(str(chosen))
        return chosen

    return plan


def doctor() -> None:
    """Say what is installed, what works here, and what to do about the rest.

    Example:

        shoplens doctor
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from indexing.doctor import examine

    findings = examine()
    table = Table(box=None, pad_edge=False)
    for column in ("what", "state", "detail", "what to do"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "optional": "yellow", "missing": "red", "broken": "red"}
    for finding in findings:
        # Text: the brackets of an extra are no markup.
        state = Text(finding.state, colours[finding.state])
        table.add_row(Text(finding.what), state, Text(finding.detail), Text(finding.advice))
    Console().print(table)
    if any(finding.state in ("missing", "broken") for finding in findings):
        raise typer.Exit(1)


def parse_mapping(pairs: list[str]) -> dict[str, str]:
    """`FIELD=COLUMN` arguments as a dict. Raises CatalogError for anything else."""
    from indexing.errors import CatalogError

    mapping: dict[str, str] = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise CatalogError(f"--map {pair!r}: write FIELD=COLUMN, such as title=product_name")
        if mapping.setdefault(name, column) != column:
            raise CatalogError(f"--map {pair!r}: {name} is mapped to {mapping[name]!r} already")
    return mapping


@contextmanager
def resumable() -> Iterator[None]:
    """Ends the command on Ctrl-C with the word that it can go on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("stopped; run the same command to go on", err=True)
        raise typer.Exit(130) from None


def say_left_out(source: Catalog) -> None:
    """Say how much of a catalog that was read could not be used."""
    counts = source.counts
    if counts.rejected or counts.images_rejected:
        typer.echo(
            f"{source.path}: {counts.rejected:,} rows and {counts.images_rejected:,} pictures "
            "were left out; `shoplens index` lists the reasons",
            err=True,
        )


def bad_option(error: ValidationError) -> str:
    """Which option of a command a model refused, its value, and why."""
    first = error.errors(include_url=False)[0]
    named = [part for part in first["loc"] if isinstance(part, str)]
    option = "--" + named[-1].replace("_", "-")
    return f"{option} {first['input']}: {first['msg']}"


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Shows pictures done, rate and time left on standard error."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), Rate())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("pictures", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_progress() -> Progress:
    started = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal started, last
        now = time.monotonic()
        if not done:  # the clock starts when the catalog has been read
            started = last = now
        if now - last < _PLAIN_SECONDS or not done:
            return
        last = now
        rate = done / (now - started)
        left = _duration((total - done) / rate)
        typer.echo(f"{done:,} of {total:,} pictures, {rate:,.0f}/s, {left} left", err=True)

    return report


def summary(report: BuildReport) -> Iterator[str]:
    """What a build did, in lines for people."""
    counts = report.counts
    if report.up_to_date:
        yield f"{report.folder} is up to date ({_duration(report.seconds)})"
    else:
        yield f"{report.folder} is ready ({_duration(report.seconds)})"
    yield rows_line(counts)
    rate = f" at {report.rate:,.0f}/s" if report.encoded else ""
    yield (
        f"  pictures: {report.images:,} in the index, {counts.images_rejected:,} rejected; "
        f"{report.encoded:,} encoded{rate}, {report.reused:,} known before"
    )
    if counts.fields_rejected:
        yield fields_line(counts.fields_rejected)
    if counts.rejected or counts.images_rejected or counts.fields_rejected:
        yield f"  rejects:  {report.rejects}, which begins"
        with report.rejects.open(encoding="utf-8") as file:
            for line in islice(file, _SHOWN_REJECTS):
                yield f"    {_reject_line(json.loads(line))}"
    yield f'next: shoplens search {report.folder} --text "red shoes"'


def rows_line(counts: IndexCounts) -> str:
    """What became of a catalog's rows; the parts add up."""
    parts = f"{counts.products:,} products + {counts.rejected:,} rejected"
    for number, name in ((counts.unchanged, "unchanged"), (counts.merged, "merged")):
        parts += f" + {number:,} {name}" if number else ""
    return f"  rows:     {counts.rows:,} = {parts}"


def fields_line(rejected: int) -> str:
    """How many fields were refused of products that were kept."""
    return f"  fields:   {rejected:,} rejected and left empty, their products kept"


def _reject_line(reject: dict[str, object]) -> str:
    name = "" if reject["id"] is None else f", id {reject['id']}"
    value = f" {reject['value']!r}" if reject["value"] else ""
    return f"row {reject['row']}{name}: {reject['field']}{value}: {reject['reason']}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"
