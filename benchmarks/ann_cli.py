"""The command `shoplens bench ann`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from benchmarks.ann_data import Dataset

_DEFAULT = "100000,512"


def ann(
    index: Annotated[
        Path | None,
        typer.Argument(
            metavar="INDEX",
            help="A folder that `shoplens index` wrote; a tenth of its vectors at most is held "
            "out as queries.",
            show_default=False,
        ),
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            metavar="N,DIM",
            help=f"N synthetic vectors of DIM numbers [default without INDEX: {_DEFAULT}].",
        ),
    ] = None,
    systems: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME…", help="Which indexes; by default all that are installed."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for answers and report.")] = Path(
        "ann-out"
    ),
    queries: Annotated[int, typer.Option(min=10, help="Queries of each kind.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the synthetic vectors and held-out rows.")] = 0,
) -> None:
    """Compare nearest-neighbour indexes: recall, speed, size and build time.

    DIR gets answers/ and timings.json as they were measured, and report.md, report.json
    and recall-qps.png made from them. All indexes are in memory at once, so that they can
    take turns: name few of them for a million vectors. The vectors are mapped from
    DIR/vectors.npy.

    Example, on an index made with `shoplens index catalog.csv --out shop-index`:

        shoplens bench ann shop-index --systems exact,faiss-hnsw,hnswlib --out ann-out
    """
    from rich.console import Console
    from rich.table import Table

    from benchmarks.ann import K, measure
    from benchmarks.ann_data import mapped
    from benchmarks.ann_report import PAGE, TARGETS, fastest, score
    from benchmarks.retrieval.plots import new_plot

    new_plot(1)  # says so before the work where matplotlib is missing
    data = mapped(_dataset(index, synthetic, queries, seed), out)
    chosen = [name.strip() for name in systems.split(",")] if systems is not None else None
    timings = measure(
        data, out, chosen, rounds=rounds, note=lambda line: typer.echo(line, err=True)
    )
    points = score(out)
    for kind, count in timings.query_counts.items():
        table = Table(
            "index",
            "bytes a vector",
            "build s",
            *(f"≥ {target:.2f}" for target in TARGETS),
            title=f"queries/s by recall@{K}: {count:,} {kind} queries, one thread",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        for name, built in timings.systems.items():
            mine = [point for point in points if (point.system, point.queries) == (name, kind)]
            best = [fastest(mine, target) for target in TARGETS]
            rates = ["–" if point is None else f"{point.qps[1].median:,.0f}" for point in best]
            size = f"{built.saved_bytes / timings.n:,.0f}"
            table.add_row(name, size, f"{built.build_seconds:.1f}", *rates)
        for column in table.columns[1:]:
            column.justify = "right"
        Console().print(table)
    typer.echo(f"report: {out / PAGE}")


def filters(
    index: Annotated[
        Path | None,
        typer.Argument(
            metavar="INDEX", help="A folder that `shoplens index` wrote.", show_default=False
        ),
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            metavar="N,DIM",
            help=f"N synthetic vectors of DIM numbers [default without INDEX: {_DEFAULT}].",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for filters.json.")] = Path(
        "filters-out"
    ),
    queries: Annotated[int, typer.Option(min=10, help="Queries of each kind.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the vectors, the held-out rows and filters.")] = 0,
) -> None:
    """Measure filtered search: recall and speed by how many rows a filter allows.

    Ours, exact search and post-filtering (search first, then drop what is not allowed) take
    turns on the same queries. Scattered filters allow rows at random, gathered ones the rows
    of one side of the vector space.

    Example:

        shoplens bench filters --synthetic 20000,64 --out filters-out
    """
    from rich.console import Console
    from rich.table import Table

    from benchmarks.ann_data import mapped
    from benchmarks.ann_filters import FILE, measure_filters

    data = mapped(_dataset(index, synthetic, queries, seed), out)
    bands = measure_filters(data, out, seed, note=lambda line: typer.echo(line, err=True))
    heads = ("recall ours", "post-filter", "ms ours", "post-filter", "exact")
    table = Table("queries", "filter", "allowed", *heads, box=None, pad_edge=False)
    for band in bands:
        times = (band.ours_ms, band.post_ms, band.exact_ms)
        shares = (f"{band.ours_recall:.3f}", f"{band.post_recall:.3f}")
        table.add_row(
            band.queries, band.filter, f"{band.share:.1%}", *shares, *(f"{ms:.2f}" for ms in times)
        )
    Console().print(table)
    typer.echo(f"figures: {out / FILE}")


def _dataset(index: Path | None, synthetic: str | None, queries: int, seed: int) -> Dataset:
    from benchmarks.ann_data import from_index
    from benchmarks.ann_data import synthetic as make
    from indexing.errors import BenchmarkError

    if index is not None:
        if synthetic is not None:
            raise BenchmarkError(f"{index} and --synthetic {synthetic}: give one of them")
        return from_index(index, queries, seed)
    size = (_DEFAULT if synthetic is None else synthetic).split(",")
    if len(size) != 2 or not all(part.strip().isdecimal() for part in size):
        raise BenchmarkError(
            f"--synthetic {synthetic!r}: write N,DIM, two numbers such as {_DEFAULT}"
        )
    return make(int(size[0]), int(size[1]), queries, seed)
