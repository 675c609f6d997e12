"""The command `shoplens bench rerank`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def rerank(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="An index made with --attributes or --categories."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for report.md and figures.json.")
    ] = Path("rerank-out"),
    model: Annotated[
        str | None, typer.Option(help="Where the index's encoder is now, if it was moved.")
    ] = None,
    fields: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Further fields whose values queries name, such as color,usage; nothing is "
            "predicted of them.",
        ),
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where its attribute classifier is, if moved."),
    ] = None,
    categories: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where its categoriser is, if moved.")
    ] = None,
) -> None:
    """Measure what reranking by attributes does to answers.

    Titles, short queries such as "red kurtas", titles that name no value, "like this but red" and
    phone photos are made from products that no classifier was trained on, whose own values are
    hidden. Weights are fitted on a third of them and measured on the others.

    Example:

        shoplens bench rerank shop-index --out rerank-out
    """
    from benchmarks.attributes.rerank_report import PAGE, write_rerank_report
    from benchmarks.attributes.reranking import measure_tasks, record_of
    from indexing.attributes.opening import load_classifiers
    from indexing.cli import show_progress
    from indexing.malloc import keep_freed_memory
    from indexing.manifest import check_classifiers, read_manifest
    from indexing.models import load_encoder
    from indexing.store import open_index

    keep_freed_memory()
    manifest = read_manifest(folder)
    record = record_of(manifest, folder)
    encoder = load_encoder(model or manifest.encoder.name)
    classifiers = load_classifiers({"attributes": attributes, "categories": categories}, record)
    check_classifiers(folder, manifest, classifiers)
    index = open_index(folder, encoder=encoder)
    with show_progress() as progress:
        results = measure_tasks(
            index,
            encoder,
            classifiers,
            lambda line: typer.echo(line, err=True),
            progress,
            [name.strip() for name in fields.split(",")] if fields else (),
        )
    write_rerank_report(results, out, shlex.join(["shoplens", *sys.argv[1:]]))
    typer.echo(f"report: {out / PAGE}")
