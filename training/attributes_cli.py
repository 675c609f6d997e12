"""The command `shoplens train attributes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from indexing.cli import (
    ImagesRoot,
    Mapping,
    OnDuplicateChoice,
    Profile,
    bad_option,
    resumable,
    say_left_out,
)
from training.options import (
    Augment,
    Catalogs,
    CheckpointMinutes,
    Device,
    Out,
    PrecisionChoice,
    Seed,
    open_catalogs,
)


def attributes(
    catalogs: Catalogs,
    names: Annotated[
        str,
        typer.Option(
            "--attributes", metavar="NAME,…", help="Columns to learn, such as color,usage."
        ),
    ],
    out: Out,
    start: Annotated[
        str, typer.Option("--from", metavar="MODEL", help="The CLIP model to start from.")
    ] = "builtin",
    table: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="FILE", help="An edited label table, instead of a new one."
        ),
    ] = None,
    least: Annotated[
        int, typer.Option(min=1, help="Values of fewer products become `other`.")
    ] = 20,
    layers: Annotated[int, typer.Option(help="Of sequence-wise attention.")] = 12,
    heads: Annotated[int, typer.Option(help="Of sequence-wise attention.")] = 8,
    sequence_wise: Annotated[
        bool,
        typer.Option(
            "--sequence-wise/--no-sequence-wise", help="Let patches and words read one another."
        ),
    ] = True,
    modality_wise: Annotated[
        bool,
        typer.Option(
            "--modality-wise/--no-modality-wise",
            help="Weigh picture against title, for each attribute.",
        ),
    ] = True,
    warm_up_epochs: Annotated[int, typer.Option(help="With both towers frozen.")] = 20,
    epochs: Annotated[int, typer.Option(help="Of everything together.")] = 20,
    tuning_epochs: Annotated[int, typer.Option(help="Of each attribute's own layers.")] = 20,
    warm_up_rate: Annotated[float, typer.Option(help="Learning rate of the first stage.")] = 1e-4,
    learning_rate: Annotated[float, typer.Option(help="That of the second.")] = 1e-5,
    tuning_rate: Annotated[float, typer.Option(help="That of the third.")] = 1e-4,
    batch_size: Annotated[int, typer.Option()] = 256,
    modality_dropout: Annotated[
        float,
        typer.Option(help="Share of products shown without title, and without picture."),
    ] = 0.15,
    hide_words: Annotated[
        float, typer.Option(help="Share of titles that lose the words of attribute values.")
    ] = 0.3,
    balance: Annotated[
        float, typer.Option(help="0: each product counts alike; 1: each value does.")
    ] = 0.5,
    lock_image: Annotated[
        bool,
        typer.Option("--lock-image", help="Leave the picture tower as it is: much faster."),
    ] = False,
    augment: Augment = True,
    validation_share: Annotated[
        float, typer.Option(help="Share of the titles held out for thresholds and epochs.")
    ] = 0.1,
    seed: Seed = 0,
    precision: PrecisionChoice = "auto",
    checkpoint_minutes: CheckpointMinutes = 10.0,
    profile: Profile = "auto",
    images_root: ImagesRoot = None,
    mapping: Mapping = None,
    on_duplicate: OnDuplicateChoice = "error",
    device: Device = None,
) -> None:
    """Train a classifier that fills in attributes such as the colour (CMA-CLIP).

    It learns from the values that the catalog has, and reads picture and title. Some values mean
    the same, and some are rare: OUT/labels.csv says what each counts as. Edit its last column
    (empty: unknown), and train again with --labels. A stopped run goes on where it was.

    Example: shoplens train attributes catalog.csv --attributes color,usage --out my-attributes
    """
    from pydantic import ValidationError

    from indexing.errors import TrainingError
    from indexing.malloc import keep_freed_memory
    from indexing.models import load_encoder
    from indexing.models.clip import ClipEncoder
    from training.attributes.config import AttributesConfig
    from training.attributes.run import run_attributes

    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not wanted:
        raise TrainingError(f"--attributes {names!r} names none: give some, such as color,usage")
    try:
        config = AttributesConfig.model_validate(
            {
                "network": {
                    "layers": layers,
                    "heads": heads,
                    "sequence_wise": sequence_wise,
                    "modality_wise": modality_wise,
                },
                "warm_up_epochs": warm_up_epochs,
                "epochs": epochs,
                "tuning_epochs": tuning_epochs,
                "warm_up_rate": warm_up_rate,
                "learning_rate": learning_rate,
                "tuning_rate": tuning_rate,
                "batch_size": batch_size,
                "modality_dropout": modality_dropout,
                "hide_words": hide_words,
                "balance": balance,
                "lock_image": lock_image,
                "augment": augment,
                "validation_share": validation_share,
                "seed": seed,
                "precision": precision,
                "checkpoint_minutes": checkpoint_minutes,
            }
        )
    except ValidationError as error:
        raise TrainingError(bad_option(error)) from error
    if not config.stages(len(wanted)):
        raise TrainingError("no stage has an epoch: give --warm-up-epochs, --epochs or both")
    keep_freed_memory()
    with resumable():
        encoder = load_encoder(start, device=device)
        if not isinstance(encoder, ClipEncoder):
            raise TrainingError(f"--from {start} is no CLIP model, and CMA-CLIP needs one")
        sources = open_catalogs(catalogs, profile, images_root, mapping, on_duplicate)
        run_attributes(encoder, sources, wanted, out, config, table=table, least=least)
    for source in sources:
        say_left_out(source)
