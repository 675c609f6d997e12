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
        typer.Argument(metavar="DIR", help="An index made with `shoplens index --attributes`."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for report.md and figures.json.")
    ] = Path("rerank-out"),
    model: Annotated[
        str | None, typer.Option(help="Where the index's encoder is now, if it was moved.")
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where its attribute classifier is, if moved."),
    ] = None,
) -> None:
    """Measure what reranking by attributes does to answers.

    Titles, short queries such as "red kurtas", "like this but red" and phone photos are made from
    products that the classifier was not trained on, whose own values are hidden. Weights are
    fitted on a third of them and measured on the others.

    Example:

        shoplens bench rerank shop-index --out rerank-out
    """
    from benchmarks.attributes.rerank_report import PAGE, write_rerank_report
    from benchmarks.attributes.reranking import measure_tasks, record_of
    from indexing.cli import show_progress
    from indexing.malloc import keep_freed_memory
    from indexing.manifest import check_classifier, read_manifest
    from indexing.models import load_encoder
    from indexing.models.cma_clip import load_attributes
    from indexing.store import open_index

    keep_freed_memory()
    manifest = read_manifest(folder)
    record = record_of(manifest, folder)
    encoder = load_encoder(model or manifest.encoder.name)
    classifier = load_attributes(attributes or record.name)
    check_classifier(folder, manifest, classifier)
    index = open_index(folder, encoder=encoder)
    with show_progress() as progress:
        results = measure_tasks(
            index, encoder, classifier, lambda line: typer.echo(line, err=True), progress
        )
    write_rerank_report(results, out, shlex.join(["shoplens", *sys.argv[1:]]))
    typer.echo(f"report: {out / PAGE}")
