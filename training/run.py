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
from training.images import ImageSide, LockedImages, OpenImages
from training.log import TrainingLog
from training.loop import Epoch, train_clip


def run_clip(
    encoder: ClipEncoder, catalogs: Sequence[Iterable[Product]], out: Path, config: TrainConfig
) -> list[Epoch]:
    """Reads the catalogs, trains, and writes model, log and checkpoints to `out`.

    Raises:
        CatalogError, ModelError, TrainingError: as the stages do.
    """
    claim(out)
    console = Console(stderr=True)
    pairs, validation = split_pairs(read_pairs(catalogs), config.validation_share, config.seed)
    console.print(f"{len(pairs)} pairs to train on, {len(validation)} held out (by title)")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars, TrainingLog(out / _MARK) as log:

        def image_side(part: Pairs, name: str, *, augment: bool) -> ImageSide:
            if not config.lock_image:
                return OpenImages(encoder, part.pictures, augment=config.seed if augment else None)
            bar = bars.add_task(f"pictures to {name} on", total=len(part), rate="")

            def advance(done: int, total: int) -> None:
                bars.update(bar, completed=done, total=total)

            return LockedImages(encoder, part.pictures, out / "features", advance)

        images = image_side(pairs, "train", augment=True)
        validation_images = image_side(validation, "validate", augment=False)
        bar = bars.add_task("steps", total=None, rate="")

        def on_step(done: int, total: int, loss: float) -> None:
            bars.update(bar, completed=done, total=total, rate=f"loss {loss:.3f}")
            log.step(done, loss)

        def on_epoch(epoch: Epoch) -> None:
            console.print(
                f"epoch {epoch.number + 1:3d}  loss {epoch.loss:.4f}  title -> picture "
                f"R@1 {epoch.recall_1:.3f}  R@5 {epoch.recall_5:.3f}  R@10 {epoch.recall_10:.3f}"
            )
            log.epoch(epoch)

        history = train_clip(
            encoder,
            pairs,
            images,
            validation,
            validation_images,
            out,
            config,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    console.print(f"model written to {out}: try `shoplens index CATALOG --out DIR --model {out}`")
    return history


_MARK = "log"  # made first, so that a run stopped at any time is known again


def claim(out: Path) -> None:
    """Makes `out`, or takes up the run in it; never writes among other people's files."""
    try:
        if out.exists() and any(out.iterdir()) and not (out / _MARK).is_dir():
            raise TrainingError(f"{out} holds other files: choose another --out or empty it")
        (out / _MARK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--out {out} cannot be written: {error.strerror}") from error
