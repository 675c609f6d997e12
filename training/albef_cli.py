"""The command `shoplens train albef`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

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
    PRESETS,
    Augment,
    Catalogs,
    CheckpointActivations,
    CheckpointMinutes,
    Device,
    Out,
    PrecisionChoice,
    SecondStage,
    Seed,
    ValidationShare,
    WeightDecay,
    open_catalogs,
    require_folder,
)

if TYPE_CHECKING:
    from indexing.models.albef.encoder import AlbefEncoder
    from training.data import Pairs

logger = logging.getLogger(__name__)


def albef(
    catalogs: Catalogs,
    out: Out,
    preset: Annotated[
        str | None,
        typer.Option(help=PRESETS, show_default="calibrated; untrained: standard"),
    ] = None,
    prune: Annotated[
        str,
        typer.Option(
            help="cross: tokens are dropped by what they make of the picture, in the fusion "
            "encoder alone. all: in the text encoder, too."
        ),
    ] = "all",
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="albef:PATH of a public checkpoint, or a folder that training wrote.",
            show_default="an untrained model",
        ),
    ] = None,
    size: Annotated[
        str, typer.Option(help="Of an untrained model: tiny, small or base.")
    ] = "small",
    second_stage: SecondStage = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, show_default="10; paper: 30; second stage: 5")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, show_default="64; paper: 320")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak; warm-up, then cosine.", show_default="1e-4; untrained: 1e-3"),
    ] = None,
    threshold_learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Peak for pruning thresholds.", show_default="by the scores; paper: 1e-4"
        ),
    ] = None,
    weight_decay: WeightDecay = None,
    queue_size: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Embeddings of earlier batches that are negatives, too; at most one a pair.",
            show_default="65536",
        ),
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option(
            help="How much of the slow copy, which gives keys and soft targets, stays in a step.",
            show_default="0.995; untrained: 0.95",
        ),
    ] = None,
    distillation: Annotated[
        float | None,
        typer.Option(help="Share of the targets that the slow copy gives.", show_default="0.4"),
    ] = None,
    hardening: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps over which negatives for matching go from any to hard ones.",
            show_default="0; untrained: 0.5",
        ),
    ] = None,
    hard_mixing: Annotated[
        bool,
        typer.Option(
            "--hard-mixing",
            help="Mix the hardest negatives of the contrastive loss into harder ones (MoCHi).",
        ),
    ] = False,
    masked_share: Annotated[
        float | None,
        typer.Option(help="Share of title tokens hidden to be guessed.", show_default="0.15"),
    ] = None,
    validation_share: ValidationShare = 0.05,
    augment: Augment = True,
    seed: Seed = 0,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pairs in memory at a time; hard negatives for matching are looked for among "
            "these.",
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
    """Fine-tune an ALBEF model on pictures and titles.

    Three losses: contrast with a momentum queue, matching with hard negatives, and hidden
    words. Files, stops and several GPUs are as with `shoplens train clip`. Without --from an
    untrained model learns from this catalog alone: give it many products. It reads whole titles,
    as it cannot know yet which words a picture shows; teach it that in a second stage.

    Example, from a public checkpoint with bert-base-uncased's vocab.txt beside it:

        shoplens train albef catalog.csv --out my-albef --from albef:ALBEF.pth --batch-size 32

        shoplens train albef catalog.csv --out first --size tiny --epochs 20

        shoplens train albef catalog.csv --out second --from first --second-stage
    """
    from pydantic import ValidationError

    from indexing.errors import TrainingError
    from indexing.malloc import keep_freed_memory
    from indexing.models import load_encoder, usable_device
    from indexing.models.albef.encoder import AlbefEncoder
    from training.albef.new import SIZES, new_albef
    from training.albef.presets import make_albef_config
    from training.distributed import joined
    from training.run import run_albef

    try:
        config = make_albef_config(
            preset or ("standard" if start is None else "calibrated"),
            second_stage=second_stage,
            untrained=start is None,
            prune=prune,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            threshold_learning_rate=threshold_learning_rate,
            weight_decay=weight_decay,
            queue_size=queue_size,
            momentum=momentum,
            distillation=distillation,
            hardening=hardening,
            hard_mixing=hard_mixing,
            masked_share=masked_share,
            validation_share=validation_share,
            augment=augment,
            seed=seed,
            chunk=chunk,
            precision=precision,
            checkpoint_activations=checkpoint_activations,
            checkpoint_minutes=checkpoint_minutes,
        )
    except ValidationError as error:
        raise TrainingError(bad_option(error)) from error
    if size not in SIZES:
        raise TrainingError(f"--size {size}: give one of {', '.join(SIZES)}")
    require_folder(second_stage, start, "an untrained model", "albef")
    if start is None and config.preset != "standard":
        logger.warning(
            "an untrained model may drop nearly every word: train it with --preset standard, then "
            "go on with --from OUT --second-stage"
        )
    keep_freed_memory()
    with resumable(), joined(device) as chosen:
        place = usable_device(chosen)
        encoder = None if start is None else load_encoder(start, device=place)
        if encoder is not None and not isinstance(encoder, AlbefEncoder):
            raise TrainingError(f"{start} is no ALBEF model: see `shoplens train clip`")

        def untrained(pairs: Pairs) -> AlbefEncoder:
            return new_albef(pairs.titles, size, out, seed=seed, device=place)

        sources = open_catalogs(catalogs, profile, images_root, mapping, on_duplicate)
        run_albef(encoder or untrained, sources, out, config, place)
    for source in sources:
        say_left_out(source)
