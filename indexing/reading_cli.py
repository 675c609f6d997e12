"""The command `shoplens attributes`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from indexing.models.cma_clip.classifier import CmaClassifier

_SHOWN = 3  # values of each attribute


def attributes(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What `shoplens train attributes` wrote.")
    ],
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The product's picture.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="The product's title.")] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save a picture of where each word looks."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object an attribute and nothing else.")
    ] = False,
) -> None:
    """Read the attributes of one product off its picture, its title, or both.

    Behind each attribute stand its likeliest values, and how far the picture counted against the
    title. A value is sure where it is right in nine of ten cases: only such values fill gaps.

    Example:

        shoplens attributes my-attributes --image mug.jpg --title "stoneware mug" --sheet look.png
    """
    from indexing.attributes.attention import as_seen, attention_maps
    from indexing.errors import QueryError
    from indexing.explaining_sheet import attention_sheet
    from indexing.images import read_image
    from indexing.models.cma_clip import load_attributes
    from indexing.sheet import check_target, save_sheet

    if image is None and title is None:
        raise QueryError("give --image, --title, or both")
    if sheet is not None:
        check_target(sheet, "--sheet")
        if image is None or title is None:
            raise QueryError(
                "--sheet shows where words look in a picture: give --image and --title"
            )
    classifier = load_attributes(folder)
    picture = None if image is None else read_image(image, at_least=classifier.image_size)
    pixels = None if picture is None else classifier.preprocess(picture)[None]
    for found in _findings(classifier, pixels, title):
        typer.echo(json.dumps(found) if as_json else _line(found))
    if sheet is not None and picture is not None and title is not None:
        maps = attention_maps(classifier, picture, title)
        seen = as_seen(classifier, picture)
        save_sheet(attention_sheet(seen, title, maps), sheet, "--sheet")
        typer.echo(f"picture: {sheet}", err=True)


def _findings(classifier: CmaClassifier, pixels: Any, title: str | None) -> list[dict[str, Any]]:
    from indexing.attributes.vocabulary import ABSTAINED
    from indexing.models.cma_clip.classifier import calibrated

    reading = classifier.read(pixels, None if title is None else [title])
    [mode] = reading.modes
    found = []
    for place, attribute in enumerate(classifier.attributes):
        chances = calibrated(attribute, reading.logits[attribute.name], reading.modes)
        best = chances[0].argsort()[::-1][:_SHOWN]
        found.append(
            {
                "attribute": attribute.name,
                "sure": bool(attribute.decide(chances, mode)[0] != ABSTAINED),
                "values": {attribute.values[each]: float(chances[0, each]) for each in best},
                "picture_weight": float(reading.picture_weight[0, place]),
            }
        )
    return found


def _line(found: dict[str, Any]) -> str:
    values = ", ".join(f"{value} {chance:.0%}" for value, chance in found["values"].items())
    sure = "" if found["sure"] else " (not sure)"
    return f"{found['attribute']}: {values}{sure}; picture {found['picture_weight']:.0%}"
