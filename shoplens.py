"""The door of shoplens: the command line and the public names.

    from shoplens import SearchEngine, build_index, load_encoder, read_catalog

    build_index(read_catalog("catalog.csv"), load_encoder("builtin"), Path("index"))
    hits = SearchEngine.open(Path("index")).search(text="red mug", k=5)

Names are imported when they are first used, so that `shoplens --help` answers at once.
"""

from __future__ import annotations

import logging
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

import benchmarks.ann_cli
import benchmarks.attributes.cli
import benchmarks.attributes.rerank_cli
import benchmarks.categories.cli
import benchmarks.cli
import benchmarks.esci.cli
import benchmarks.losses.cli
import benchmarks.optimize_cli
import benchmarks.pruning.cli
import benchmarks.speed_cli
import benchmarks.upgrade_cli
import indexing.attributes_cli
import indexing.categorizing_cli
import indexing.changing_cli
import indexing.cleaning_cli
import indexing.cli
import indexing.convert_cli
import indexing.info_cli
import indexing.reading_cli
import search.cli
import search.explain_cli
import search.serve_cli
import training.albef_cli
import training.attributes_cli
import training.categories_cli
import training.cli
from indexing.errors import ShoplensError
from indexing.messages import reason

if TYPE_CHECKING:
    from indexing.build import BuildReport, build_index
    from indexing.catalog import Catalog, read_catalog
    from indexing.catalog.product import Product, ProductImage
    from indexing.images import decode_image
    from indexing.models import load_encoder
    from indexing.models.protocol import Encoder
    from indexing.store import open_index
    from search.client import Client
    from search.engine import SearchEngine
    from search.hits import Answers, Hit

__all__ = [
    "Answers",
    "BuildReport",
    "Catalog",
    "Client",
    "Encoder",
    "Hit",
    "Product",
    "ProductImage",
    "SearchEngine",
    "ShoplensError",
    "build_index",
    "decode_image",
    "load_encoder",
    "main",
    "open_index",
    "read_catalog",
]

_HOME = {
    "BuildReport": "indexing.build",
    "Catalog": "indexing.catalog",
    "Client": "search.client",
    "Encoder": "indexing.models.protocol",
    "Answers": "search.hits",
    "Hit": "search.hits",
    "Product": "indexing.catalog.product",
    "ProductImage": "indexing.catalog.product",
    "SearchEngine": "search.engine",
    "build_index": "indexing.build",
    "decode_image": "indexing.images",
    "load_encoder": "indexing.models",
    "open_index": "indexing.store",
    "read_catalog": "indexing.catalog",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'shoplens' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


app = typer.Typer(
    name="shoplens",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Product visual search: from a catalog dump to answers.

    Example:

        shoplens index catalog.csv --out shop-index

        shoplens search shop-index --text "red shoes"
    """,
)
train = typer.Typer(
    no_args_is_help=True,
    help="""Fine-tune models on a catalog.

    Example:

        shoplens train clip catalog.csv --out my-model --lock-image
    """,
)

bench = typer.Typer(
    no_args_is_help=True,
    help="""Measure retrieval, indices and speed.

    Example:

        shoplens bench recall shop-index --catalog catalog.csv --views
    """,
)

app.command()(indexing.reading_cli.attributes)
app.command()(indexing.categorizing_cli.categorize)
app.command()(indexing.cleaning_cli.clean)
app.command()(indexing.changing_cli.compact)
app.command()(indexing.convert_cli.convert)
app.command()(indexing.changing_cli.delete)
app.command()(search.cli.demo)
app.command()(indexing.cli.doctor)
app.command()(search.explain_cli.explain)
app.command()(indexing.attributes_cli.export)
app.command()(indexing.cli.index)
app.command()(indexing.info_cli.info)
app.command()(benchmarks.optimize_cli.optimize)
app.command()(indexing.changing_cli.rollback)
app.command()(search.cli.search)
app.command()(search.serve_cli.serve)
app.command()(indexing.changing_cli.update)
app.command()(benchmarks.upgrade_cli.upgrade)
app.add_typer(train, name="train")
train.command()(training.albef_cli.albef)
train.command()(training.attributes_cli.attributes)
train.command()(training.categories_cli.categories)
train.command()(training.cli.clip)
app.add_typer(bench, name="bench")
bench.command()(benchmarks.ann_cli.ann)
bench.command()(benchmarks.ann_cli.filters)
bench.command()(benchmarks.attributes.cli.attributes)
bench.command()(benchmarks.categories.cli.categories)
bench.command()(benchmarks.esci.cli.esci_split)
bench.command()(benchmarks.losses.cli.losses)
bench.command()(benchmarks.pruning.cli.pruning)
bench.command()(benchmarks.cli.recall)
bench.command()(benchmarks.attributes.rerank_cli.rerank)
bench.command()(benchmarks.cli.score)
bench.command()(benchmarks.speed_cli.speed)

_debug = False


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"shoplens {version('shoplens')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    global _debug
    _debug = debug
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
        return
    # What other libraries say of a file, our own message says better.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger().addHandler(logging.NullHandler())
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    for room in ("benchmarks", "indexing", "search", "training"):
        logging.getLogger(room).addHandler(handler)


def main() -> None:
    """The `shoplens` command: errors become one line and exit code 2."""
    try:
        app()
    except ShoplensError as error:
        if _debug:
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
    except OSError as error:
        if _debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        typer.secho(f"error: {where}{error.strerror or error}", fg="red", err=True)
        sys.exit(2)
    except Exception as error:
        if _debug:
            raise
        typer.secho(f"error: {type(error).__name__}: {reason(error)}", fg="red", err=True)
        typer.echo("(unexpected: `shoplens --debug ...` shows where)", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
