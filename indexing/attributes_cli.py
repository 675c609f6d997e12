"""The command `shoplens export`, and how well the attributes of an index are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from indexing.attributes.vocabulary import Kind
    from indexing.store import OpenIndex


def export(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that `shoplens index` wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The CSV file to write.", show_default="standard output"),
    ] = None,
) -> None:
    """Write the products of an index as CSV, with the attributes that were filled in.

    Beside each attribute stand its confidence and its source: given by the merchant, or filled
    in. Where the index was not sure, all three are empty.

    Example, on an index made with `shoplens index catalog.csv --out shop-index --attributes …`:

        shoplens export shop-index --out filled.csv
    """
    from indexing.attributes.exporting import export_csv
    from indexing.store import open_index

    index = open_index(folder)
    if out is None:
        export_csv(index, typer.get_text_stream("stdout", encoding="utf-8"))
        return
    from indexing.durable import write_atomically

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            export_csv(index, file)

    write_atomically(out, write)
    typer.echo(f"{out}: {len(index.products):,} products", err=True)


def say_dropped(folder: Path, places: Mapping[Kind, Path | None]) -> None:
    """Says what an index has filled in that it will not have once it is built anew."""
    from indexing.errors import IndexFolderError
    from indexing.manifest import read_manifest

    try:
        record = read_manifest(folder).attributes
    except IndexFolderError:  # there is none yet, or none that could be kept
        return
    for source in () if record is None else record.sources:
        if places.get(source.kind) is None:
            typer.echo(
                f"{folder} has {source.kind}, and will have none: --{source.kind} {source.name} "
                "keeps them",
                err=True,
            )


def say_filled(folder: Path) -> None:
    """Says how the attributes of an index are known, if it has some."""
    from indexing.store import open_index

    for line in filled_lines(open_index(folder)):
        typer.echo(line)


def filled_lines(index: OpenIndex) -> Iterator[str]:
    """For each attribute how many products have it given, filled in, and neither."""
    import numpy as np

    from indexing.attributes.vocabulary import ABSTAINED

    for name, column in index.attributes.items():
        given = int(np.count_nonzero(column.given != ABSTAINED))
        filled = int(np.count_nonzero(column.filled != ABSTAINED))
        total = len(index.products)
        shares = ", ".join(
            f"{count:,} {what} ({count / max(1, total):.0%})"
            for count, what in (
                (given, "given"),
                (filled, "filled in"),
                (total - given - filled, "not sure"),
            )
        )
        yield f"  {name + ':':<9} {shares}"
