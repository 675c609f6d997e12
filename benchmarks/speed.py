"""shoplens beside a plain open_clip loop, stage by stage, taking turns.

Each side runs in a process of its own, which loads the model once and then does one stage
after the other: shoplens as its commands run (freed memory kept, see indexing/malloc.py;
FAISS with the kernel that fits), the loop as Python starts. While one works, the other
waits. The sides take turns, A B A B, after one round that is not counted. Only `end to end`
starts a fresh process each time, so interpreter, imports and the loading of the model count.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, faiss_kernel, installed_versions
from benchmarks.speed_shop import Shop
from benchmarks.speed_stages import HELD, QUERIES, SIDES, Side, everything
from benchmarks.timing import Spread, speed_up, spread
from indexing.durable import replace_bytes
from indexing.errors import BenchmarkError
from indexing.malloc import keep_freed_memory

Note = Callable[[str], None]

OURS, PLAIN = SIDES
END_TO_END = "end to end"
PACKAGES = (
    "shoplens", "torch", "open_clip_torch", "faiss-cpu", "faiss-gpu", "pillow", "numpy", "openvino",
    "onnxruntime",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A method of both sides, and what it does how often."""

    name: str
    method: str
    count: Callable[[int], int]  # of the shop's number of pictures
    vectors: str | None = None  # the method whose vectors must agree


STAGES = (
    Stage("decode a picture", "decode", lambda n: n),
    Stage("encode a picture", "encode_pictures", lambda n: min(n, HELD), "encode_pictures"),
    Stage("encode a text", "encode_texts", lambda n: n, "encode_texts"),
    Stage("index a picture", "index", lambda n: n, "indexed"),
    Stage("search by picture", "query_pictures", lambda n: min(n, QUERIES)),
    Stage("search by text", "query_texts", lambda n: min(n, QUERIES)),
)


@dataclass(frozen=True)
class Measured:
    """One stage: seconds of each round, each side's by its name."""

    stage: str
    count: int  # of what it names, in a round
    seconds: dict[str, list[float]]
    least_cosine: float | None = None  # between the vectors of the two sides
    peak_bytes: dict[str, int] = field(default_factory=dict)  # memory; end to end only

    @property
    def speed_up(self) -> Spread:
        """How many times faster shoplens is."""
        return speed_up(self.seconds[OURS], self.seconds[PLAIN])

    def a_unit(self, side: str) -> Spread:
        """Seconds a picture, text or run."""
        return spread([seconds / self.count for seconds in self.seconds[side]])


@dataclass(frozen=True)
class Speed:
    """A whole measurement."""

    command: str
    model: str
    pictures: int
    rounds: int
    machine: str
    versions: dict[str, str]
    faiss_kernel: dict[str, str | None]  # by side
    stages: list[Measured]


def measure(
    shop: Shop,
    model: str,
    work: Path,
    *,
    optimized: str | None = None,
    rounds: int = 5,
    command: str = "",
    note: Note = lambda _: None,
) -> Speed:
    """Time all stages. `work` is an empty folder for indexes; `note` is told of each stage.
    `optimized` is what shoplens runs in place of `model`.

    `model` must be one that `load_clip` loads: what is wrong with it cannot be told from
    here. Raises BenchmarkError where the process of a side dies.
    """
    chosen = {OURS: optimized or model, PLAIN: model}
    stages, kernels = _stages(shop, chosen, work, rounds, note)
    stages.append(_end_to_end(shop, chosen, work, rounds))
    note(f"{END_TO_END}: {stages[-1].speed_up.median:.2f} times as fast")
    return Speed(
        command=command,
        model=model if optimized is None else f"{model} as {optimized}",
        pictures=len(shop.rows),
        rounds=rounds,
        machine=describe_machine(),
        versions=installed_versions(PACKAGES),
        faiss_kernel=kernels,
        stages=stages,
    )


def _stages(
    shop: Shop, models: dict[str, str], work: Path, rounds: int, note: Note
) -> tuple[list[Measured], dict[str, str | None]]:
    """All stages, and the kernel of each side's FAISS."""
    found = []
    with (
        _worker(OURS, shop, models[OURS], work) as ours,
        _worker(PLAIN, shop, models[PLAIN], work) as plain,
    ):
        sides = {OURS: ours, PLAIN: plain}
        for stage in STAGES:
            for side in sides.values():
                side.submit(_timed, stage.method).result()
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(rounds):
                for name, side in sides.items():
                    seconds[name].append(side.submit(_timed, stage.method).result())
            cosine = None
            if stage.vectors is not None:
                left, right = (s.submit(_call, stage.vectors).result() for s in sides.values())
                cosine = float((left.astype(np.float64) * right).sum(axis=1).min())
            measured = Measured(stage.name, stage.count(len(shop.rows)), seconds, cosine)
            found.append(measured)
            note(f"{stage.name}: {measured.speed_up.median:.2f} times as fast")
        return found, {name: side.submit(faiss_kernel).result() for name, side in sides.items()}


def write_report(speed: Speed, folder: Path) -> None:
    """Writes speed.json (every round) and speed.md. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    content = asdict(speed)
    for measured, stage in zip(speed.stages, content["stages"], strict=True):
        stage["speed_up"] = asdict(measured.speed_up)
    replace_bytes(folder / "speed.json", (json.dumps(content, indent=1) + "\n").encode())
    replace_bytes(folder / "speed.md", ("\n".join(_page(speed)) + "\n").encode())


def cells(measured: Measured) -> list[str]:
    """A row of the table: stage, the time each side takes, how many times faster ours is."""
    ratio = measured.speed_up
    return [
        measured.stage,
        *(_duration(measured.a_unit(side)) for side in (OURS, PLAIN)),
        f"{ratio.median:.2f}× [{ratio.low:.2f}–{ratio.high:.2f}]",
    ]


def _page(speed: Speed) -> Iterator[str]:
    yield from ["# shoplens beside a plain open_clip loop", ""]
    yield f"`{speed.command}`"
    yield ""
    yield "| stage | shoplens | plain loop | times faster |"
    yield "| --- | ---: | ---: | ---: |"
    yield from (f"| {' | '.join(cells(measured))} |" for measured in speed.stages)
    yield ""
    yield (
        f"Medians of {speed.rounds} rounds [smallest–largest]; the two sides take turns, and "
        "times faster is that of each pair of turns."
    )
    yield ""
    for measured in speed.stages:
        if measured.least_cosine is not None:
            yield f"- {measured.stage}: cosine of the two sides' vectors is at least " + (
                f"{measured.least_cosine:.5f}."
            )
        for side, peak in measured.peak_bytes.items():
            yield f"- {measured.stage}: {side} held at most {peak / 1e6:,.0f} MB."
    versions = ", ".join(f"{name} {number}" for name, number in speed.versions.items())
    kernels = ", ".join(
        f"{side}: {name or 'not known'}" for side, name in speed.faiss_kernel.items()
    )
    yield f"- Model {speed.model}, {speed.pictures:,} pictures, on {speed.machine}; {versions}."
    yield f"- Kernel of FAISS's OpenBLAS, {kernels}."
    yield (
        "- Each side has a process of its own. The plain loop: pictures decoded in full, the "
        "model's own transform, batches of 32, texts padded to the context length, "
        "IndexFlatIP; the same weights. End to end: a fresh process, model loaded, catalog "
        f"indexed, {QUERIES} pictures and {QUERIES} texts searched."
    )


def _end_to_end(shop: Shop, models: dict[str, str], work: Path, rounds: int) -> Measured:
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    peaks: dict[str, int] = {}
    for number in range(rounds + 1):
        for name in SIDES:
            folder = work / f"{name}-{number}"
            folder.mkdir()
            started = time.perf_counter()
            with _worker(name, shop, models[name], folder) as side:
                side.submit(_everything).result()
                peaks[name] = max(peaks.get(name, 0), side.submit(_peak_bytes).result())
            if number:  # the first round only warms up
                seconds[name].append(time.perf_counter() - started)
    return Measured(END_TO_END, 1, seconds, peak_bytes=peaks)


@contextmanager
def _worker(name: str, shop: Shop, model: str, work: Path) -> Iterator[ProcessPoolExecutor]:
    """One side in a fresh process. Raises BenchmarkError where it dies."""
    try:
        with ProcessPoolExecutor(
            1, get_context("spawn"), initializer=_start, initargs=(name, shop, model, work)
        ) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise BenchmarkError(
            f"the process of the {name} side died; was there enough memory? "
            "Give fewer --pictures or a smaller --model"
        ) from error


# What follows runs in the process of a side.

_side: Side | None = None


def _start(name: str, shop: Shop, model: str, work: Path) -> None:
    global _side
    if name == OURS:
        keep_freed_memory()
    _side = SIDES[name](shop, model, work)


def _call(method: str) -> Any:
    return getattr(_side, method)()


def _timed(method: str) -> float:
    started = time.perf_counter()
    _call(method)
    return time.perf_counter() - started


def _everything() -> None:
    if _side is not None:
        everything(_side)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _duration(seconds: Spread) -> str:
    unit, factor = ("s", 1) if seconds.median >= 1 else ("ms", 1000)
    low, high = factor * seconds.low, factor * seconds.high
    return f"{factor * seconds.median:.2f} {unit} [{low:.2f}–{high:.2f}]"
