"""What token pruning costs in training: `python -m benchmarks.training_speed`.

Each arm is a recipe of `shoplens train clip`, run by the training loop itself on drawn pictures
that lie on the device and titles of drawn lengths. Arms take turns, so that a machine that slows
down slows all of them, and each turn starts from the same untrained weights. On a CPU all runs
on one thread, and its CPU seconds are taken, which other programs lengthen least.
"""

from __future__ import annotations

import copy
import difflib
import gc
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe_machine, installed_versions
from benchmarks.timing import Spread, spread
from indexing.catalog.product import ProductImage
from indexing.durable import replace_bytes
from indexing.errors import BenchmarkError, ShoplensError
from indexing.malloc import keep_freed_memory
from indexing.messages import reason
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.pruned_text import text_tower
from indexing.models.text import ends_of_text
from indexing.models.torchvision_repair import import_torchvision
from training.config import Precision, TrainConfig
from training.data import Pairs
from training.gradients import wants_bfloat16
from training.loop import train_clip
from training.presets import SETTINGS, make_config
from training.progress import Step
from training.worth import BATCH as MASK_BATCH
from training.worth import MaskStep

LIMIT = 1.10  # how many times as long as standard a step with token pruning may take
STEPS = 2  # timed in a turn, after one that is not
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
# Titles are about a sixteenth of the arithmetic, as in ViT-B-16; being narrow, more of the time.
TOY: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "layers": 8, "width": 128, "head_width": 32, "patch_size": 16, "image_size": 96,
    },
    "text_cfg": {
        "context_length": 77, "vocab_size": 4096, "width": 64, "heads": 2, "layers": 3,
    },
}  # fmt: skip
_PICTURES = 1360  # drawn ones at most; larger batches repeat them
_SIGMA = 0.4  # of the logarithm of title lengths: 1 in 20 titles is about twice the usual one
_COLUMNS = ("arm", "ms a step", "pairs/s", "times standard", f"≤ {LIMIT:.2f}", "kept", "peak GB")
_PACKAGES = ("torch", "open_clip_torch", "timm", "numpy")

Rows = NDArray[np.int64]


class Numbers:
    """A tokenizer of titles made of numbers, each one a token."""

    def __init__(self, vocabulary: int, context: int) -> None:
        self.vocabulary, self.context = vocabulary, context

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [n, context]: the start, the numbers, the end, which is the highest id, 0s."""
        ids = torch.zeros((len(texts), self.context), dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            words = [int(word) for word in text.split()][: self.context - 2]
            tokens = [self.vocabulary - 2, *words, self.vocabulary - 1]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids


def draw_titles(count: int, mean: float, tokenizer: Numbers) -> list[str]:
    """Titles for a tokenizer; lengths are log-normal around `mean` tokens, start and end
    included, and between 3 and the tokenizer's context."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(math.log(mean) - _SIGMA**2 / 2, _SIGMA, count)
    words = np.clip(np.rint(lengths), 3, tokenizer.context).astype(int) - 2
    return [" ".join(map(str, rng.integers(1, tokenizer.vocabulary - 2, n))) for n in words]


class Pixels:
    """The picture side of training, with all pictures on the device; rows share them."""

    def __init__(self, encoder: ClipEncoder, pixels: Tensor) -> None:
        self._encoder, self._pixels = encoder, pixels

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, Tensor]]:
        for rows in batches:
            yield rows, torch.from_numpy(rows % len(self._pixels)).to(self._pixels.device)

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self._encoder.model.encode_image(self._pixels[images])
        return features

    def before(self, images: Tensor) -> Tensor:
        raise NotImplementedError("no arm keeps the similarities that pictures had before")


class Workload:
    """What all arms train. `model` is an architecture of open_clip; None: a toy.

    Raises:
        BenchmarkError: open_clip has no such architecture, or it reads no such titles.
        ModelError: Its text tower cannot prune.
    """

    def __init__(self, model: str | None, device: str, *, batch: int, title_tokens: float) -> None:
        self.name, self.device, self.batch = model or "toy", device, batch
        cfg = TOY if model is None else _architecture(model)
        image, text = cfg["vision_cfg"].get("image_size", 224), cfg["text_cfg"]
        side = max(image) if isinstance(image, (tuple, list)) else image
        context = int(text.get("context_length", 77))
        if not 3 <= title_tokens <= context:
            raise BenchmarkError(
                f"titles of {title_tokens:g} tokens: {self.name} reads 3 to {context} tokens"
            )
        torch.manual_seed(0)
        try:
            self._model, self._cfg = create_model(cfg), cfg
        except (TypeError, ValueError, RuntimeError) as error:
            raise BenchmarkError(f"{self.name} cannot be built: {reason(error)}") from error
        self._preprocess = {"size": side, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3}
        self._tokenizer = Numbers(int(text.get("vocab_size", 49408)), context)
        text_tower(self._model)  # says what is wrong with it
        titles = draw_titles(batch * (1 + STEPS), title_tokens, self._tokenizer)
        ids = self._tokenizer(titles)
        lengths = (ids > 0).sum(1)
        if not torch.equal(ends_of_text(self._model, ids), lengths - 1):
            raise BenchmarkError(f"{self.name} does not read its titles up to their highest token")
        self.mean_tokens, self.most_tokens = float(lengths.float().mean()), int(lengths.max())
        names = [str(number) for number in range(len(titles))]
        pictures = [ProductImage(location=name) for name in names]
        self.pairs = Pairs(pictures, titles, np.arange(len(titles)), names)
        self.pixels = torch.randn((min(batch, _PICTURES), 3, side, side)).to(device)

    def encoder(self) -> ClipEncoder:
        """The same untrained model each time."""
        config = {"model_cfg": self._cfg, "preprocess_cfg": self._preprocess}
        model = copy.deepcopy(self._model)
        return ClipEncoder(self.name, model, self._tokenizer, config, device=self.device)


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


def _architecture(name: str) -> dict[str, Any]:
    """What open_clip knows of an architecture; raises BenchmarkError where that is no use."""
    import_torchvision()
    import open_clip

    cfg: dict[str, Any] | None = open_clip.get_model_config(name)
    if cfg is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise BenchmarkError(f"unknown model architecture {name!r}{hint}")
    if "hf_model_name" in cfg["text_cfg"]:  # to be fetched before it can be found unfit
        raise BenchmarkError(f"{name} has no text tower of open_clip: token pruning needs one")
    return cfg


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
