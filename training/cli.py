"""The commands `shoplens train …`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from indexing.cli import (
    ImagesRoot,
    Mapping,
    OnDuplicateChoice,
    Profile,
    bad_option,
    parse_mapping,
    resumable,
    say_left_out,
)

if TYPE_CHECKING:
    from indexing.catalog import OnDuplicate


def clip(
    catalogs: Annotated[
        list[Path], typer.Argument(metavar="CATALOG…", help="What `shoplens index` reads.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model; a stopped run goes on.")],
    preset: Annotated[
        str,
        typer.Option(
            help="calibrated: learn which title tokens to leave out (MML-TP), with thresholds "
            "that start from these titles; a model that prunes already goes on with its own. "
            "paper: MML-TP as printed, from a model that does not prune. standard: read whole "
            "titles."
        ),
    ] = "calibrated",
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Where to start.", show_default="builtin"),
    ] = None,
    second_stage: Annotated[
        bool,
        typer.Option(
            "--second-stage", help="Go on from a fine-tuned folder (--from) for 5 epochs."
        ),
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, show_default="10; paper: 100; second stage: 5")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, show_default="256; paper: 1360")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak; warm-up, then cosine.", show_default="1e-4; paper: 2e-5"),
    ] = None,
    mask_steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Steps in which masks are learned before the weights; 0: along with them.",
            show_default="120 for calibrated, else 0",
        ),
    ] = None,
    threshold_learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Peak for pruning thresholds, with --mask-steps 0.",
            show_default="by the scores; paper: 2e-5",
        ),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(show_default="0.02")] = None,
    loss: Annotated[str, typer.Option(help="infonce or siglip.")] = "infonce",
    validation_share: Annotated[
        float, typer.Option(help="Share of the distinct titles held out to choose the epoch.")
    ] = 0.05,
    lock_image: Annotated[
        bool,
        typer.Option(
            "--lock-image",
            help="Train the text tower and the last picture projection only: much faster.",
        ),
    ] = False,
    augment: Annotated[
        bool, typer.Option(help="Train open picture towers on random crops.")
    ] = True,
    keep_similarities: Annotated[
        float, typer.Option(help="Weight of keeping picture-picture similarities as they were.")
    ] = 0.0,
    word_dropout: Annotated[
        float, typer.Option(help="Share of title words hidden in each step.")
    ] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pairs in memory at a time: the same training for less memory and more time.",
            show_default="the whole batch",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="auto (bf16 on a GPU that has it), fp32 or bf16.")
    ] = "auto",
    checkpoint_activations: Annotated[
        bool,
        typer.Option("--checkpoint-activations", help="Compute activations twice, to save memory."),
    ] = False,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="How often a run is saved within an epoch.")
    ] = 10.0,
    profile: Profile = "auto",
    images_root: ImagesRoot = None,
    mapping: Mapping = None,
    on_duplicate: OnDuplicateChoice = "error",
    device: Annotated[
        str | None, typer.Option(help="A torch device [default: the GPU, else the CPU].")
    ] = None,
) -> None:
    """Fine-tune a CLIP model on pictures and titles.

    The best epoch by title -> picture Recall@1/5/10 on held-out titles is written to OUT,
    which is a model name for `index`, `search` and `train` from then on; the last epoch to
    OUT/last. Safe to stop and to run again: it goes on where it was. On several GPUs, start
    it with `torchrun --nproc-per-node GPUS --no-python shoplens train clip …`.

    Example: shoplens train clip catalog.csv --out my-model --epochs 5
    """
    from pydantic import ValidationError

    from indexing.catalog import read_catalog
    from indexing.errors import TrainingError
    from indexing.malloc import keep_freed_memory
    from indexing.models import load_encoder
    from indexing.models.clip import ClipEncoder
    from training.distributed import joined
    from training.presets import make_config
    from training.run import run_clip

    try:
        config = make_config(
            preset,
            second_stage=second_stage,
            epochs=epochs,
            batch_size=batch_size,
            mask_steps=mask_steps,
            learning_rate=learning_rate,
            threshold_learning_rate=threshold_learning_rate,
            weight_decay=weight_decay,
            loss=loss,
            validation_share=validation_share,
            lock_image=lock_image,
            augment=augment,
            keep_similarities=keep_similarities,
            word_dropout=word_dropout,
            seed=seed,
            chunk=chunk,
            precision=precision,
            checkpoint_activations=checkpoint_activations,
            checkpoint_minutes=checkpoint_minutes,
        )
    except ValidationError as error:
        raise TrainingError(bad_option(error)) from error
    if second_stage and not (start and Path(start).is_dir()):
        raise TrainingError(
            f"--second-stage goes on from a fine-tuned model, and --from {start or 'builtin'} is "
            "no folder: give the folder that an earlier `shoplens train clip` wrote"
        )
    keep_freed_memory()
    with resumable(), joined(device) as place:
        encoder = load_encoder(start or "builtin", device=place)
        if not isinstance(encoder, ClipEncoder):
            raise TrainingError(f"{start} is not a CLIP model")
        columns = parse_mapping(mapping or [])
        sources = [
            read_catalog(
                path, profile, images_root, columns, on_duplicate=cast("OnDuplicate", on_duplicate)
            )
            for path in catalogs
        ]
        run_clip(encoder, sources, out, config)
    for source in sources:
        say_left_out(source)
