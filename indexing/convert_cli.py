"""The command `shoplens convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from indexing.models.albef.encoder import AlbefEncoder


def convert(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="albef:PATH, a checkpoint of ALBEF or LAVIS or a folder with one."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The model folder to write.")],
    half: Annotated[
        bool, typer.Option("--half", help="Store float16: half the size, read as float32.")
    ] = False,
) -> None:
    """Turn a checkpoint of ALBEF into a model folder: what searching needs, as safetensors.

    BERT's vocab.txt must lie beside the checkpoint. Momentum copies and queues are left out,
    so that the folder is less than half as large.

    Example:

        shoplens convert albef:downloads/ALBEF.pth --out albef-base

        shoplens index catalog.csv --out shop-index --model albef-base
    """
    from indexing.errors import ModelError
    from indexing.models import load_encoder
    from indexing.models.albef.encoder import AlbefEncoder

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"--out {out} is there already: name a new folder, or empty it")
    if Path(model).is_file():
        raise ModelError(f"{model} is a file: write albef:{model}")
    encoder = load_encoder(model, device="cpu")
    if not isinstance(encoder, AlbefEncoder):
        raise ModelError(
            f"{model} is not an ALBEF model: only these are converted, as albef:PATH; "
            "others are used by their names as they are"
        )
    encoder.save(out, card=_card(encoder, Path(model).name), half=half)
    typer.echo(f"model written to {out}: try `shoplens index CATALOG --out DIR --model {out}`")


def _card(encoder: AlbefEncoder, source: str) -> str:
    config = encoder.config
    matching = (
        "It also tells how well a title fits a picture."
        if encoder.has_match
        else "It has no matching head."
    )
    return f"""# ALBEF, from {source}

Converted by `shoplens convert`, without momentum copies and queues; the weights are those of
whoever published them, and so is their licence.

Pictures of {config.image_size} x {config.image_size} pixels and titles of up to
{config.max_text_length} word pieces become unit vectors of {config.embed_dim} numbers. {matching}

    shoplens index catalog.csv --out shop-index --model FOLDER
"""
