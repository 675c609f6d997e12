"""The command `shoplens upgrade`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from indexing.cli import resumable, show_progress


def upgrade(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of `shoplens index`.")],
    model: Annotated[str, typer.Option(help="The new model, as for `shoplens index`.")],
    qrels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your queries: CSV with product_id and query (a text) or image (a file beside "
            "it). Without it the catalog's own further pictures or titles are asked.",
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(min=0, max=1, help="Swap where a loss of more than this is ruled out."),
    ] = 0.02,
    force: Annotated[bool, typer.Option("--force", help="Swap whatever is found.")] = False,
    old_model: Annotated[
        str | None, typer.Option(help="Where the index's model is now, if it was moved.")
    ] = None,
) -> None:
    """Replace the model of an index, if it finds no less.

    The pictures are embedded by the new model beside the old index, which goes on answering.
    Both are asked the same queries; the new one takes over where the 95% interval of its
    Recall@10 minus the old one's lies above -MARGIN. `shoplens rollback` undoes it.

    Example:

        shoplens upgrade shop-index --model my-model --qrels queries.csv
    """
    from benchmarks.upgrade import K, upgrade
    from benchmarks.upgrade_queries import own_queries, read_queries
    from indexing.malloc import keep_freed_memory
    from indexing.models import load_encoder
    from indexing.store import open_index

    keep_freed_memory()
    with resumable():
        before = open_index(folder)
        queries = own_queries(before) if qrels is None else read_queries(qrels)
        old = load_encoder(old_model or before.manifest.encoder.name)
        before = open_index(folder, encoder=old)
        new = load_encoder(model)
        with show_progress() as progress:
            done = upgrade(before, old, new, queries, margin=margin, force=force, progress=progress)
    found = done.comparison
    typer.echo(f"Recall@{K} of {found.queries:,} queries, with 95% intervals:")
    typer.echo(f"  {old.name} (old): {found.old}")
    typer.echo(f"  {new.name} (new): {found.new}")
    typer.echo(f"  new - old, paired: {found.gain}")
    if done.swapped:
        typer.echo(
            f"{folder}: version {done.manifest.version}, by {new.name}; "
            f"`shoplens rollback {folder}` brings the old one back"
        )
        return
    typer.echo(
        f"not swapped: a loss of more than {margin:g} is not ruled out; the index is unchanged. "
        "Give more queries with --qrels, or --force",
        err=True,
    )
    raise typer.Exit(1)
