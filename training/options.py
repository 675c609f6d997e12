"""Options that the commands `shoplens train …` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from indexing.cli import parse_mapping

if TYPE_CHECKING:
    from indexing.catalog import Catalog, OnDuplicate

Catalogs = Annotated[
    list[Path], typer.Argument(metavar="CATALOG…", help="What `shoplens index` reads.")
]
Out = Annotated[Path, typer.Option(help="Folder for the model; a stopped run goes on.")]
PRESETS = (
    "calibrated: learn which title tokens to leave out (MML-TP), with thresholds that start from "
    "these titles; a model that prunes already goes on with its own. paper: MML-TP as printed, "
    "from a model that does not prune. standard: read whole titles."
)
Preset = Annotated[str, typer.Option(help=PRESETS)]
SecondStage = Annotated[
    bool,
    typer.Option("--second-stage", help="Go on from a fine-tuned folder (--from) for 5 epochs."),
]
WeightDecay = Annotated[float | None, typer.Option(show_default="0.02")]
ValidationShare = Annotated[
    float, typer.Option(help="Share of the distinct titles held out to choose the epoch.")
]
Augment = Annotated[bool, typer.Option(help="Train open picture towers on random crops.")]
Seed = Annotated[int, typer.Option()]
PrecisionChoice = Annotated[
    str, typer.Option(help="auto (bf16 on a GPU that has it), fp32 or bf16.")
]
CheckpointActivations = Annotated[
    bool,
    typer.Option("--checkpoint-activations", help="Compute activations twice, to save memory."),
]
CheckpointMinutes = Annotated[float, typer.Option(help="How often a run is saved within an epoch.")]
Device = Annotated[
    str | None, typer.Option(help="A torch device [default: the GPU, else the CPU].")
]


def open_catalogs(
    paths: list[Path],
    profile: str,
    images_root: Path | None,
    mapping: list[str] | None,
    on_duplicate: str,
) -> list[Catalog]:
    """The catalogs of a command."""
    from indexing.catalog import read_catalog

    columns, choice = parse_mapping(mapping or []), cast("OnDuplicate", on_duplicate)
    return [
        read_catalog(path, profile, images_root, columns, on_duplicate=choice) for path in paths
    ]


def require_folder(second_stage: bool, start: str | None, default: str, command: str) -> None:
    """Raises TrainingError where a second stage has nothing to go on from."""
    from indexing.errors import TrainingError

    folder = (start or "").removeprefix("albef:")
    if second_stage and not (folder and Path(folder).is_dir()):
        raise TrainingError(
            f"--second-stage goes on from a fine-tuned model, and --from {start or default} is "
            f"no folder: give the folder that an earlier `shoplens train {command}` wrote"
        )
