"""The command `shoplens categorize`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from indexing.catalog.rows import Row, Table
    from indexing.models.categorizer.categorizer import Categorizer

COLUMNS = ("predicted_category", "confidence", "sure")  # what a CSV file gets
_SHOWN = 3  # categories of a title
_TOGETHER = 1024  # rows at once
_REPORTED = 3  # broken rows that are shown


def categorize(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What `shoplens train categories` wrote.")
    ],
    titles: Annotated[list[str] | None, typer.Argument(metavar="TITLE…")] = None,
    source: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="A CSV or TSV file, in place of titles."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"Where its rows go, with the columns {', '.join(COLUMNS)}."
        ),
    ] = None,
    column: Annotated[
        str, typer.Option("--title-column", metavar="COLUMN", help="The one that holds titles.")
    ] = "title",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a title and nothing else.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="A torch device [default: the GPU, else the CPU].")
    ] = None,
) -> None:
    """Say what category titles are of, and how sure that is.

    A category is sure where nine in ten such answers are right. Rows of a file that cannot be
    read are reported and left out.

    Example, on a model made with `shoplens train categories`:

        shoplens categorize my-categories "Nike men red running shoes"

        shoplens categorize my-categories --csv catalog.csv --out categories.csv
    """
    from indexing.models.categorizer import load_categorizer

    _check(titles, source, out, as_json)
    model = load_categorizer(folder, device=device)
    if source is None or out is None:
        for found in _findings(model, titles or []):
            typer.echo(json.dumps(found, allow_nan=False) if as_json else _line(found))
    else:
        _write(model, source, out, column)


def _check(titles: list[str] | None, source: Path | None, out: Path | None, as_json: bool) -> None:
    """Refuse what does not go together, or could not be written, before the work starts."""
    from indexing.errors import QueryError
    from indexing.query_text import check_text

    if bool(titles) == (source is not None):
        raise QueryError("give either titles, or --csv with --out")
    for title in titles or []:
        check_text("a title", title)
    if (source is None) != (out is None):
        raise QueryError("--csv and --out go together: what to read, and the file to write")
    if out is None or source is None:
        return
    if as_json:
        raise QueryError("--json is for titles: --csv writes CSV")
    if out.is_dir() or not out.parent.is_dir():
        raise QueryError(f"--out {out}: give the name of a file in a folder that exists")


def _findings(model: Categorizer, titles: list[str]) -> Iterator[dict[str, Any]]:
    chances = model.probabilities(titles)
    for title, own, sure in zip(titles, chances, model.sure(chances), strict=True):
        best = own.argsort(kind="stable")[::-1][:_SHOWN]
        yield {
            "title": title,
            "label": model.label,
            "category": model.categories[best[0]],
            "confidence": float(own[best[0]]),
            "sure": bool(sure),
            "categories": {model.categories[each]: float(own[each]) for each in best},
        }


def _line(found: dict[str, Any]) -> str:
    from indexing.messages import one_line

    values = ", ".join(f"{value} {chance:.0%}" for value, chance in found["categories"].items())
    return f"{one_line(found['title'])}: {values}{'' if found['sure'] else ' (not sure)'}"


def _write(model: Categorizer, source: Path, out: Path, column: str) -> None:
    """The rows of a file with what category they are of, all or nothing."""
    from indexing.catalog.delimited import delimited_table
    from indexing.durable import write_atomically
    from indexing.errors import CatalogError
    from indexing.messages import shown

    table = delimited_table(source, source.suffix.lower())
    if column not in table.columns:
        raise CatalogError(
            f"{shown(source)} has no column {column!r}; it has {', '.join(table.columns)}: give "
            "--title-column"
        )
    counts: dict[str, int] = {}

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            counts.update(_rows(model, table, csv.writer(file, lineterminator="\n"), column))

    write_atomically(out, write)
    typer.echo(f"{out}: {counts['written']:,} rows, {counts['sure']:,} of them sure", err=True)
    if counts["broken"]:
        typer.echo(f"{counts['broken']:,} rows could not be read and were left out", err=True)


def _rows(model: Categorizer, table: Table, writer: Any, column: str) -> dict[str, int]:
    from rich.console import Console
    from rich.progress import track

    from indexing.messages import printable

    kept = [name for name in table.columns if name not in COLUMNS]
    writer.writerow([*kept, *COLUMNS])
    counts = {"written": 0, "sure": 0, "broken": 0}
    console = Console(stderr=True)
    rest = iter(track(table.rows(), "rows", console=console, disable=not sys.stderr.isatty()))

    def readable(rows: list[Row]) -> Iterator[Row]:
        for row in rows:
            if row.problem is None:
                yield row
                continue
            counts["broken"] += 1
            if counts["broken"] <= _REPORTED:
                value, problem = printable(row.problem.value), row.problem.reason
                typer.echo(f"row {row.number}: {value!r}: {problem}", err=True)

    while part := list(islice(rest, _TOGETHER)):
        rows = list(readable(part))
        titles = [_text(row.cells.get(column)) for row in rows]
        chances = model.probabilities(titles)
        for row, title, own, sure in zip(rows, titles, chances, model.sure(chances), strict=True):
            cells = [_text(row.cells.get(name)) for name in kept]
            # Of a row without a title there is nothing to say.
            blank = not title.strip()
            found = ["", "", ""] if blank else [
                model.categories[int(own.argmax())], f"{own.max():.3f}", "yes" if sure else "no",
            ]  # fmt: skip
            writer.writerow([*cells, *found])
            counts["written"] += 1
            counts["sure"] += bool(sure) and not blank
    return counts


def _text(cell: Any) -> str:
    """A cell; those of a column that comes twice are joined."""
    return " ".join(cell) if isinstance(cell, list) else cell or ""
