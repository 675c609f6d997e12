"""The commands that change an index: `shoplens update`, `delete`, `compact` and `rollback`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from indexing.cli import (
    ImagesRoot,
    Mapping,
    OnDuplicateChoice,
    Profile,
    parse_mapping,
    resumable,
    show_progress,
    summary,
)

if TYPE_CHECKING:
    from indexing.catalog import OnDuplicate

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of `shoplens index`.")]


def update(
    folder: Folder,
    catalog: Annotated[
        Path, typer.Argument(metavar="CATALOG", help="New and changed products, as for `index`.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Where the index's model is now, if it was moved.")
    ] = None,
    profile: Profile = "auto",
    images_root: ImagesRoot = None,
    mapping: Mapping = None,
    on_duplicate: OnDuplicateChoice = "error",
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures that are given as URLs.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures encoded at once.")] = 16,
    attributes: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where the index's attribute classifier is now, if it was moved."
        ),
    ] = None,
    categories: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where the index's categoriser is now, if it was moved."
        ),
    ] = None,
    compaction: Annotated[
        bool,
        typer.Option(
            "--compact/--no-compact", help="Merge the index's parts afterwards where it pays."
        ),
    ] = True,
) -> None:
    """Bring new and changed products into an index; the others stay as they are.

    Example:

        shoplens update shop-index todays-changes.csv

    Searches see the change at once and go on meanwhile. It costs what the changed products
    cost: only pictures that the index does not know are encoded. To drop products that a
    catalog no longer names, run `shoplens index` with the whole catalog, or `shoplens delete`.
    """
    from indexing.attributes.opening import load_classifiers
    from indexing.catalog import read_catalog
    from indexing.malloc import keep_freed_memory
    from indexing.manifest import read_manifest
    from indexing.models import load_encoder
    from indexing.update import update_index

    keep_freed_memory()
    with resumable():
        manifest = read_manifest(folder)
        source = read_catalog(
            catalog,
            profile,
            images_root,
            parse_mapping(mapping or []),
            on_duplicate=cast("OnDuplicate", on_duplicate),
            allow_urls=allow_urls,
        )
        with show_progress() as progress:
            report = update_index(
                source,
                load_encoder(model or manifest.encoder.name),
                folder,
                batch_size=batch_size,
                classifiers=load_classifiers(
                    {"attributes": attributes, "categories": categories}, manifest.attributes
                ),
                progress=progress,
            )
        for line in summary(report):
            typer.echo(line)
        if compaction:
            _compact_where_it_pays(folder)


def delete(
    folder: Folder,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]…", help="Products to remove.")
    ] = None,
    ids_from: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="A file with an id a line; - for standard input."
        ),
    ] = None,
) -> None:
    """Remove products from an index; searches stop finding them at once.

    Example:

        shoplens delete shop-index SKU-1 SKU-2
    """
    from indexing.messages import printable
    from indexing.update import delete_products

    wanted = [*(ids or []), *_lines(ids_from)]
    unknown = delete_products(folder, wanted)
    for product_id in unknown:
        typer.echo(f"not in the index: {printable(product_id)}", err=True)
    gone = len(dict.fromkeys(wanted)) - len(unknown)
    typer.echo(f"{folder}: {gone:,} products deleted; `shoplens rollback {folder}` undoes it")
    _compact_where_it_pays(folder)


def compact(folder: Folder) -> None:
    """Merge the parts of an index into one, and drop what updates have left dead.

    Searches and updates go on meanwhile. `update` and `delete` do this by themselves where it
    pays.

    Example:

        shoplens compact shop-index
    """
    from indexing.compact import compact as merge

    with resumable():
        manifest = merge(folder)
    typer.echo(f"{folder}: version {manifest.version}, {manifest.kind}")


def rollback(
    folder: Folder,
    to: Annotated[
        int | None,
        typer.Option(
            metavar="VERSION", help="Which of those that `info` lists [default: the last]."
        ),
    ] = None,
) -> None:
    """Make an earlier version of an index hold again.

    Example, after an update that was a mistake:

        shoplens rollback shop-index
    """
    from indexing.committing import roll_back

    manifest = roll_back(folder, to)
    typer.echo(
        f"{folder}: version {manifest.version}, a {manifest.change}: {manifest.products:,} "
        f"products, {manifest.images:,} pictures"
    )


def _compact_where_it_pays(folder: Path) -> None:
    from indexing.compact import compact as merge
    from indexing.compact import worth_compacting
    from indexing.errors import IndexFolderError
    from indexing.store import open_index

    if not worth_compacting(open_index(folder)):
        return
    typer.echo("merging the parts of the index; the change is in effect already", err=True)
    try:
        merge(folder)
    except IndexFolderError as error:  # another process merges already, say
        typer.echo(f"not merged: {error}", err=True)


def _lines(file: Path | None) -> list[str]:
    from indexing.errors import QueryError

    if file is None:
        return []
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"--from {file} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
