"""The command `shoplens optimize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from indexing.cli import ImagesRoot, Mapping, OnDuplicateChoice, Profile, say_left_out

if TYPE_CHECKING:
    from indexing.catalog import OnDuplicate
    from indexing.models.optimized.runtimes import Precision, RuntimeName


def optimize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for `shoplens index`.")],
    catalog: Annotated[
        Path,
        typer.Option(metavar="CATALOG", help="Whose pictures and titles it is measured on."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The model folder to write.")],
    runtime: Annotated[str, typer.Option(help="openvino or onnx.")] = "openvino",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or int8.")] = "int8",
    queries: Annotated[
        int, typer.Option(min=50, help="Queries of each kind to measure by, at most.")
    ] = 10_000,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="What Recall@1 may lose: .002 are .2 points.")
    ] = 0.002,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write it whatever it loses; for an index of its own."),
    ] = False,
    index: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="An index that MODEL made of CATALOG; saves time."),
    ] = None,
    images_root: ImagesRoot = None,
    profile: Profile = "auto",
    mapping: Mapping = None,
    on_duplicate: OnDuplicateChoice = "error",
) -> None:
    """Make a model faster on processors, if it finds as much.

    Example, on the catalog of an index that `builtin` made:

        shoplens optimize builtin --catalog catalog.csv --precision fp32 --out fast-model

        shoplens search shop-index --model fast-model --text "red mug"

    Both towers are brought to OpenVINO or onnxruntime, and with int8 rounded to 8 bits by the
    catalog's own pictures and titles. The result is asked for products by photos and titles,
    beside its parent, and is written where the 95% interval of the change in Recall@1 rules out
    a loss of more than MARGIN; layers that lose most are kept in floats until it does. An index
    of the parent then takes its queries; it can make indexes of its own, too. In fp32 it gives
    the parent's own vectors.
    """
    import shutil

    from benchmarks.cli import stages
    from benchmarks.optimized_folder import check_target, result_table, write_optimized
    from benchmarks.optimizing import Judge, attempts, in_words
    from benchmarks.optimizing_tasks import gather
    from indexing.catalog import read_catalog
    from indexing.cli import parse_mapping, resumable
    from indexing.errors import ModelError
    from indexing.malloc import keep_freed_memory
    from indexing.models import load_encoder
    from indexing.models.optimized.exporting import exportable
    from indexing.models.optimized.runtimes import check_installed, check_precision
    from indexing.store import open_index

    if runtime not in ("openvino", "onnx"):
        raise ModelError(f"--runtime {runtime}: give openvino or onnx")
    if precision not in ("fp32", "bf16", "int8"):
        raise ModelError(f"--precision {precision}: give fp32, bf16 or int8")
    name = cast("RuntimeName", runtime)
    check_precision(name, cast("Precision", precision))
    check_target(out)
    check_installed(name)
    keep_freed_memory()
    encoder = exportable(load_encoder(model, device="cpu"))
    source = read_catalog(
        catalog,
        profile,
        images_root,
        parse_mapping(mapping or []),
        on_duplicate=cast("OnDuplicate", on_duplicate),
    )
    products = list(source)
    say_left_out(source)
    # What a stopped run has embedded is found again.
    work = out.absolute().with_name(f".{out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    with resumable(), stages() as shown:
        known = None if index is None else open_index(index, encoder=encoder)
        judge = Judge(encoder, catalog.name, work / "vectors", margin, shown, known)
        material = gather(products, queries, work)
        for best in attempts(judge, name, material, work, cast("Precision", precision)):
            typer.echo(in_words(best), err=True)
        if best.gate.passed or force:
            write_optimized(best, out)
    shutil.rmtree(work)
    for line in result_table(best.gate):
        typer.echo(line)
    if best.gate.passed:
        typer.echo(
            f"{out} is ready: give it as --model, also to search and serve indexes that {model} "
            "made"
        )
        return
    if force:
        typer.echo(f"{out} is written, for indexes of its own: {model}'s do not take its queries")
        return
    typer.echo(
        f"not written: a loss of more than {margin:g} in Recall@1 is not ruled out. Give more "
        "--queries, --precision fp32, or --force",
        err=True,
    )
    raise typer.Exit(1)
