"""A training run as the command line shows it: data in, bars and lines out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from indexing.catalog.product import Product
from indexing.errors import TrainingError
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.clip import ClipEncoder
from training.albef.config import AlbefTraining
from training.albef.train import train_albef
from training.clip import train_clip
from training.config import RunConfig, TrainConfig
from training.data import Pairs, read_pairs, split_pairs
from training.distributed import Ranks
from training.images import ImageSide, LockedImages, OpenImages
from training.log import TrainingLog
from training.losses import make_loss
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
    with _started(catalogs, out, config, encoder.device) as run:

        def image_side(part: Pairs, name: str, augment: int | None) -> ImageSide:
            if config.lock_image:
                advance = run.bars.pictures(name)
                return LockedImages(encoder, part.pictures, out / "features", advance)
            remember = config.keep_similarities > 0 or make_loss(config.loss, 0).needs_teacher
            return OpenImages(encoder, part.pictures, augment=augment, remember=remember)

        # The others find the features of a locked tower on disk.
        with run.ranks.first_alone():
            images = image_side(run.pairs, "train", config.seed if config.augment else None)
            held_out = image_side(run.validation, "validate", None) if run.ranks.first else None
        return train_clip(
            encoder,
            run.pairs,
            images,
            run.validation,
            held_out,
            out,
            config,
            on_mask_step=run.on_mask_step,
            on_step=run.on_step,
            on_epoch=run.on_epoch,
        )


def run_albef(
    start: AlbefEncoder | Callable[[Pairs], AlbefEncoder],
    catalogs: Sequence[Iterable[Product]],
    out: Path,
    config: AlbefTraining,
    device: str,
) -> list[Epoch]:
    """As `run_clip`, for ALBEF.

    Args:
        start: what to train, or what makes it out of the pairs to train on.
    """
    with _started(catalogs, out, config, device) as run:
        with run.ranks.first_alone():  # the others find what it wrote
            encoder = start if isinstance(start, AlbefEncoder) else start(run.pairs)
        augment = config.seed if config.augment else None
        return train_albef(
            encoder,
            run.pairs,
            OpenImages(encoder, run.pairs.pictures, augment=augment),
            run.validation,
            OpenImages(encoder, run.validation.pictures, augment=None),
            out,
            config,
            on_calibration=run.on_calibration,
            on_step=run.on_step,
            on_epoch=run.on_epoch,
        )


@dataclass(frozen=True)
class _Started:
    """A run that has its data, and shows how far it is."""

    ranks: Ranks
    pairs: Pairs
    validation: Pairs
    console: Console
    bars: Bars
    log: TrainingLog

    def on_calibration(self, done: int, total: int) -> None:
        self.bars.move("thresholds", done, total)

    def on_mask_step(self, step: MaskStep) -> None:
        self.bars.move("masks", step.number, step.total, f"kept {step.kept:.1%}")

    def on_step(self, step: Step) -> None:
        self.bars.move("steps", step.number, step.total, f"loss {step.loss:.3f}")
        self.log.step(step)

    def on_epoch(self, epoch: Epoch) -> None:
        self.console.print(epoch_line(epoch), soft_wrap=True)
        self.log.epoch(epoch)


@contextmanager
def _started(
    catalogs: Sequence[Iterable[Product]], out: Path, config: RunConfig, device: str
) -> Iterator[_Started]:
    ranks = Ranks(device)
    console = Console(stderr=True, quiet=not ranks.first)
    with ranks.first_alone():
        claim(out)
    pairs, validation = split_pairs(read_pairs(catalogs), config.validation_share, config.seed)
    console.print(f"{len(pairs)} pairs to train on, {len(validation)} held out")
    with training_bars(console) as bars, TrainingLog(out / _MARK) as log:
        yield _Started(ranks, pairs, validation, console, bars, log)
    written = f"model written to {out}: try `shoplens index CATALOG --out DIR --model {out}`"
    console.print(written, soft_wrap=True)


class Bars:
    """The bars of a run, by name."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def move(self, name: str, done: int, total: int, rate: str = "") -> None:
        """Moves a bar, a new one where there is none of this name; `rate` is shown beside it."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, rate="")
        self._progress.update(self._tasks[name], completed=done, total=total, rate=rate)

    def pictures(self, side: str) -> Callable[[int, int], None]:
        """What moves the bar of the pictures of a side, such as "train"."""
        return partial(self.move, f"pictures to {side} on")


@contextmanager
def training_bars(console: Console) -> Iterator[Bars]:
    """Shows the bars of a run."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        yield Bars(progress)


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
