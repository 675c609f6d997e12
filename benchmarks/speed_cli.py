"""The command `shoplens bench speed`."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer


def speed(
    model: Annotated[
        str,
        typer.Option(
            help="builtin, a folder that training wrote, ARCH/PRETRAINED, hf-hub:ID or albef:PATH."
        ),
    ] = "builtin",
    catalog: Annotated[
        Path | None,
        typer.Option(
            metavar="CATALOG",
            help="Take the pictures and titles of this catalog instead of drawn ones.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side runs each stage.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for speed.json and speed.md.", show_default=False),
    ] = None,
) -> None:
    """Time shoplens beside a plain open_clip loop with a FAISS index, stage by stage.

    Both run the same weights on the same pictures and take turns. Look at the ratios: they
    hold where the machine does other things as well, the times do not.

    Example:

        shoplens bench speed --pictures 200 --out speed-out
    """
    from rich.console import Console
    from rich.table import Table

    from benchmarks.speed import cells, measure, write_report
    from benchmarks.speed_shop import copy_shop, draw_shop
    from benchmarks.speed_stages import load_clip

    def note(line: str) -> None:
        typer.echo(line, err=True)

    load_clip(model)  # says before the work what is wrong with it
    words = ["shoplens", "bench", "speed", "--model", model]
    words += ["--catalog", str(catalog)] if catalog is not None else []
    words += ["--pictures", str(pictures), "--rounds", str(rounds)]
    with tempfile.TemporaryDirectory() as temporary:
        folder, work = Path(temporary, "shop"), Path(temporary, "work")
        folder.mkdir()
        work.mkdir()
        if catalog is None:
            note(f"drawing {pictures:,} pictures")
            shop = draw_shop(folder, pictures)
        else:
            shop = copy_shop(folder, catalog, pictures)
        result = measure(shop, model, work, rounds=rounds, command=shlex.join(words), note=note)
    table = Table("stage", "shoplens", "plain loop", "times faster", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for measured in result.stages:
        table.add_row(*cells(measured))
    Console().print(table)
    if out is not None:
        write_report(result, out)
        typer.echo(f"report: {out / 'speed.md'}")
