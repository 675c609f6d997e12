"""Runs of an experiment: arms by seeds, in processes of their own, kept as JSON lines."""

from __future__ import annotations

import json
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from benchmarks.pruning.arms import CONTROLS
from indexing.errors import BenchmarkError, ShoplensError
from indexing.messages import reason

Result = dict[str, Any]  # "arm", "seed", and what was measured
Call = tuple[str, int, float]  # arm, seed, and what share of the tokens a control keeps


def run_all(
    run_arm: Callable[[str, int, float], Result],
    arms: Sequence[str],
    seeds: int,
    file: Path,
    workers: int,
    note: Callable[[str], None],
    *,
    reference: str = "calibrated",
) -> list[Result]:
    """Every arm with every seed; what `file` holds already is not run again.

    The controls follow when the arm `reference` of their seed has told what share of the
    tokens they are to keep, and second stages when there is a first. A run that fails does
    not stop those beside it, but what was to follow them.

    Args:
        run_arm: (arm, seed, share) to a result; must be importable by other processes.
        note: called with a line after each run.

    Raises:
        BenchmarkError: `file` is no such file, controls are asked for without `reference`,
            or a run failed.
    """
    check_arms(arms, reference)
    results = read_results(file)
    wanted = list(dict.fromkeys((arm, seed) for seed in range(seeds) for arm in arms))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool, file.open("a") as lines:
        for later in (False, True):
            shares = {r["seed"]: r["share"] for r in results if r["arm"] == reference}
            done = {(r["arm"], r["seed"]) for r in results}
            left = [
                (arm, seed, shares.get(seed, 1.0))
                for arm, seed in wanted
                if (arm in CONTROLS or arm.startswith("second ")) == later
                and (arm, seed) not in done
            ]
            failed: dict[str, Exception] = {}
            for (arm, seed, _), outcome in _outcomes(pool, workers, run_arm, left):
                if isinstance(outcome, Exception):
                    failed[f"{arm}, seed {seed}"] = outcome
                    note(f"{arm}, seed {seed} failed: {_said(outcome)}")
                    continue
                results.append(outcome)
                lines.write(json.dumps(outcome) + "\n")
                lines.flush()
                done.add((arm, seed))
                note(f"{arm}, seed {seed} ({len(done.intersection(wanted))} of {len(wanted)})")
            if failed:
                first, error = next(iter(failed.items()))
                more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
                raise BenchmarkError(
                    f"{first}{more} failed ({_said(error)}): finished runs are kept in {file}, "
                    "and the same command goes on"
                ) from error
    return [result for result in results if (result["arm"], result["seed"]) in set(wanted)]


def check_arms(arms: Sequence[str], reference: str = "calibrated") -> None:
    """Raises BenchmarkError where controls are asked for without the arm that they follow."""
    if any(arm in CONTROLS for arm in arms) and reference not in arms:
        raise BenchmarkError(f"the controls keep as much as the arm {reference}: add it")


def read_results(file: Path) -> list[Result]:
    """What an earlier call of `run_all` has written.

    Raises:
        BenchmarkError: The file holds something else.
    """
    results: list[Result] = []
    if not file.exists():
        return results
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            result = json.loads(line)
            result["arm"], result["seed"]
        except (ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(
                f"{file}, line {number} is no result of a run: remove the line to run it again, "
                "or the file to start over"
            ) from error
        results.append(result)
    return results


def _outcomes(
    pool: ProcessPoolExecutor,
    workers: int,
    run_arm: Callable[[str, int, float], Result],
    calls: Sequence[Call],
) -> Iterator[tuple[Call, Result | Exception]]:
    """Calls as they end, with their result or what they raised.

    The pool gets no more than it works on: what it was given it would also run after Ctrl-C.

    Raises:
        BenchmarkError: A process died.
    """
    waiting, running = deque(calls), dict[Future[Result], Call]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                call = waiting.popleft()
                running[pool.submit(run_arm, *call)] = call
            ended = wait(running, return_when=FIRST_COMPLETED).done
            # What is to be kept comes before what may end it all.
            for future in sorted(ended, key=lambda future: future.exception() is not None):
                error = future.exception()
                if error is None:
                    yield running.pop(future), future.result()
                elif isinstance(error, Exception) and not isinstance(error, BrokenProcessPool):
                    yield running.pop(future), error
                else:  # the pool is broken, or Ctrl-C reached that process first
                    raise error
    except BrokenProcessPool as error:
        under_way = "; ".join(f"{arm}, seed {seed}" for arm, seed, _ in running.values())
        raise BenchmarkError(
            f"a process died (under way: {under_way or 'nothing'}): if memory is short, give "
            f"fewer workers than {workers}; finished runs are kept, and the same command goes on"
        ) from error


def _said(error: BaseException) -> str:
    if isinstance(error, ShoplensError):
        return str(error)
    return f"{type(error).__name__}: {reason(error)}"
