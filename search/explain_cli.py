"""The command `shoplens explain`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

    from indexing.explaining import Explanation
    from indexing.models.albef.encoder import AlbefEncoder
    from indexing.models.protocol import Encoder
    from search.explain import MatchExplanation

_JSON_SIDE = 32  # numbers of a heat map's longer side


def explain(
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="As for `shoplens index`; ALBEF maps each word.")
    ],
    image: Annotated[Path, typer.Option(metavar="FILE", help="The picture.")],
    text: Annotated[str | None, typer.Option(help="A text that it matches.")] = None,
    query: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture that it matches.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the picture with the maps goes."),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Layer of ALBEF's fusion encoder, from 1.", show_default="3"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON objects, one a line, and nothing else.")
    ] = False,
) -> None:
    """Show what in a picture makes it match a text, another picture, or both.

    The map is Grad-CAM on a convolutional picture tower, relevance through the attentions on a
    transformer. A word's weight is how much the cosine falls without it. In JSON there is one
    object: `heat` holds rows from the picture's top, at most 32 of each side.

    A text alone on an ALBEF model: each word gets a map of its own (Grad-CAM). The entropy of a
    map is 0 where one patch has all of it, and 1 where all have the same. "No gradient": nothing
    that the word sees speaks for a match; so it is with words that token pruning dropped before.
    In JSON, an object a word: `map` holds rows of patches; without a gradient, `entropy` is null.

    Example:

        shoplens explain --model builtin --image mug.jpg --text "red mug with a lid" --out mug.png
    """
    from indexing.errors import QueryError
    from indexing.images import read_image
    from indexing.models import load_encoder
    from indexing.models.albef.encoder import AlbefEncoder
    from indexing.sheet import check_target

    if out is not None:
        check_target(out, "--out")
    elif not as_json:
        raise QueryError("give --out for a picture with the maps, --json for numbers, or both")
    if text is None and query is None:
        raise QueryError("the query is empty: give --text, --query or both")
    encoder = load_encoder(model)
    picture = read_image(image, at_least=encoder.image_size)
    if text is not None and query is None and isinstance(encoder, AlbefEncoder):
        _explain_words(encoder, picture, text, layer, out, as_json)
        return
    if layer is not None:
        raise QueryError(
            f"--layer {layer} is for a text alone on an ALBEF model, whose words have maps by "
            "layers: leave it out"
        )
    asked = None if query is None else read_image(query, at_least=encoder.image_size)
    _explain_match(encoder, asked, text, picture, out, as_json)


def _explain_words(
    encoder: AlbefEncoder,
    picture: Image,
    text: str,
    layer: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    from indexing.explaining import explain as explain_text
    from indexing.explaining_sheet import explanation_sheet
    from indexing.sheet import save_sheet

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


def _explain_match(
    encoder: Encoder,
    query: Image | None,
    text: str | None,
    picture: Image,
    out: Path | None,
    as_json: bool,
) -> None:
    from indexing.sheet import save_sheet
    from search.explain import explain_match
    from search.explain_sheet import match_sheet

    found = explain_match(encoder, query, text, picture)
    if as_json:
        typer.echo(json.dumps(_match_object(found), allow_nan=False))
    else:
        from rich.console import Console

        typer.echo(f"cosine {found.score:.3f}")
        if found.words:
            Console().print(_weights(found))
    if out is not None:
        save_sheet(match_sheet(query, text, picture, found), out, "--out")
        typer.echo(f"picture: {out}", err=True)


def _match_object(found: MatchExplanation) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    heat = Image.fromarray(found.heat)
    heat.thumbnail((_JSON_SIDE, _JSON_SIDE), Image.Resampling.BOX)
    return {
        "score": found.score,
        "words": [
            {"word": word.text, "kept": word.kept, "weight": word.weight} for word in found.words
        ],
        "heat": np.asarray(heat, np.float64).round(4).tolist(),
    }


def _weights(found: MatchExplanation) -> Table:
    from rich.table import Table
    from rich.text import Text

    from indexing.messages import one_line

    table = Table(box=None, pad_edge=False)
    table.add_column("word", overflow="fold")
    table.add_column("weight", justify="right")
    for word in found.words:
        style = "dim" if word.kept is False else ""
        weight = "" if word.weight is None else f"{word.weight:+.3f}"
        table.add_row(Text(one_line(word.text), style), weight)
    return table


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
