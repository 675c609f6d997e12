"""The command `shoplens clean`."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from indexing.cli import (
    ImagesRoot,
    Mapping,
    OnDuplicateChoice,
    Profile,
    parse_mapping,
    say_left_out,
)

if TYPE_CHECKING:
    from rich.text import Text

    from indexing.catalog import Catalog, OnDuplicate
    from indexing.cleaning import Word
    from indexing.models.albef.encoder import AlbefEncoder
    from indexing.models.clip import ClipEncoder
    from indexing.models.token_pruning import TokenPruning

_TOGETHER = 1024  # products that are read and cleaned at once


def clean(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model that was trained with token pruning.")
    ],
    titles: Annotated[
        list[str] | None, typer.Argument(metavar="TITLE…", help="Titles to show word by word.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a title and nothing else.")
    ] = False,
    catalog: Annotated[
        Path | None,
        typer.Option(metavar="CATALOG", help="Clean all titles of what `shoplens index` reads."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where they go, as CSV: id, title, cleaned, share of words kept."
        ),
    ] = None,
    profile: Profile = "auto",
    images_root: ImagesRoot = None,
    mapping: Mapping = None,
    on_duplicate: OnDuplicateChoice = "error",
) -> None:
    """Show which words of a title a model keeps, and which it drops as noise.

    In JSON, `dies` is the layer that drops a word: null for one that is kept, 0 for one that
    the model does not read, as it is beyond its longest text or no token stands for it.

    Example, on a model made with `shoplens train clip --preset calibrated`:

        shoplens clean my-model "Zurn Z6000 AquaVantage chrome toilet flush valve 1.6 gpf"

        shoplens clean my-model --catalog catalog.csv --out cleaned.csv
    """
    from indexing.catalog import read_catalog
    from indexing.errors import ModelError
    from indexing.models import load_encoder
    from indexing.models.albef.encoder import AlbefEncoder
    from indexing.models.clip import ClipEncoder

    _check(titles, catalog, out, as_json)
    encoder = load_encoder(model)
    if not isinstance(encoder, (ClipEncoder, AlbefEncoder)):
        raise ModelError(f"{model} is neither a CLIP nor an ALBEF model")
    if catalog is None or out is None:
        _show(encoder, titles or [], as_json)
        return
    source = read_catalog(
        catalog,
        profile,
        images_root,
        parse_mapping(mapping or []),
        on_duplicate=cast("OnDuplicate", on_duplicate),
    )
    _write(encoder, source, out)
    say_left_out(source)


def _check(titles: list[str] | None, catalog: Path | None, out: Path | None, as_json: bool) -> None:
    """Refuse what does not go together, or could not be written, before the work starts."""
    from indexing.errors import QueryError

    if bool(titles) == (catalog is not None):
        raise QueryError("give either titles to show, or --catalog with --out")
    if (catalog is None) != (out is None):
        raise QueryError("--catalog and --out go together: what to clean, and the file to write")
    if out is None:
        return
    if as_json:
        raise QueryError("--json is for titles: --catalog writes CSV")
    if out.is_dir() or not out.parent.is_dir():
        raise QueryError(f"--out {out}: give the name of a file in a folder that exists")


def _show(encoder: ClipEncoder | AlbefEncoder, titles: list[str], as_json: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from indexing.cleaning import clean as clean_titles
    from indexing.cleaning import cleaned
    from indexing.messages import one_line

    console = Console()
    for title, words in zip(titles, clean_titles(encoder, titles), strict=True):
        if as_json:
            typer.echo(json.dumps(_object(title, words), allow_nan=False))
            continue
        console.print(_line(words))
        kept = sum(word.kept for word in words)
        console.print(Text(f"  {kept} of {len(words)} words: {one_line(cleaned(words))}", "bold"))
    if encoder.pruning is not None and not as_json:
        for line in _legend(encoder.pruning, encoder):
            console.print(line)


def _line(words: Sequence[Word]) -> Text:
    """The words with their scores; those that are dropped stand in brackets, with the layer."""
    from rich.text import Text

    from indexing.messages import one_line

    shown = []
    for word in words:
        score = "" if math.isnan(word.score) else f"({word.score:.3g})"
        text = one_line(word.text)
        if word.kept:
            shown.append(Text.assemble((text, "green"), (score, "dim")))
        elif word.dies:
            end = f"{score}@{word.dies}]"
            shown.append(Text.assemble(("[", "dim"), (text, "dim strike"), (end, "dim")))
        else:
            shown.append(Text.assemble(("[", "dim"), (text, "yellow strike"), ("]", "dim")))
    return Text(" ").join(shown)


def _legend(pruning: TokenPruning, encoder: ClipEncoder | AlbefEncoder) -> Iterator[Text]:
    from rich.text import Text

    from indexing.cleaning import Word
    from indexing.models.albef.encoder import AlbefEncoder

    examples = (
        (Word("kept", 0.5, 0.1, None), "with its score"),
        (Word("dropped", 0.05, 0.1, 1), "with the layer"),
        (Word("unread", math.nan, math.nan, 0), "beyond the longest text, or without a token"),
    )
    yield Text()
    for word, meaning in examples:
        yield Text.assemble(_line([word]), (f" {meaning}", "dim"))
    thresholds = pruning.thresholds().tolist()
    read = encoder.config.fusion_layer if isinstance(encoder, AlbefEncoder) else len(thresholds)
    for layer, threshold in enumerate(thresholds[:read]):
        if pruning.prunes(layer):
            yield Text(f"layer {layer + 1} drops what scores below {threshold:.3g}", "dim")
    if any(map(pruning.prunes, range(read, len(thresholds)))):
        yield Text("the fusion encoder drops more, beside a picture: `shoplens explain`", "dim")


def _object(title: str, words: Sequence[Word]) -> dict[str, Any]:
    from indexing.cleaning import cleaned, kept_share

    return {
        "title": title,
        "cleaned": cleaned(words),
        "kept": kept_share(words),
        "words": [
            {
                "text": word.text,
                "score": None if math.isnan(word.score) else word.score,
                "threshold": None if math.isnan(word.threshold) else word.threshold,
                "dies": word.dies,
            }
            for word in words
        ],
    }


def _write(encoder: ClipEncoder | AlbefEncoder, source: Catalog, out: Path) -> None:
    """The cleaned titles of a catalog as CSV, all or nothing."""
    from rich.console import Console
    from rich.progress import track

    from indexing.cleaning import clean as clean_titles
    from indexing.cleaning import cleaned, kept_share
    from indexing.durable import write_atomically

    products = kept = words = cut = 0

    def write(path: Path) -> None:
        nonlocal products, kept, words, cut
        console = Console(stderr=True)
        shown = track(source, "titles", console=console, disable=not sys.stderr.isatty())
        rest = iter(shown)
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "title", "cleaned", "kept"])
            while part := list(islice(rest, _TOGETHER)):
                found = clean_titles(encoder, [product.title for product in part])
                for product, title in zip(part, found, strict=True):
                    share = round(kept_share(title), 4)
                    rows.writerow([product.id, product.title, cleaned(title), share])
                    products += 1
                    words += len(title)
                    kept += sum(word.kept for word in title)
                    cut += any(word.dies == 0 for word in title)

    write_atomically(out, write)
    share = f"{kept / words:.1%} of {words:,} words kept" if words else "without words"
    typer.echo(f"{out}: {products:,} titles, {share}")
    if cut:
        typer.echo(f"{cut:,} titles have words that the model does not read", err=True)
