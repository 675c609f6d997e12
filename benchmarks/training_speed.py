"""What token pruning costs in training: `python -m benchmarks.training_speed`.

Each arm is a recipe of `shoplens train clip`, run by the training loop itself on drawn pictures
that lie on the device and titles of drawn lengths. Arms take turns, so that a machine that slows
down slows all of them, and each turn starts from the same untrained weights. On a CPU all runs
on one thread, and its CPU seconds are taken, which other programs lengthen least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import spread
from benchmarks.training_clock import STANDARD, Arm, Clock, Enough, Steps, turns
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
from benchmarks.training_work import STEPS, Pixels, Workload
from training.clip import train_clip
from training.config import TrainConfig
from training.data import Pairs
from training.presets import SETTINGS, make_config
from training.worth import BATCH as MASK_BATCH
from training.worth import MaskStep

MASKS = "mask learning"
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
    for name in turns(names, rounds, note):
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
    """A run of `train_clip` from the start, as far as it is timed; the share of title tokens
    kept at its end."""
    steps = Steps(clock)
    encoder = work.encoder()

    def on_mask_step(step: MaskStep) -> None:
        clock.mark(MASKS)

    images = Pixels(encoder, work.pixels)
    with suppress(Enough):
        train_clip(
            encoder, pairs, images, None, None, None, config,
            on_step=steps, on_mask_step=on_mask_step,
        )  # fmt: skip
    return steps.kept


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
class TrainingSpeed(Measured):
    """What was measured, and on what."""

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


def rows(found: TrainingSpeed) -> Iterator[list[str]]:
    """The table: a line for each arm and one for learning masks."""
    for name, arm in found.arms.items():
        times = arm.times(found.arms[STANDARD])
        bar = "" if name in (STANDARD, MASKS) else verdict(times)
        yield [name, *step_cells(arm), times_cell(times), bar, *end_cells(arm)]


def notes(found: TrainingSpeed) -> Iterator[str]:
    """What the table does not say."""
    yield from opening_notes(found)
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
    title_tokens: TitleTokens = 25,
    rounds: Rounds = 5,
    device: Device = None,
    precision: PrecisionChoice = "auto",
    json_file: JsonFile = None,
) -> None:
    """Time a training step with each kind of token pruning beside one without.

    Example: python -m benchmarks.training_speed --model ViT-B-32 --batch 512 --json speed.json
    """
    with bad_options():
        place = make_ready(device, precision)
        gpu = torch.device(place).type == "cuda"
        chunk = chunk or (340 if gpu else None)
        work = Workload(
            model or ("ViT-B-16" if gpu else None),
            place,
            batch=batch or (1360 if gpu else 128),
            title_tokens=title_tokens,
        )
        arms = take_turns(work, rounds, chunk=chunk, precision=precision, note=say)
        flops = count_flops(work, chunk)
    about = circumstances("benchmarks.training_speed", work, chunk=chunk, precision=precision)
    found = TrainingSpeed(
        **about, arms=arms, flops_a_pair=flops, peak_tflops=PEAKS.get(about["device"])
    )
    show(_COLUMNS, rows(found), notes(found))
    write_json(json_file, {**asdict(found), "share_of_peak": found.share_of_peak})


if __name__ == "__main__":
    typer.run(measure)
