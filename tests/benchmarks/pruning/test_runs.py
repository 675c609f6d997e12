"""Runs: their order and shares, going on after a stop, and what is kept when one fails."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks.pruning import runs
from benchmarks.pruning.runs import Result, read_results, run_all
from indexing.errors import BenchmarkError, ShoplensError, TrainingError

Call = tuple[str, int, float]
FIRST = ["standard", "paper", "online", "calibrated", "oracle"]
LATER = ["random drop", "fixed types", "truncated", "second standard", "second calibrated"]
SHARES = {"calibrated": 0.25, "all": 0.75}
ALL = [*FIRST[:4], *LATER[:3], "oracle", *LATER[3:]]


class Turns:
    """A pool of which one run ends at a time, the first first, and the `wait` for it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Result], Callable[..., Result], Call]] = []
        self.most = 0
        self.broken = False

    def __call__(self, workers: int, *, mp_context: Any) -> Turns:
        assert mp_context.get_start_method() == "spawn"  # torch does not survive a fork
        self.workers = workers
        return self

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, run_arm: Callable[..., Result], *call: Any) -> Future[Result]:
        if self.broken:
            raise BrokenProcessPool("gone")
        future: Future[Result] = Future()
        self.waiting.append((future, run_arm, call))
        self.most = max(self.most, len(self.waiting))
        return future

    def wait(self, running: Any, return_when: str) -> Any:
        assert return_when == "FIRST_COMPLETED"
        future, run_arm, call = self.waiting.pop(0)
        try:
            future.set_result(run_arm(*call))
        except (ShoplensError, ArithmeticError, KeyboardInterrupt) as error:
            future.set_exception(error)
        return SimpleNamespace(done={future})


class Arms:
    """A `run_arm` that notes its calls; `calibrated` keeps a share that tells its seed."""

    def __init__(self, failing: Mapping[tuple[str, int], BaseException] | None = None) -> None:
        self.calls: list[Call] = []
        self.failing = failing or {}

    def __call__(self, arm: str, seed: int, share: float) -> Result:
        self.calls.append((arm, seed, share))
        if (arm, seed) in self.failing:
            raise self.failing[arm, seed]
        more = {"share": 0.5 + seed / 10} if arm == "calibrated" else {}
        return {"arm": arm, "seed": seed, "title R@1": share, **more}


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns = Turns()
    monkeypatch.setattr(runs, "ProcessPoolExecutor", turns)
    monkeypatch.setattr(runs, "wait", turns.wait)
    return turns


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def no_note(line: str) -> None:
    pass


def stored(file: Path) -> list[tuple[str, int]]:
    return [(line["arm"], line["seed"]) for line in map(json.loads, file.read_text().splitlines())]


def test_controls_and_second_stages_follow_with_the_share_of_their_seed(
    pool: Turns, file: Path
) -> None:
    arms, notes = Arms(), list[str]()
    results = run_all(arms, ALL, 2, file, 3, notes.append)
    assert [call[:2] for call in arms.calls] == [
        *((arm, seed) for seed in range(2) for arm in FIRST),
        *((arm, seed) for seed in range(2) for arm in LATER),
    ]
    for arm, seed, share in arms.calls[10:]:
        assert share == 0.5 + seed / 10, arm
    assert results == read_results(file)
    assert [(r["arm"], r["seed"]) for r in results] == [call[:2] for call in arms.calls]
    assert notes[0] == "standard, seed 0 (1 of 20)"
    assert notes[-1] == "second calibrated, seed 1 (20 of 20)"
    assert (pool.workers, pool.most) == (3, 3)  # more could not be taken back


def test_it_goes_on_where_it_was(pool: Turns, file: Path) -> None:
    chosen = ["standard", "calibrated", "truncated"]
    first, second, third = Arms(), Arms(), Arms()
    run_all(first, chosen, 1, file, 1, no_note)
    before = file.read_bytes()
    notes: list[str] = []
    results = run_all(second, chosen, 2, file, 1, notes.append)
    assert second.calls == [("standard", 1, 1.0), ("calibrated", 1, 1.0), ("truncated", 1, 0.6)]
    assert notes == [f"{arm}, seed 1 ({n} of 6)" for n, arm in enumerate(chosen, 4)]
    assert file.read_bytes().startswith(before)
    assert len(results) == 6
    # Fewer seeds or arms: what else the file holds is neither run nor returned nor counted.
    notes.clear()
    some = run_all(third, ["standard", "paper"], 1, file, 1, notes.append)
    assert [call[:2] for call in third.calls] == [("paper", 0)]
    assert [(r["arm"], r["seed"]) for r in some] == [("standard", 0), ("paper", 0)]
    assert notes == ["paper, seed 0 (2 of 2)"]


def test_a_result_is_on_disk_before_the_next_run_ends(pool: Turns, file: Path) -> None:
    kept: list[int] = []
    run_all(Arms(), FIRST, 1, file, 2, lambda line: kept.append(len(stored(file))))
    assert kept == [1, 2, 3, 4, 5]


def test_the_share_may_come_from_the_file(pool: Turns, file: Path) -> None:
    file.write_text('{"arm": "calibrated", "seed": 0, "share": 0.25}\n')
    arms = Arms()
    run_all(arms, ["calibrated", "random drop"], 1, file, 1, no_note)
    assert arms.calls == [("random drop", 0, 0.25)]


def test_the_controls_may_follow_another_arm(pool: Turns, file: Path) -> None:
    lines = [f'{{"arm": "{arm}", "seed": 0, "share": {share}}}' for arm, share in SHARES.items()]
    file.write_text("\n".join(lines) + "\n")
    arms, chosen = Arms(), [*SHARES, "random drop", "second all"]
    run_all(arms, chosen, 1, file, 1, no_note, reference="all")
    assert arms.calls == [("random drop", 0, 0.75), ("second all", 0, 0.75)]
    with pytest.raises(BenchmarkError, match="keep as much as the arm all: add it"):
        run_all(arms, ["calibrated", "random drop"], 1, file, 1, no_note, reference="all")


def test_an_arm_that_is_given_twice_is_run_once(pool: Turns, file: Path) -> None:
    arms, notes = Arms(), list[str]()
    run_all(arms, ["standard", "standard"], 1, file, 2, notes.append)
    assert arms.calls == [("standard", 0, 1.0)]
    assert notes == ["standard, seed 0 (1 of 1)"]


def test_controls_need_calibrated(pool: Turns, file: Path) -> None:
    with pytest.raises(BenchmarkError, match="keep as much as the arm calibrated: add it"):
        run_all(Arms(), ["standard", "truncated"], 1, file, 1, no_note)
    assert not file.exists()


# --- what is kept


def test_a_run_that_fails_loses_no_other(pool: Turns, file: Path) -> None:
    failing = {
        ("paper", 0): TrainingError("the loss is nan at epoch 1"),
        ("oracle", 1): ZeroDivisionError("by\nzero"),
    }
    arms, notes = Arms(failing), list[str]()
    expected = (
        r"^paper, seed 0 and 1 more failed \(the loss is nan at epoch 1\): finished runs are "
        rf"kept in {file}, and the same command goes on$"
    )
    with pytest.raises(BenchmarkError, match=expected) as caught:
        run_all(arms, ALL, 2, file, 2, notes.append)
    assert caught.value.__cause__ is failing["paper", 0]
    ran = [(arm, seed) for seed in range(2) for arm in FIRST]
    assert [call[:2] for call in arms.calls] == ran  # what was to follow has not begun
    assert stored(file) == [run for run in ran if run not in failing]
    assert "paper, seed 0 failed: the loss is nan at epoch 1" in notes
    assert "oracle, seed 1 failed: ZeroDivisionError: by zero" in notes
    again = Arms()
    assert len(run_all(again, ALL, 2, file, 2, no_note)) == 20
    assert [call[:2] for call in again.calls[:2]] == list(failing)
    assert len(again.calls) == 2 + 10


def test_ctrl_c_keeps_what_is_done_and_starts_nothing_more(pool: Turns, file: Path) -> None:
    arms = Arms({("online", 0): KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run_all(arms, ALL, 2, file, 2, no_note)
    assert [call[0] for call in arms.calls] == ["standard", "paper", "online"]
    assert stored(file) == [("standard", 0), ("paper", 0)]


def test_a_broken_pool_is_said_where_the_next_run_finds_it(pool: Turns, file: Path) -> None:
    def run_arm(arm: str, seed: int, share: float) -> Result:
        pool.broken = True
        return {"arm": arm, "seed": seed}

    with pytest.raises(BenchmarkError, match=r"a process died \(under way: nothing\)"):
        run_all(run_arm, ["standard", "paper"], 1, file, 1, no_note)
    assert stored(file) == [("standard", 0)]


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", "null", '"text"', '{"arm": "paper"}', '{"seed": 0}', "", "\x80"]
)
def test_a_file_of_something_else_is_refused(line: str, file: Path) -> None:
    good = '{"arm": "standard", "seed": 0}'
    content = f"{good}\n{line}\n{good}\n".encode("latin-1")
    file.write_bytes(content)
    with pytest.raises(BenchmarkError, match=rf"^{file}, line 2 is no result of a run: remove"):
        run_all(Arms(), ["standard"], 1, file, 1, no_note)
    assert file.read_bytes() == content


def test_no_file_is_no_results(file: Path) -> None:
    assert read_results(file) == []


# --- with real processes

WORK = """
import os
from pathlib import Path

def run_arm(arm, seed, share):
    with Path(__file__).with_name("calls").open("a") as calls:
        calls.write(f"{arm} ")
    if arm == "fails" and not Path(__file__).with_name("mended").exists():
        raise ValueError("no good")
    if arm == "dies":
        os._exit(1)
    return {"arm": arm, "seed": seed, "process": os.getpid()}
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that other processes can import, too, and that imports nothing heavy."""
    (tmp_path / "pruning_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pruning_work", raising=False)
    return importlib.import_module("pruning_work")


def calls_of(work: ModuleType) -> Sequence[str]:
    return Path(str(work.__file__)).with_name("calls").read_text().split()


def test_an_error_comes_back_from_another_process(work: ModuleType, file: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"fails, seed 0 failed \(ValueError: no good\)"):
        run_all(work.run_arm, ["one", "fails", "two"], 1, file, 2, no_note)
    assert sorted(stored(file)) == [("one", 0), ("two", 0)]
    Path(str(work.__file__)).with_name("mended").touch()
    assert len(run_all(work.run_arm, ["one", "fails", "two"], 1, file, 2, no_note)) == 3
    assert sorted(calls_of(work)) == ["fails", "fails", "one", "two"]


def test_a_process_that_dies_is_named(work: ModuleType, file: Path) -> None:
    expected = r"a process died \(under way: dies, seed 0\): if memory is short, give fewer"
    with pytest.raises(BenchmarkError, match=expected):
        run_all(work.run_arm, ["one", "dies", "two"], 1, file, 1, no_note)
    assert stored(file) == [("one", 0)]
    assert calls_of(work) == ["one", "dies"]
