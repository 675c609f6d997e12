"""The command `shoplens explain`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from indexing.explaining import Explanation


def explain(
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="An ALBEF model: albef:PATH or its folder.")
    ],
    image: Annotated[Path, typer.Option(metavar="FILE", help="The picture.")],
    text: Annotated[str, typer.Option(help="The text; each of its words gets a map.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the picture with the maps goes."),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Layer of the fusion encoder, from 1.", show_default="3"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a word and nothing else.")
    ] = False,
) -> None:
    """Show where in a picture a model looks for each word of a text (Grad-CAM).

    The entropy of a map is 0 where one patch has all of it, and 1 where all have the same. "No
    gradient": nothing that the word sees speaks for a match; so it is with words that token
    pruning dropped before. In JSON, `map` holds rows of patches; without a gradient, `entropy`
    is null.

    Example, on a model that `shoplens train albef` wrote:

        shoplens explain --model my-albef --image mug.jpg --text "red mug with a lid" --out mug.png
    """
    from indexing.errors import QueryError
    from indexing.explaining import explain as explain_text
    from indexing.explaining_sheet import explanation_sheet
    from indexing.images import read_image
    from indexing.models import load_encoder
    from indexing.sheet import check_target, save_sheet

    if out is not None:
        check_target(out, "--out")
    elif not as_json:
        raise QueryError("give --out for a picture with the maps, --json for numbers, or both")
    encoder = load_encoder(model)
    picture = read_image(image, at_least=encoder.image_size)
    explanation = explain_text(encoder, picture, text, layer=layer)
    if as_json:
        for found in _objects(explanation):
            typer.echo(json.dumps(found, allow_nan=False))
    else:
        from rich.console import Console

        typer.echo(f"match {explanation.score:.3f}, fusion layer {explanation.layer}")
        Console().print(_table(explanation))
    if out is not None:
        save_sheet(explanation_sheet(picture, text, explanation), out, "--out")
        typer.echo(f"picture: {out}", err=True)


def _objects(explanation: Explanation) -> list[dict[str, Any]]:
    return [
        {
            "word": word.text,
            "entropy": None if math.isnan(word.entropy) else word.entropy,
            "kept": word.kept,
            "read": word.read,
            "match": explanation.score,
            "layer": explanation.layer,
            "map": word.map.tolist(),
        }
        for word in explanation.words
    ]


def _table(explanation: Explanation) -> Table:
    from rich.table import Table
    from rich.text import Text

    from indexing.explaining_sheet import remark
    from indexing.messages import one_line

    table = Table(box=None, pad_edge=False)
    table.add_column("word", overflow="fold")
    table.add_column("map")
    for word in explanation.words:
        table.add_row(Text(one_line(word.text), "" if word.kept else "dim"), Text(remark(word)))
    return table
