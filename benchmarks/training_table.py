"""What the commands that time training have in common: options, and how figures are shown."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine, installed_versions
from benchmarks.timing import Spread, spread
from benchmarks.training_clock import Arm
from benchmarks.training_work import Workload
from indexing.durable import replace_bytes
from indexing.errors import BenchmarkError, ShoplensError
from indexing.malloc import keep_freed_memory
from indexing.messages import reason
from training.config import Precision, RunConfig
from training.gradients import wants_bfloat16

LIMIT = 1.10  # how many times as long as standard a step with token pruning may take
_PACKAGES = ("torch", "open_clip_torch", "timm", "numpy")

TitleTokens = Annotated[float, typer.Option(help="Mean length of titles, start and end included.")]
Rounds = Annotated[int, typer.Option(min=5, help="How often they take turns.")]
Device = Annotated[
    str | None, typer.Option(help="A torch device.", show_default="the GPU, else the CPU")
]
PrecisionChoice = Annotated[
    str, typer.Option(help="auto (bf16 on a GPU that has it), fp32 or bf16.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here, too.")
]


def verdict(times: Spread) -> str:
    """Whether a step with token pruning costs no more than it may."""
    return "PASS" if times.median <= LIMIT else "MISS"


@dataclass(frozen=True)
class Measured:
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


def circumstances(
    module: str, work: Workload, *, chunk: int | None, precision: str
) -> dict[str, Any]:
    """All of `Measured` but the arms, for a command that is run as `python -m module`."""
    place = torch.device(work.device)
    half = wants_bfloat16(RunConfig.model_validate({"precision": precision}).precision, place)
    on_gpu = place.type == "cuda"
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "model": work.name,
        "device": torch.cuda.get_device_name(place) if on_gpu else "one thread, CPU seconds",
        "machine": describe_machine(),
        "versions": installed_versions(_PACKAGES),
        "precision": "bf16" if half else "fp32",
        "batch": work.batch,
        "chunk": chunk,
        "mean_title_tokens": work.mean_tokens,
        "most_title_tokens": work.most_tokens,
    }


def step_cells(arm: Arm) -> list[str]:
    """Milliseconds of a step, and pairs a second."""
    took = spread(arm.seconds)
    return [
        f"{1e3 * took.median:,.1f} [{1e3 * took.low:,.1f}–{1e3 * took.high:,.1f}]",
        f"{arm.pairs / took.median:,.0f}",
    ]


def times_cell(times: Spread) -> str:
    """How many times as long."""
    return f"{times.median:.3f} [{times.low:.3f}–{times.high:.3f}]"


def end_cells(arm: Arm) -> list[str]:
    """The share of title tokens kept, and GB of memory."""
    return [
        "" if arm.kept is None else f"{arm.kept:.1%}",
        "" if arm.peak_bytes is None else f"{arm.peak_bytes / 1e9:.2f}",
    ]


def opening_notes(found: Measured) -> Iterator[str]:
    """What was timed, and where."""
    yield (
        f"{found.model}, {found.batch:,} pairs a step, chunks of {found.chunk or found.batch:,}, "
        f"{found.precision}, titles of {found.mean_title_tokens:.1f} tokens on average and at "
        f"most {found.most_title_tokens}"
    )
    yield f"on {found.device}; {found.machine}"


def show(columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str]) -> None:
    """Prints the table, and the notes below it."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in rows:
        table.add_row(*row)
    console = Console(width=120)
    console.print(table)
    for line in notes:
        console.print(line, highlight=False)


def write_json(file: Path | None, content: dict[str, Any]) -> None:
    """Writes all figures, if there is a file for them."""
    if file is not None:
        replace_bytes(file, (json.dumps(content, indent=1) + "\n").encode())


def say(line: str) -> None:
    """To stderr, while it runs."""
    typer.echo(line, err=True)


@contextmanager
def bad_options() -> Iterator[None]:
    """What cannot be timed is the fault of an option."""
    try:
        yield
    except ShoplensError as error:
        raise typer.BadParameter(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise typer.BadParameter("not enough memory on the GPU: give a smaller --chunk") from error


def make_ready(device: str | None, precision: str) -> str:
    """The device to time on; prepares this process for it.

    Raises:
        BenchmarkError: It cannot be used here, or there is no such precision.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if precision not in get_args(Precision):
        raise BenchmarkError(f"--precision {precision!r} is not {', '.join(get_args(Precision))}")
    try:
        found = torch.empty(0, device=place).device
    except (RuntimeError, AssertionError) as error:
        raise BenchmarkError(f"device {place!r} cannot be used here: {reason(error)}") from error
    if found.type not in ("cpu", "cuda"):
        raise BenchmarkError(f"device {place!r} is not timed: give cpu or a cuda device")
    keep_freed_memory()
    if found.type == "cpu":  # threads that wait for each other on a busy machine measure that
        torch.set_num_threads(1)
    return place
