"""A training run as the command line shows it: data in, bars and lines out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from indexing.catalog.product import Product
from indexing.errors import TrainingError
from indexing.models.clip import ClipEncoder
from training.config import TrainConfig
from training.data import Pairs, read_pairs, split_pairs
from training.distributed import Ranks
from training.images import ImageSide, LockedImages, OpenImages
from training.log import TrainingLog
from training.loop import train_clip
from training.progress import Epoch, Step
from training.worth import MaskStep


def run_clip(
    encoder: ClipEncoder, catalogs: Sequence[Iterable[Product]], out: Path, config: TrainConfig
) -> list[Epoch]:
    """Reads the catalogs, trains, and writes model, log and checkpoints to `out`.

    Raises:
        CatalogError, ModelError, TrainingError: as the stages do.
        KeyboardInterrupt: The run was asked to stop, and has been saved.
    """
    ranks = Ranks(encoder.device)
    console = Console(stderr=True, quiet=not ranks.first)
    with ranks.first_alone():
        claim(out)
    pairs, validation = split_pairs(read_pairs(catalogs), config.validation_share, config.seed)
    console.print(f"{len(pairs)} pairs to train on, {len(validation)} held out")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars, TrainingLog(out / _MARK) as log:

        def image_side(part: Pairs, name: str, augment: int | None) -> ImageSide:
            if not config.lock_image:
                return OpenImages(encoder, part.pictures, augment=augment)
            bar = bars.add_task(f"pictures to {name} on", total=len(part), rate="")

            def advance(done: int, total: int) -> None:
                bars.update(bar, completed=done, total=total)

            return LockedImages(encoder, part.pictures, out / "features", advance)

        with ranks.first_alone():  # the others find the features of a locked tower on disk
            images = image_side(pairs, "train", config.seed if config.augment else None)
            validation_images = image_side(validation, "validate", None) if ranks.first else None
        # Hidden where a run that goes on has learned them, or there are none.
        mask_bar = bars.add_task("masks", total=config.mask_steps, rate="", visible=False)

        def on_mask_step(step: MaskStep) -> None:
            rate = f"kept {step.kept:.1%}"
            bars.update(mask_bar, completed=step.number, rate=rate, visible=True)

        bar = bars.add_task("steps", total=None, rate="")

        def on_step(step: Step) -> None:
            rate = f"loss {step.loss:.3f}"
            bars.update(bar, completed=step.number, total=step.total, rate=rate)
            log.step(step)

        def on_epoch(epoch: Epoch) -> None:
            console.print(epoch_line(epoch), soft_wrap=True)
            log.epoch(epoch)

        history = train_clip(
            encoder,
            pairs,
            images,
            validation,
            validation_images,
            out,
            config,
            on_mask_step=on_mask_step,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    written = f"model written to {out}: try `shoplens index CATALOG --out DIR --model {out}`"
    console.print(written, soft_wrap=True)
    return history


def epoch_line(epoch: Epoch) -> str:
    """What a user wants to see of an epoch."""
    parts = [f"epoch {epoch.number + 1:3d}", f"loss {epoch.loss:.4f}"]
    if epoch.recall is not None:
        parts.append(
            f"title -> picture R@1 {epoch.recall_1:.3f}  R@5 {epoch.recall_5:.3f}  "
            f"R@10 {epoch.recall_10:.3f}"
        )
    if epoch.kept is not None:
        parts.append(f"Title tokens kept {epoch.kept:.1%}")
    return "  ".join(parts)


_MARK = "log"  # made first, so that a run stopped at any time is known again


def claim(out: Path) -> None:
    """Makes `out`, or takes up the run in it; never writes among other people's files."""
    try:
        if out.exists() and any(out.iterdir()) and not (out / _MARK).is_dir():
            raise TrainingError(f"{out} holds other files: choose another --out or empty it")
        (out / _MARK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--out {out} cannot be written: {error.strerror}") from error
