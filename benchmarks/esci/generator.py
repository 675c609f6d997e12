"""Files like the official ESCI ones, with known cases in them, of any size.

    python -m benchmarks.esci.generator --out made-up --products 240

writes two Parquet files of the official columns, pictures.parquet (a picture manifest),
placeholders.txt, planted.json (the counts that a split must find), and either the drawn
pictures or scan.parquet, what a scan would say of them: 1.2 million products, the real size,
have three million pictures.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.esci.planted import expected
from benchmarks.esci.synthetic import Looks, write_examples, write_products
from benchmarks.esci.synthetic_pictures import (
    draw_pictures,
    placeholder,
    write_facts,
    write_manifest,
)
from indexing.errors import BenchmarkError
from indexing.messages import shown

EXAMPLES = "shopping_queries_dataset_examples.parquet"
PRODUCTS = "shopping_queries_dataset_products.parquet"
MANIFEST = "pictures.parquet"
PLACEHOLDERS = "placeholders.txt"
IMAGES = "images"
FACTS = "scan.parquet"
PLANTED = "planted.json"


def generate(out: Path, products: int, seed: int, pictures: Literal["drawn", "facts"]) -> None:
    """Write the files to a new folder. Raises BenchmarkError where it is not empty."""
    if out.exists() and any(out.iterdir()):
        raise BenchmarkError(f"{shown(out)} is not empty: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    looks = Looks.of(products, seed)
    write_products(out / PRODUCTS, looks, seed)
    write_examples(out / EXAMPLES, looks, seed)
    write_manifest(out / MANIFEST, products)
    digest = hashlib.sha256(placeholder(listed=True)).hexdigest()
    (out / PLACEHOLDERS).write_text(f"{digest}  # no picture available\n")
    (out / PLANTED).write_text(json.dumps(expected(products), indent=2) + "\n")
    if pictures == "drawn":
        draw_pictures(out / IMAGES, looks, seed)
    else:
        (out / IMAGES).mkdir()
        write_facts(out / FACTS, products, seed)


def main(
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    products: Annotated[int, typer.Option(min=24, help="Products of locale us.")] = 240,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    pictures: Annotated[
        Literal["drawn", "facts"],
        typer.Option(help="Draw the pictures, or write only what a scan would say of them."),
    ] = "drawn",
) -> None:
    """Write files like the official ESCI ones, with known cases in them.

    Example: python -m benchmarks.esci.generator --out made-up --products 240
    """
    generate(out, products, seed, pictures)
    names = [EXAMPLES, PRODUCTS, MANIFEST, PLACEHOLDERS, PLANTED]
    names.append(IMAGES if pictures == "drawn" else FACTS)
    typer.echo(f"{out}: {', '.join(names)}")


if __name__ == "__main__":
    typer.run(main)
