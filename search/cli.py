"""The commands `shoplens search` and `shoplens demo`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from search.fusion import Fuse
    from search.hits import Answers, Hit
    from search.query import Crop
    from search.rerank import OnRerank, RerankCost


def search(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that `shoplens index` wrote.")
    ],
    image: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A photo to search with; - reads standard input."),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Words to search with.")] = None,
    minus: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Words to turn away from; may be given again."),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="Part of the photo, in fractions: 0.5,0,0.5,1 is the right half.",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="EXPR", help="Filter, such as \"price < 50 and color in ['Red', 'Blue']\"."
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Number of products.")] = 10,
    image_weight: Annotated[float, typer.Option(help="Weight of the photo.")] = 1.0,
    text_weight: Annotated[float, typer.Option(help="Weight of the words.")] = 1.0,
    minus_weight: Annotated[float, typer.Option(help="Weight of each --minus.")] = 0.5,
    fuse: Annotated[
        str,
        typer.Option(
            help="A product with several pictures counts by its best one (max) or by the mean of "
            "its two best (top2)."
        ),
    ] = "max",
    collapse: Annotated[
        bool,
        typer.Option(
            "--collapse/--no-collapse",
            help="Show products with nearly the same main picture once.",
        ),
    ] = False,
    diversity: Annotated[
        float, typer.Option(help="From 0 (nearest first) to 1 (as different as can be).")
    ] = 0.0,
    itm_rerank: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Order the first N anew by how well text and picture match; needs an ALBEF index.",
        ),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What products must have: those that surely have not come last, such as "
            "color=red; may be given again.",
        ),
    ] = None,
    rerank: Annotated[
        bool,
        typer.Option(
            "--rerank/--no-rerank",
            help="Let attributes count for the order, where the index has shown that it helps.",
        ),
    ] = True,
    facets: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Also count values of attributes among the first 200 products: color,usage.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The index's encoder, where it has another name or place by now, or one that "
            "`shoplens optimize` made of it."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line and nothing else.")
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also save the query and its answers as a picture."),
    ] = None,
) -> None:
    """Find products by photo, by words, or by both.

    Example, on an index made with `shoplens index catalog.csv --out shop-index`:

        shoplens search shop-index --text "red mug" --where "price < 50" --k 5

    On the index of an ALBEF model, whose fusion encoder reads text and picture together:

        shoplens search shop-index --text "red mug with a lid" --itm-rerank 128

    On an index that knows attributes of its products:

        shoplens search shop-index --text "mug" --attribute color=red --facets color,usage

    On one that knows categories by titles, those that the words let expect come last, each with
    the option that asks for it.

    Where the index can tell that the shop hardly has it, `no good match` stands first.

    Filters know == != < <= > >= in, not in, contains, is null, and, or, not.
    Text is compared without regard to case; names with spaces stand in `back quotes`.
    """
    from indexing.models import load_asker
    from indexing.sheet import check_target, save_sheet
    from search.engine import SearchEngine
    from search.query import load_picture

    if sheet is not None:
        check_target(sheet, "--sheet")
    box, chosen = _parse_crop(crop), _parse_attributes(attribute or ())
    source = _read_source(image)
    query_picture = None if sheet is None or source is None else load_picture(source, box)
    engine = SearchEngine.open(folder, model=model, load=load_asker)
    with _reranking(itm_rerank) as on_rerank:
        hits = engine.search(
            image=source,
            text=text,
            k=k,
            where=where,
            minus=minus or (),
            crop=box,
            image_weight=image_weight,
            text_weight=text_weight,
            minus_weight=minus_weight,
            fuse=cast("Fuse", fuse),
            collapse=collapse,
            diversity=diversity,
            itm_rerank=itm_rerank,
            on_rerank=on_rerank,
            attributes=chosen,
            rerank=rerank,
            facets=[name.strip() for name in facets.split(",")] if facets else (),
        )
    if as_json:
        sure: dict[str, Any] = {
            "match_probability": hits.match_probability,
            "good_match": hits.good_match,
        }
        if hits.facets:
            sure["facets"] = {
                name: [asdict(count) for count in counts] for name, counts in hits.facets.items()
            }
        if hits.proposals:
            sure["proposals"] = [asdict(proposal) for proposal in hits.proposals]
        for hit in hits:
            # ASCII, so that no terminal setting and no odd file name can break a line.
            typer.echo(json.dumps({**hit.to_json(), **sure}, allow_nan=False))
    elif hits:
        from rich.console import Console

        if hits.good_match is False:
            typer.echo(
                f"no good match: the shop has this with a probability of "
                f"{hits.match_probability:.0%}"
            )
        table = _table(hits, matches=itm_rerank is not None, faded=hits.good_match is False)
        Console().print(table)
        for line in (*_facet_lines(hits), *_proposal_lines(hits)):
            typer.echo(line)
    if not hits:
        typer.echo("no product matches the filter" if where else "the index is empty", err=as_json)
    if sheet is not None:
        from search.answers import answer_sheet

        caption = _caption(text, minus or (), where)
        save_sheet(answer_sheet(query_picture, caption, hits), sheet, "--sheet")
        typer.echo(f"contact sheet: {sheet}", err=True)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path(
        "demo-out"
    ),
    products: Annotated[int, typer.Option(min=10, help="Size of the drawn catalog.")] = 240,
) -> None:
    """Index a small drawn shop and search it: the whole job without any data of your own.

    Example:

        shoplens demo --out demo-out
    """
    from rich.console import Console

    from indexing.cli import show_progress, summary
    from indexing.malloc import keep_freed_memory
    from search.demo import run_demo

    keep_freed_memory()
    with show_progress() as progress:
        made = run_demo(out, products=products, progress=progress)
    console = Console()
    for line in summary(made.report):
        typer.echo(line)
    for answer in made.answers:
        console.rule(answer.query, align="left")
        console.print(_table(answer.hits))
    typer.echo(f"the same as a picture: {made.sheet}")


def _read_source(image: str | None) -> Path | bytes | None:
    """The path as it is, or standard input up to the size limit of pictures."""
    from indexing.errors import QueryError
    from indexing.images import MAX_BYTES

    if image is None:
        return None
    if not image:
        raise QueryError("--image is empty: give a file, or - for standard input")
    if image != "-":
        return Path(image)
    stream = typer.get_binary_stream("stdin")
    if stream.isatty():
        raise QueryError("--image - reads a picture from standard input: pipe one in")
    # One byte more than allowed is enough for the decoder to refuse it.
    return stream.read(MAX_BYTES + 1)


def _parse_crop(crop: str | None) -> Crop | None:
    from indexing.errors import QueryError

    if crop is None:
        return None
    try:
        x, y, width, height = (float(part) for part in crop.split(","))
    except ValueError:
        raise QueryError(
            f"crop {crop!r}: give four fractions x,y,width,height, such as 0.5,0,0.5,1"
        ) from None
    return x, y, width, height


def _parse_attributes(given: Sequence[str]) -> dict[str, str]:
    from indexing.errors import QueryError

    chosen: dict[str, str] = {}
    for pair in given:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals and value):
            raise QueryError(f"--attribute {pair!r}: give a name and a value, such as color=red")
        if name in chosen:
            raise QueryError(f"--attribute {pair!r}: {name} was given before, give it once")
        chosen[name] = value
    return chosen


@contextmanager
def _reranking(wanted: int | None) -> Iterator[OnRerank | None]:
    """Shows how a reranking goes on, and in the end what it cost, on standard error."""
    from indexing.cli import show_progress

    if wanted is None:
        yield None
        return
    costs: list[RerankCost] = []
    with show_progress() as progress:

        def report(cost: RerankCost) -> None:
            costs.append(cost)
            progress(cost.matched + cost.failed, cost.pictures)

        yield report
    cost = costs[-1]
    typer.echo(
        f"reranked {cost.matched:,} pictures in {cost.reading + cost.matching:.1f} s "
        f"(reading {cost.reading:.1f} s, matching {cost.matching:.1f} s)"
        + (f", {cost.failed:,} could not be read" if cost.failed else ""),
        err=True,
    )


def _table(hits: Sequence[Hit], *, matches: bool = False, faded: bool = False) -> Table:
    """The hits; `matches` adds their match probabilities, and `faded` makes all grey."""
    from rich.table import Table
    from rich.text import Text

    from indexing.messages import one_line
    from search.answers import price_of

    table = Table(box=None, pad_edge=False, style="dim" if faded else "")
    table.add_column("#", justify="right")
    if matches:
        table.add_column("match", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("title", overflow="fold")
    table.add_column("price", justify="right", no_wrap=True)
    table.add_column("picture", overflow="fold")
    for hit in hits:
        match = "" if hit.match is None else f"{hit.match:.3f}"
        cells = (
            str(hit.rank),
            *([match] if matches else []),
            f"{hit.score:.3f}",
            hit.product_id,
            str(hit.fields.get("title", "")) + _others(hit),
            price_of(hit),
            hit.image,
        )
        # Text: brackets in a title are no markup. Control characters would reach the terminal.
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    return table


def _facet_lines(answers: Answers) -> Iterator[str]:
    """A line for each attribute: how many of the first products have each value."""
    from indexing.messages import one_line

    for name, counts in answers.facets.items():
        shown = [
            f"{found.value} {found.count:,}"
            + (f" ({found.filled:,} filled in)" if found.filled else "")
            for found in counts
        ]
        yield one_line(f"{name}: {', '.join(shown) or 'nothing is known'}")


def _proposal_lines(answers: Answers) -> Iterator[str]:
    """A line for each category that the text lets expect, with the option that asks for it."""
    from indexing.messages import one_line

    for found in answers.proposals:
        option = shlex.quote(f"{found.attribute}={found.value}")
        yield one_line(f"category: {found.value} {found.confidence:.0%}: --attribute {option}")


def _others(hit: Hit) -> str:
    """How many near-duplicates a hit stands for."""
    return f" (+{len(hit.duplicates):,} alike)" if hit.duplicates else ""


def _caption(text: str | None, minus: Sequence[str], where: str | None) -> str:
    parts = [text or "", *(f"minus {unwanted}" for unwanted in minus)]
    return ", ".join([part for part in parts if part] + ([f"where {where}"] if where else []))
