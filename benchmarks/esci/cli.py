"""The command `shoplens bench esci-split`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexing.cli import bad_option, resumable, show_progress

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.esci.manifest import Manifest, Options


def esci_split(
    examples: Annotated[
        Path,
        typer.Argument(metavar="EXAMPLES", help="shopping_queries_dataset_examples.parquet."),
    ],
    products: Annotated[
        Path,
        typer.Argument(metavar="PRODUCTS", help="shopping_queries_dataset_products.parquet."),
    ],
    images: Annotated[
        list[str],
        typer.Option(
            metavar="[KIND:]PATH",
            help="Which pictures belong to which product; may be repeated. KIND is manifest (CSV "
            "or Parquet with product_id, role, rank, path), sqid, esci-s, amazon-reviews or abo (a "
            "folder with listings and images.csv.gz), and shows by the columns where it is not "
            "given.",
        ),
    ],
    images_root: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Where picture paths begin. The file of a URL is looked up by its last part.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    seed: Annotated[int, typer.Option(help="Decides which groups are test and validation.")] = 0,
    locale: Annotated[str, typer.Option(help="Locale of the products and queries.")] = "us",
    facts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="scan.parquet of an earlier split: its pictures are not read again.",
        ),
    ] = None,
    placeholders: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="SHA-256 of pictures that show no product, one a line."),
    ] = None,
    max_shared: Annotated[
        int,
        typer.Option(min=1, help="A picture of more products than this is a placeholder."),
    ] = 50,
    min_side: Annotated[
        int, typer.Option(min=1, help="Pictures whose shorter side has fewer pixels are dropped.")
    ] = 100,
    test_products: Annotated[
        int | None,
        typer.Option(
            min=1, help="About how many  [default: 80,000, or 11.27% of all where that is less]"
        ),
    ] = None,
    validation_products: Annotated[
        int | None,
        typer.Option(min=0, help="About how many  [default: 5,000, or 0.70% where that is less]"),
    ] = None,
    train_images: Annotated[
        str, typer.Option(help="Pictures to train on: main, aux, all or main+1.")
    ] = "aux",
    pair_mode: Annotated[
        str, typer.Option(help="Test pairs: all_pairs (any two pictures) or aux_to_main.")
    ] = "all_pairs",
    small: Annotated[
        bool, typer.Option("--small", help="Only queries of ESCI's small version.")
    ] = False,
    allow_urls: Annotated[
        bool,
        typer.Option("--allow-urls", help="Fetch pictures that are not there into --images-root."),
    ] = False,
) -> None:
    """Make the multi-image retrieval benchmark out of the official Amazon ESCI files.

    Example, with pictures named by a manifest and by Amazon-Reviews-2023:

        shoplens bench esci-split examples.parquet products.parquet --images pictures.csv
        --images amazon-reviews:meta_Electronics.jsonl.gz --images-root pictures --out esci

    Products with fewer than two distinct pictures are left out. Products of one family,
    with a picture in common or with the same title go to the same part. Safe to stop and to
    run again: pictures that were looked at are not read again.
    """
    from rich.console import Console

    from benchmarks.esci.build import build_split
    from benchmarks.esci.sources import parse_source

    options = _options(
        locale=locale,
        seed=seed,
        min_side=min_side,
        max_shared=max_shared,
        test_products=test_products,
        validation_products=validation_products,
        train_images=train_images,
        pair_mode=pair_mode,
        small=small,
        allow_urls=allow_urls,
    )
    with resumable(), show_progress() as progress:
        split = build_split(
            examples,
            products,
            [parse_source(text) for text in images],
            images_root,
            out,
            options,
            facts=facts,
            placeholders=placeholders,
            stage=lambda name: typer.echo(f"{name} ...", err=True),
            progress=progress,
        )
    Console().print(summary(split.manifest))
    typer.echo(f"{out} is ready")


def summary(manifest: Manifest) -> Table:
    """Counts of a split, step by step, beside the paper's."""
    from rich.table import Table

    counts, paper = manifest.counts, manifest.paper
    products, pictures, groups = counts.products, counts.pictures, counts.groups
    train, validation, test = (counts.parts[name] for name in ("train", "validation", "test"))
    queries = counts.queries
    table = Table("count", "ours", "paper")
    for column in table.columns[1:]:
        column.justify = "right"

    def add(name: str, ours: int, theirs: str = "") -> None:
        table.add_row(name, f"{ours:,}", theirs)

    add(f"product rows of locale {manifest.options.locale}", products.rows - products.other_locale)
    add("  with a title", products.usable)
    add("pictures named for them", pictures.named)
    for name, number in _dropped(pictures.model_dump()):
        add(f"  {name}", number)
    add("products with two pictures", groups.products, "> 710,000")
    add("  their pictures", pictures.kept)
    add("  groups that stay together", groups.groups)
    add("  products of the largest group", groups.largest)
    add("train products", train.products, f"{paper['train products']:,}")
    add("  picture-title pairs", train.pairs, f"{paper['train pairs']:,}")
    add("validation products", validation.products, "-")
    add("test products", test.products, f"{paper['test products']:,}")
    add("  picture pairs", test.pairs, f"{paper['test pairs']:,}")
    add("queries over the test products", queries.queries, "-")
    add("  their judgments", queries.judgments, "-")
    return table


def _dropped(pictures: dict[str, int]) -> list[tuple[str, int]]:
    names = {
        "missing": "missing",
        "broken": "broken",
        "too_small": "too small",
        "placeholders": "placeholders of the list",
        "shared": "placeholders by number of products",
        "same_as_main": "the main picture again",
        "same_as_other": "another picture again",
        "beyond_ten": "beyond ten auxiliary ones",
        "of_dropped_products": "alone on their product",
    }
    return [(name, pictures[key]) for key, name in names.items()]


def _options(**values: object) -> Options:
    from pydantic import ValidationError

    from benchmarks.esci.manifest import Options
    from indexing.errors import BenchmarkError

    try:
        return Options.model_validate(values)
    except ValidationError as error:
        raise BenchmarkError(bad_option(error)) from error
