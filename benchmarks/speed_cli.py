"""The command `shoplens bench speed`."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
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
    optimized: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="What `shoplens optimize` wrote of the model: shoplens runs that.",
            show_default=False,
        ),
    ] = None,
    sentence_transformers: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="Python of an environment with sentence-transformers and faiss-cpu.",
            show_default=False,
        ),
    ] = None,
    clip_retrieval: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="Python of an environment with clip-retrieval.",
            show_default=False,
        ),
    ] = None,
    stages: Annotated[
        bool, typer.Option(help="Without them, whole commands alone are timed.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for speed.json and speed.md.", show_default=False),
    ] = None,
) -> None:
    """Time shoplens beside a plain open_clip loop with a FAISS index, stage by stage.

    Both run the same weights on the same pictures and take turns. Look at the ratios: they
    hold where the machine does other things as well, the times do not. With an optimised model,
    or with other systems in environments of their own, whole commands from the catalog to an
    index are timed, too.

    Examples:

        shoplens bench speed --pictures 200 --out speed-out

        shoplens bench speed --model ViT-B-32/laion2b_s34b_b79k --optimized fast-model
        --clip-retrieval cr/bin/python
    """
    from benchmarks.speed import cells, measure, write_report
    from benchmarks.speed_commands import (
        COLUMNS,
        Peers,
        command_cells,
        measure_commands,
        write_commands,
    )
    from benchmarks.speed_shop import copy_shop, draw_shop
    from benchmarks.speed_stages import load_clip

    def note(line: str) -> None:
        typer.echo(line, err=True)

    load_clip(model)  # says before the work what is wrong with it
    peers = Peers(optimized, sentence_transformers, clip_retrieval)
    words = ["shoplens", "bench", "speed", "--model", model]
    given = {
        "--catalog": catalog, "--optimized": optimized,
        "--sentence-transformers": sentence_transformers, "--clip-retrieval": clip_retrieval,
    }  # fmt: skip
    words += [word for flag, value in given.items() if value for word in (flag, str(value))]
    words += ["--pictures", str(pictures), "--rounds", str(rounds)]
    words += [] if stages else ["--no-stages"]
    with tempfile.TemporaryDirectory() as temporary:
        folder, work = Path(temporary, "shop"), Path(temporary, "work")
        folder.mkdir()
        work.mkdir()
        if catalog is None:
            note(f"drawing {pictures:,} pictures")
            shop = draw_shop(folder, pictures)
        else:
            shop = copy_shop(folder, catalog, pictures)
        said = shlex.join(words)
        if stages:
            chosen = None if optimized is None else str(optimized)
            result = measure(
                shop, model, work, optimized=chosen, rounds=rounds, command=said, note=note
            )
            _print(
                ("stage", "shoplens", "plain loop", "times faster"),
                [cells(one) for one in result.stages],
            )
            if out is not None:
                write_report(result, out)
                typer.echo(f"report: {out / 'speed.md'}")
        if peers != Peers():
            systems = measure_commands(shop, model, peers, work, rounds=rounds, note=note)
            _print(COLUMNS, [command_cells(one, systems[0]) for one in systems])
            if out is not None:
                write_commands(systems, len(shop.rows), said, out)
                typer.echo(f"report: {out / 'commands.md'}")


def _print(columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console().print(table)
