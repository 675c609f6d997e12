"""What a training step of ALBEF costs beside one of CLIP: `python -m benchmarks.albef_speed`.

Both learn from the same pairs, of like sizes: a picture encoder alike, text of the same width.
All is as in `training_speed`: the training loops themselves, drawn pictures on the device, titles
of drawn lengths, turns. ALBEF has a queue, and so there are as many pairs as it holds.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.training_clock import STANDARD, Arm, Clock, Enough, Steps, turns
from benchmarks.training_speed import train
from benchmarks.training_table import (
    LIMIT,
    Device,
    JsonFile,
    Measured,
    PrecisionChoice,
    Rounds,
    TitleTokens,
    bad_options,
    circumstances,
    end_cells,
    make_ready,
    opening_notes,
    say,
    show,
    step_cells,
    times_cell,
    verdict,
    write_json,
)
from benchmarks.training_work import AlbefWorkload, WholePixels, Workload
from indexing.errors import BenchmarkError
from training.albef.presets import make_albef_config
from training.albef.train import train_albef
from training.presets import make_config

CLIP, ALBEF = "CLIP standard", "ALBEF standard"
# Recipe and the attentions that prune; masks are learned along with the weights.
ARMS = {
    CLIP: (STANDARD, None),
    ALBEF: (STANDARD, None),
    "ALBEF cross": ("calibrated", "cross"),
    "ALBEF all": ("calibrated", "all"),
}
_COLUMNS = (
    *("arm", "ms a step", "pairs/s", "times CLIP", "times ALBEF", f"≤ {LIMIT:.2f}", "kept"),
    "peak GB",
)


@dataclass(frozen=True)
class Size:
    """What is trained, and on how much; None: the toy, for any machine."""

    clip: str | None
    batch: int
    queue: int  # embeddings of earlier batches that ALBEF keeps
    side: int | None = None  # of pictures, in pixels

    def workload(self, device: str, title_tokens: float) -> AlbefWorkload:
        """Raises BenchmarkError where titles are too long."""
        clip = Workload(
            self.clip, device, batch=self.batch, title_tokens=title_tokens, side=self.side,
            pairs=self.queue,
        )  # fmt: skip
        return AlbefWorkload(clip, base=self.clip is not None, queue=self.queue)


TOY = Size(None, batch=128, queue=1024)
# Batch and queue are those of Hu et al. 2024, section 4.1; the pictures ALBEF's.
BASE = Size("ViT-B-16", batch=320, queue=65_536, side=256)


def take_turns(
    work: AlbefWorkload,
    rounds: int,
    *,
    chunk: int | None,
    precision: str,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Arm]:
    """Runs all arms `rounds` times, and says so before each round."""
    arms = {name: Arm(work.clip.batch) for name in ARMS}
    for name in turns(list(ARMS), rounds, note):
        clock = Clock(work.clip.device)
        arms[name].kept = train_arm(name, work, clock, chunk=chunk, precision=precision)
        arms[name].note(clock, STANDARD)
    return arms


def train_arm(
    name: str, work: AlbefWorkload, clock: Clock, *, chunk: int | None, precision: str
) -> float | None:
    """A run of one of ARMS from the start, as far as it is timed; the share of title tokens
    kept at its end."""
    (preset, prune), clip = ARMS[name], work.clip
    size = {"epochs": 1, "batch_size": clip.batch}
    how: dict[str, Any] = {**size, "chunk": chunk, "precision": precision}
    if name == CLIP:
        return train(clip, clip.pairs, make_config(preset, **how), clock)
    config = make_albef_config(preset, prune=prune, queue_size=work.queue, **how)
    steps, encoder = Steps(clock), work.encoder()
    images = WholePixels(encoder, clip.pixels)
    with suppress(Enough):
        train_albef(encoder, clip.pairs, images, None, None, None, config, on_step=steps)
    return steps.kept


# --- memory on a CPU


def peak_alone(
    name: str, size: Size, title_tokens: float, *, chunk: int | None, precision: str
) -> int | None:
    """Bytes by which training one of ARMS on the CPU raises the peak of resident memory, in a
    process of its own: another arm would have raised it already.

    Raises:
        BenchmarkError: The process died.
    """
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(_peak_of, name, size, title_tokens, chunk, precision).result()
    except BrokenProcessPool as error:
        raise BenchmarkError(
            f"the process of {name} died; if memory is short, give a smaller --batch or --chunk"
        ) from error


def _peak_of(
    name: str, size: Size, title_tokens: float, chunk: int | None, precision: str
) -> int | None:
    work = size.workload(make_ready("cpu", precision), title_tokens)
    clock = Clock(work.clip.device)
    return peak_growth(lambda: train_arm(name, work, clock, chunk=chunk, precision=precision))


def peak_growth(run: Callable[[], object]) -> int | None:
    """Bytes by which `run` raises the peak of this process's resident memory; None where the
    system does not tell."""
    before = _peak_resident()
    run()
    after = _peak_resident()
    return None if before is None or after is None else after - before


def _peak_resident() -> int | None:
    # Not resource.getrusage: its peak of a process that another one started is at least what
    # that one held then.
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return None
    lines = (line.split() for line in status.splitlines())
    return next((1024 * int(line[1]) for line in lines if line[0] == "VmHWM:"), None)


# --- the command


@dataclass(frozen=True)
class AlbefSpeed(Measured):
    """What was measured, and on what."""

    queue: int  # embeddings of earlier batches that ALBEF keeps


def rows(found: AlbefSpeed) -> Iterator[list[str]]:
    """The table: a line for each arm."""
    for name, arm in found.arms.items():
        clip, albef = (arm.times(found.arms[other]) for other in (CLIP, ALBEF))
        bar = "" if name in (CLIP, ALBEF) else verdict(albef)
        yield [name, *step_cells(arm), times_cell(clip), times_cell(albef), bar, *end_cells(arm)]


def notes(found: AlbefSpeed) -> Iterator[str]:
    """What the table does not say."""
    yield from opening_notes(found)
    yield f"ALBEF has a queue of {found.queue:,} pairs"
    yield (
        "GB: the most that a run takes beyond the pictures, weights and optimizer included; on a "
        "CPU resident memory, in a process of its own"
    )


def measure(
    base: Annotated[
        bool,
        typer.Option(
            "--base", help="ALBEF's base model and ViT-B-16, 256 pixels; on a GPU. [default: toys]"
        ),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(min=2, help="Pairs of a step.", show_default="320 with --base, else 128"),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Pairs in memory at a time.", show_default="all")
    ] = None,
    title_tokens: TitleTokens = 25,
    rounds: Rounds = 5,
    device: Device = None,
    precision: PrecisionChoice = "auto",
    json_file: JsonFile = None,
) -> None:
    """Time a training step of ALBEF, with and without token pruning, beside one of CLIP.

    Example: python -m benchmarks.albef_speed --rounds 7 --json albef.json
    """
    size = BASE if base else TOY
    size = replace(size, batch=batch or size.batch)
    with bad_options():
        place = make_ready(device, precision)
        gpu = torch.device(place).type == "cuda"
        if base and not gpu:
            raise BenchmarkError("--base takes hours on a CPU: give a cuda device, or leave it out")
        work = size.workload(place, title_tokens)
        arms = take_turns(work, rounds, chunk=chunk, precision=precision, note=say)
        if not gpu:
            say("memory, in a process for each arm")
            for name, arm in arms.items():
                arm.peak_bytes = peak_alone(
                    name, size, title_tokens, chunk=chunk, precision=precision
                )
    about = circumstances("benchmarks.albef_speed", work.clip, chunk=chunk, precision=precision)
    found = AlbefSpeed(**about, arms=arms, queue=work.queue)
    show(_COLUMNS, rows(found), notes(found))
    write_json(json_file, asdict(found))


if __name__ == "__main__":
    typer.run(measure)
