"""How steps of training are timed.

Arms take turns, so that a machine that slows down slows all of them. On a CPU all runs on one
thread, and its CPU seconds are taken, which other programs lengthen least.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.timing import Spread, spread
from benchmarks.training_work import STEPS
from training.progress import Step

STANDARD = "standard"


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


class Enough(Exception):  # noqa: N818
    """The steps that are timed are done; the rest of the epoch would be for nothing."""


class Steps:
    """Marks the steps of a run, to be called after each.

    `kept` is the share of title tokens that the last of them kept.

    Raises:
        Enough: after the last step that is timed, if the run goes on.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.kept: float | None = None

    def __call__(self, step: Step) -> None:
        self._clock.mark(STANDARD)
        self.kept = step.kept
        if step.number == 1 + STEPS < step.total:
            raise Enough


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


def turns(names: Sequence[str], rounds: int, note: Callable[[str], None]) -> Iterator[str]:
    """Whose turn it is; another begins each round, so that none always comes after the same.

    Args:
        note: is told before each round.
    """
    for number in range(rounds):
        note(f"round {number + 1} of {rounds}")
        first = number % len(names)
        yield from (*names[first:], *names[:first])
