"""The command `shoplens train clip`."""

from __future__ import annotations

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
    CheckpointActivations,
    CheckpointMinutes,
    Device,
    Out,
    PrecisionChoice,
    Preset,
    SecondStage,
    Seed,
    ValidationShare,
    WeightDecay,
    open_catalogs,
    require_folder,
)


def clip(
    catalogs: Catalogs,
    out: Out,
    preset: Preset = "calibrated",
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Where to start.", show_default="builtin"),
    ] = None,
    second_stage: SecondStage = False,
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
    weight_decay: WeightDecay = None,
    loss: Annotated[
        str,
        typer.Option(
            help="infonce, siglip, cua, cuaxu, mv-infonce, mv-dhel, sogclr, isogclr, cwcl, mochi, "
            "multi-similarity or auc."
        ),
    ] = "infonce",
    views: Annotated[
        int,
        typer.Option(min=1, help="Pictures of a product in a batch together, where it has some."),
    ] = 1,
    validation_share: ValidationShare = 0.05,
    lock_image: Annotated[
        bool,
        typer.Option(
            "--lock-image",
            help="Train the text tower and the last picture projection only: much faster.",
        ),
    ] = False,
    augment: Augment = True,
    keep_similarities: Annotated[
        float, typer.Option(help="Weight of keeping picture-picture similarities as they were.")
    ] = 0.0,
    word_dropout: Annotated[
        float, typer.Option(help="Share of title words hidden in each step.")
    ] = 0.0,
    seed: Seed = 0,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pairs in memory at a time: the same training for less memory and more time.",
            show_default="the whole batch",
        ),
    ] = None,
    precision: PrecisionChoice = "auto",
    checkpoint_activations: CheckpointActivations = False,
    checkpoint_minutes: CheckpointMinutes = 10.0,
    profile: Profile = "auto",
    images_root: ImagesRoot = None,
    mapping: Mapping = None,
    on_duplicate: OnDuplicateChoice = "error",
    device: Device = None,
) -> None:
    """Fine-tune a CLIP model on pictures and titles.

    The best epoch by title -> picture Recall@1/5/10 on held-out titles is written to OUT,
    which is a model name for `index`, `search` and `train` from then on; the last epoch to
    OUT/last. Safe to stop and to run again: it goes on where it was. On several GPUs, start
    it with `torchrun --nproc-per-node GPUS --no-python shoplens train clip …`.

    Example: shoplens train clip catalog.csv --out my-model --epochs 5
    """
    from pydantic import ValidationError

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
            views=views,
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
    require_folder(second_stage, start, "builtin", "clip")
    keep_freed_memory()
    with resumable(), joined(device) as place:
        encoder = load_encoder(start or "builtin", device=place)
        if not isinstance(encoder, ClipEncoder):
            raise TrainingError(f"{start} is no CLIP model: see `shoplens train albef`")
        sources = open_catalogs(catalogs, profile, images_root, mapping, on_duplicate)
        run_clip(encoder, sources, out, config)
    for source in sources:
        say_left_out(source)
