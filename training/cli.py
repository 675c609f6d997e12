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
    say_left_out,
)

if TYPE_CHECKING:
    from indexing.catalog import OnDuplicate


def clip(
    catalogs: Annotated[
        list[Path], typer.Argument(metavar="CATALOG…", help="What `shoplens index` reads.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model; a stopped run goes on.")],
    start: Annotated[
        str, typer.Option("--from", metavar="MODEL", help="The model to start from.")
    ] = "builtin",
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=2)] = 256,
    learning_rate: Annotated[float, typer.Option(help="Peak; warm-up, then cosine to 0.")] = 1e-4,
    weight_decay: Annotated[float, typer.Option()] = 0.02,
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
    keep_similarities: Annotated[
        float, typer.Option(help="Weight of keeping picture-picture similarities as they were.")
    ] = 0.0,
    word_dropout: Annotated[
        float, typer.Option(help="Share of title words hidden in each step.")
    ] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
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
    OUT/last.

    Example: shoplens train clip catalog.csv --out my-model --epochs 5
    """
    from pydantic import ValidationError

    from indexing.catalog import read_catalog
    from indexing.errors import TrainingError
    from indexing.malloc import keep_freed_memory
    from indexing.models import load_encoder
    from indexing.models.clip import ClipEncoder
    from training.config import TrainConfig
    from training.run import run_clip

    try:
        config = TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            validation_share=validation_share,
            lock_image=lock_image,
            keep_similarities=keep_similarities,
            word_dropout=word_dropout,
            seed=seed,
        )
    except ValidationError as error:
        raise TrainingError(bad_option(error)) from error
    keep_freed_memory()
    encoder = load_encoder(start, device=device)
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
