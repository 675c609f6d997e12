"""What token pruning costs in training: `python -m benchmarks.training_speed`.

Each arm is a recipe of `shoplens train clip`, run by the training loop itself on drawn pictures
that lie on the device and titles of drawn lengths. Arms take turns, so that a machine that slows
down slows all of them, and each turn starts from the same untrained weights. On a CPU all runs
on one thread, and its CPU seconds are taken, which other programs lengthen least.
"""

from __future__ import annotations

import gc
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe_machine, installed_versions
from benchmarks.timing import Spread, spread
from benchmarks.training_work import STEPS, Pixels, Workload
from indexing.durable import replace_bytes
from indexing.errors import BenchmarkError, ShoplensError
from indexing.malloc import keep_freed_memory
from indexing.messages import reason
from training.clip import train_clip
from training.config import Precision, TrainConfig
from training.data import Pairs
from training.gradients import wants_bfloat16
from training.presets import SETTINGS, make_config
from training.progress import Step
from training.worth import BATCH as MASK_BATCH
from training.worth import MaskStep

LIMIT = 1.10  # how many times as long as standard a step with token pruning may take
STANDARD, MASKS = "standard", "mask learning"
# Recipe and steps of mask learning; without any, masks are learned along with the weights.
ARMS: dict[str, tuple[str, int]] = {
    STANDARD: ("standard", 0),
    "paper": ("paper", 0),
    "online": ("calibrated", 0),
    "calibrated": ("calibrated", 1 + STEPS),
}
# Dense bfloat16 with float32 sums, TFLOP/s at most, by the makers' data sheets; names as
# torch.cuda.get_device_name has them, so that a part of a chip is not taken for the whole.
PEAKS = {
    "NVIDIA H200": 989,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA L40S": 362,
    "NVIDIA L4": 121,
    "NVIDIA A10": 125,
}
_COLUMNS = ("arm", "ms a step", "pairs/s", "times standard", f"≤ {LIMIT:.2f}", "kept", "peak GB")
_PACKAGES = ("torch", "open_clip_torch", "timm", "numpy")


class Clock:
    """Notes when the device is done with a step, and the memory that it took at most.

    Time is CPU time where the device is one.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        self._marks: dict[str, list[float]] = {}
        self._peaks: dict[str, int] = {}
        gc.collect()  # a model that is no longer used is no memory of the next
        self._before = 0
        if self._cuda:
            self._before = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)

    def mark(self, what: str) -> None:
        """To be called after each step; steps of a kind have a name."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device) - self._before
            self._peaks[what] = max(peak, self._peaks.get(what, 0))
            torch.cuda.reset_peak_memory_stats(self._device)
        now = time.perf_counter() if self._cuda else time.process_time()
        self._marks.setdefault(what, []).append(now)

    def seconds(self, what: str) -> float:
        """Of a step, the mean of all but the first."""
        marks = self._marks[what]
        return (marks[-1] - marks[0]) / (len(marks) - 1)

    def peak(self, what: str) -> int | None:
        """Bytes beyond those in use before; None on a device that does not tell."""
        return self._peaks.get(what)


@dataclass
class Arm:
    """What was measured of one arm, or of learning its masks."""

    pairs: int  # of a step
    seconds: list[float] = field(default_factory=list)  # of a step, one a round
    kept: float | None = None  # share of the title tokens that could be dropped
    peak_bytes: int | None = None  # of memory, beyond the pictures

    def note(self, clock: Clock, what: str) -> None:
        """Takes in a turn."""
        self.seconds.append(clock.seconds(what))
        self.peak_bytes = clock.peak(what)

    def times(self, other: Arm) -> Spread:
        """How many times as long as a step of another arm, round by round."""
        both = zip(self.seconds, other.seconds, strict=True)
        return spread([mine / theirs for mine, theirs in both])


def take_turns(
    work: Workload,
    rounds: int,
    *,
    chunk: int | None,
    precision: str,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Arm]:
    """Runs all arms `rounds` times, and says so before each round."""
    names = list(ARMS)
    arms = {name: Arm(work.batch) for name in names}
    arms[MASKS] = Arm(min(MASK_BATCH, work.batch))
    for number in range(rounds):
        note(f"round {number + 1} of {rounds}")
        first = number % len(names)  # so that none always comes after the same
        for name in names[first:] + names[:first]:
            preset, mask_steps = ARMS[name]
            config = make_config(
                preset, epochs=1, batch_size=work.batch, mask_steps=mask_steps,
                chunk=chunk, precision=precision,
            )  # fmt: skip
            clock = Clock(work.device)
            arms[name].kept = train(work, work.pairs, config, clock)
            arms[name].note(clock, STANDARD)
            if mask_steps:
                arms[MASKS].note(clock, MASKS)
    return arms


def train(work: Workload, pairs: Pairs, config: TrainConfig, clock: Clock) -> float | None:
    """A run of `train_clip` from the start; the share of title tokens kept at its end."""
    last: list[Step] = []
    encoder = work.encoder()

    def on_step(step: Step) -> None:
        clock.mark(STANDARD)
        last[:] = [step]

    def on_mask_step(step: MaskStep) -> None:
        clock.mark(MASKS)

    images = Pixels(encoder, work.pixels)
    train_clip(
        encoder, pairs, images, None, None, None, config,
        on_step=on_step, on_mask_step=on_mask_step,
    )  # fmt: skip
    return last[-1].kept


def count_flops(work: Workload, chunk: int | None) -> float:
    """Floating-point operations of matrix products and convolutions that a standard step takes
    for a pair: forward once and backward once, however often chunks are computed."""
    size = min(chunk or work.batch, work.batch)
    config = make_config(STANDARD, epochs=1, batch_size=size, precision="auto")
    # Of PyTorch's fused attention, what runs on a GPU is counted and what runs on a CPU is not.
    on_cpu = torch.device(work.device).type == "cpu"
    plain = sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()
    with plain, FlopCounterMode(display=False) as counter:
        train(work, work.pairs.take(range(size)), config, Clock(work.device))
    flops: int = counter.get_total_flops()
    return flops / size


@dataclass(frozen=True)
class TrainingSpeed:
    """What was measured, and on what."""

    command: str
    model: str
    device: str
    machine: str
    versions: dict[str, str]
    precision: str
    batch: int
    chunk: int | None
    mean_title_tokens: float
    most_title_tokens: int
    arms: dict[str, Arm]
    flops_a_pair: float  # of a standard step
    peak_tflops: float | None  # of the device, in bfloat16

    @property
    def share_of_peak(self) -> float | None:
        """Of what the device can do, what a standard step asks of it."""
        if self.peak_tflops is None:
            return None
        standard = self.arms[STANDARD]
        rate = self.flops_a_pair * standard.pairs / spread(standard.seconds).median
        return rate / (self.peak_tflops * 1e12)


def verdict(times: Spread) -> str:
    """Whether a step with token pruning costs no more than it may."""
    return "PASS" if times.median <= LIMIT else "MISS"


def rows(found: TrainingSpeed) -> Iterator[list[str]]:
    """The table: a line for each arm and one for learning masks."""
    for name, arm in found.arms.items():
        took, times = spread(arm.seconds), arm.times(found.arms[STANDARD])
        yield [
            name,
            f"{1e3 * took.median:,.1f} [{1e3 * took.low:,.1f}–{1e3 * took.high:,.1f}]",
            f"{arm.pairs / took.median:,.0f}",
            f"{times.median:.3f} [{times.low:.3f}–{times.high:.3f}]",
            "" if name in (STANDARD, MASKS) else verdict(times),
            "" if arm.kept is None else f"{arm.kept:.1%}",
            "" if arm.peak_bytes is None else f"{arm.peak_bytes / 1e9:.2f}",
        ]


def notes(found: TrainingSpeed) -> Iterator[str]:
    """What the table does not say."""
    yield (
        f"{found.model}, {found.batch:,} pairs a step, chunks of {found.chunk or found.batch:,}, "
        f"{found.precision}, titles of {found.mean_title_tokens:.1f} tokens on average and at "
        f"most {found.most_title_tokens}"
    )
    yield f"on {found.device}; {found.machine}"
    masks, stage = found.arms[MASKS], int(str(SETTINGS["calibrated"]["mask_steps"]))
    times = masks.times(found.arms[STANDARD])
    yield (
        f"{stage} steps of mask learning, {masks.pairs:,} pairs each, take as long as "
        f"{stage * times.median:,.0f} standard steps"
    )
    flops = f"a standard step computes {found.flops_a_pair / 1e9:,.2f} GFLOP a pair"
    if found.share_of_peak is not None:
        flops += f": {found.share_of_peak:.1%} of {found.peak_tflops:,.0f} TFLOP/s dense bfloat16"
    yield flops


def measure(
    model: Annotated[
        str | None,
        typer.Option(help="An architecture of open_clip.", show_default="ViT-B-16; on a CPU a toy"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=2, help="Pairs of a step.", show_default="1360; on a CPU 128"),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs in memory at a time.", show_default="340; on a CPU all"),
    ] = None,
    title_tokens: Annotated[
        float, typer.Option(help="Mean length of titles, start and end included.")
    ] = 25,
    rounds: Annotated[int, typer.Option(min=5, help="How often they take turns.")] = 5,
    device: Annotated[
        str | None, typer.Option(help="A torch device.", show_default="the GPU, else the CPU")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="auto (bf16 on a GPU that has it), fp32 or bf16.")
    ] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here, too.")
    ] = None,
) -> None:
    """Time a training step with each kind of token pruning beside one without.

    Example: python -m benchmarks.training_speed --model ViT-B-32 --batch 512 --json speed.json
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if precision not in get_args(Precision):
        raise typer.BadParameter(f"{precision!r} is not {', '.join(get_args(Precision))}")
    keep_freed_memory()
    try:
        gpu = _checked(place).type == "cuda"
        if not gpu:  # threads that wait for each other on a busy machine measure that machine
            torch.set_num_threads(1)
        chunk = chunk or (340 if gpu else None)
        work = Workload(
            model or ("ViT-B-16" if gpu else None),
            place,
            batch=batch or (1360 if gpu else 128),
            title_tokens=title_tokens,
        )
        arms = take_turns(work, rounds, chunk=chunk, precision=precision, note=_note)
        flops = count_flops(work, chunk)
    except ShoplensError as error:
        raise typer.BadParameter(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise typer.BadParameter("not enough memory on the GPU: give a smaller --chunk") from error
    chip = torch.cuda.get_device_name(place) if gpu else "one thread, CPU seconds"
    half = wants_bfloat16(make_config(STANDARD, precision=precision), torch.device(place))
    found = TrainingSpeed(
        command=shlex.join(["python", "-m", "benchmarks.training_speed", *sys.argv[1:]]),
        model=work.name,
        device=chip,
        machine=describe_machine(),
        versions=installed_versions(_PACKAGES),
        precision="bf16" if half else "fp32",
        batch=work.batch,
        chunk=chunk,
        mean_title_tokens=work.mean_tokens,
        most_title_tokens=work.most_tokens,
        arms=arms,
        flops_a_pair=flops,
        peak_tflops=PEAKS.get(chip),
    )
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in rows(found):
        table.add_row(*row)
    console = Console(width=110)
    console.print(table)
    for line in notes(found):
        console.print(line, highlight=False)
    if json_file is not None:
        content = {**asdict(found), "share_of_peak": found.share_of_peak}
        replace_bytes(json_file, (json.dumps(content, indent=1) + "\n").encode())


def _checked(device: str) -> torch.device:
    """Raises BenchmarkError for a device that cannot be used here."""
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise BenchmarkError(f"device {device!r} cannot be used here: {reason(error)}") from error
    if found.type not in ("cpu", "cuda"):
        raise BenchmarkError(f"device {device!r} is not timed: give cpu or a cuda device")
    return found


def _note(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    typer.run(measure)
